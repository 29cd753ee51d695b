"""The model in training: weights from safetensors, a mask that keeps documents apart, a loss that is a sum.

Shapes: B rows, L tokens a row, V vocabulary. A row holds pieces of documents or conversations; a token sees the earlier tokens of
its own piece only, positions start at 0 in each piece, and the first token of a piece is not a target; of a conversation only the
answers are. So a packed row gives exactly the logits and the loss of its pieces run one by one. The mask is additive and
four-dimensional because that is right with every attention implementation (position ids alone leak between documents when the
cache is on; a boolean mask is wrong in `eager`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from medschool.artifact import Artifact, local_copy
from medschool.errors import InputError

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
IGNORED = -100


def load_model(folder: Path, dtype: str) -> Any:
    """A causal language model from a local folder with safetensors. Raises InputError when the folder has none."""
    from transformers import AutoModelForCausalLM

    check_model_files([path.name for path in folder.iterdir()], str(folder))
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=DTYPES[dtype],
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        attn_implementation="sdpa",
    )


def check_model_files(names: list[str], where: str) -> None:
    """Raise InputError unless the names are those of a loadable model: config.json and safetensors, never pickled weights."""
    if "config.json" not in names:
        raise InputError("no config.json", "give a folder written by save_pretrained", where)
    if not any(name.endswith(".safetensors") for name in names):
        pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
        found = f"only {', '.join(pickles)}, which are pickles and can run code" if pickles else "no weights"
        raise InputError(
            f"no *.safetensors ({found})", "convert with model.save_pretrained(folder) on a machine you trust", where
        )


def piece_numbers(doc_lengths: list[list[int]], row_tokens: int) -> np.ndarray:
    """(B, L) number of the document piece that each token belongs to."""
    return np.stack([np.repeat(np.arange(len(lengths)), lengths) for lengths in doc_lengths]).reshape(-1, row_tokens)


def model_inputs(tokens: np.ndarray, doc_lengths: list[list[int]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """input_ids (B, L), position_ids (B, L), additive attention_mask (B, 1, L, L) of packed rows."""
    pieces = torch.from_numpy(piece_numbers(doc_lengths, tokens.shape[1]))
    positions = np.stack([np.concatenate([np.arange(length) for length in lengths]) for lengths in doc_lengths])
    seen = (pieces[:, :, None] == pieces[:, None, :]).tril()
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return {
        "input_ids": torch.from_numpy(tokens.astype(np.int64)),
        "position_ids": torch.from_numpy(positions),
        "attention_mask": mask[:, None],
    }


def targets_of(tokens: np.ndarray, doc_lengths: list[list[int]], trained: np.ndarray, weights: np.ndarray) -> torch.Tensor:
    """(B, L) target of each position: the next token where it is trained and of the same piece, else IGNORED.

    trained: (B, L) bool; weights: (B,), 0 for a row that fills up a slice and is not trained at all.
    """
    pieces = piece_numbers(doc_lengths, tokens.shape[1])
    targets = np.full(tokens.shape, IGNORED, dtype=np.int64)
    wanted = (pieces[:, 1:] == pieces[:, :-1]) & trained[:, 1:]
    targets[:, :-1] = np.where(wanted, tokens[:, 1:].astype(np.int64), IGNORED)
    targets[weights == 0] = IGNORED
    return torch.from_numpy(targets)


def summed_loss(model: Any, inputs: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropy over all targets, in nats, in fp32."""
    logits = model(**inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def model_copy(artifact: Artifact) -> Path:
    """The model's files on this node's disk, verified: `export/` of a checkpoint, or the whole of an adopted base model."""
    exported = any(file.path.startswith("export/") for file in artifact.files)
    return local_copy(artifact, "export/" if exported else "")
