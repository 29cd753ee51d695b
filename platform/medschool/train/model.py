"""The model in training: weights from safetensors, a mask that keeps documents apart, a loss that is a sum.

Shapes: B rows, L tokens a row, V vocabulary. A row holds pieces of documents or conversations; a token sees the earlier tokens of
its own piece only, positions start at 0 in each piece, and the first token of a piece is not a target; of a conversation only the
answers are. So a packed row gives exactly the logits and the loss of its pieces run one by one.

The mask is made by transformers from the positions, which start again where a piece does: as booleans for `sdpa`, added numbers
for `eager`, blocks for `flex_attention`, and the pieces' boundaries for `flash_attention_2`. It knows the sliding windows of
Mistral and Qwen, which a mask of our own, the same for all layers, would widen to the whole row. Two things break it, and
neither is ever passed: a cache (`use_cache` is off), and a mask of ones. What it cannot promise for a model that nobody tried is
looked at when training starts (medschool.train.engine).

`flash_attention_2` takes the boundaries beside the tokens; no GPU has run it here.
"""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from medschool.artifact import Artifact, local_copy
from medschool.errors import InputError, PlanError
from medschool.train.heap import keep_freed_memory

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
IGNORED = -100


def load_model(folder: Path, dtype: str, attention: str = "sdpa") -> Any:
    """A causal language model from a local folder with safetensors; from then on this process keeps the memory that it frees.

    Raises InputError when the folder has none, one is damaged, or they lack weights that the model needs (transformers would draw
    those at random and only warn).
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    check_model_files([path.name for path in folder.iterdir()], str(folder))
    keep_freed_memory()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES[dtype],
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation=attention,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise InputError(
            f"a *.safetensors is none, or damaged ({error})", "copy the whole folder that save_pretrained wrote", str(folder)
        ) from error
    if lacking := sorted(found["missing_keys"]):
        raise InputError(
            f"{len(lacking)} weights are missing from the safetensors, {lacking[0]} among them",
            "copy the whole folder that save_pretrained wrote",
            str(folder),
        )
    return model


def random_model(folder: Path, dtype: str, seed: int) -> Any:
    """A model of the config.json in a folder with weights drawn by `seed`, in fp32 on the CPU, and then rounded to `dtype`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).to(DTYPES[dtype])


def check_model_files(names: list[str], where: str, weights: Literal["pretrained", "random"] = "pretrained") -> None:
    """Raise InputError unless the names are those of a loadable model: config.json and safetensors, never pickled weights.

    Random weights need config.json alone.
    """
    if "config.json" not in names:
        raise InputError("no config.json", "give a folder written by save_pretrained", where)
    if weights == "pretrained" and not any(name.endswith(".safetensors") for name in names):
        pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
        found = f"only {', '.join(pickles)}, which are pickles and can run code" if pickles else "no weights"
        raise InputError(
            f"no *.safetensors ({found})", "convert with model.save_pretrained(folder) on a machine you trust", where
        )


def piece_numbers(doc_lengths: list[list[int]], row_tokens: int) -> np.ndarray:
    """(B, L) number of the document piece that each token belongs to."""
    return np.stack([np.repeat(np.arange(len(lengths)), lengths) for lengths in doc_lengths]).reshape(-1, row_tokens)


def model_inputs(tokens: np.ndarray, doc_lengths: list[list[int]], attention: str = "sdpa") -> dict[str, Any]:
    """input_ids (B, L) and position_ids (B, L) of packed rows; for flash attention the boundaries of their pieces as well.

    Those are, as its variable-length kernel takes them, where each piece starts in the B * L tokens, the end after the last one
    (cu_seq_lens_*, int32), and the longest piece (max_length_*).
    """
    positions = np.stack([np.concatenate([np.arange(length) for length in lengths]) for lengths in doc_lengths])
    inputs: dict[str, Any] = {
        "input_ids": torch.from_numpy(tokens.astype(np.int64)),
        "position_ids": torch.from_numpy(positions),
    }
    if attention != "flash_attention_2":
        return inputs
    pieces = np.concatenate([np.asarray(lengths) for lengths in doc_lengths])
    starts = torch.from_numpy(np.concatenate([[0], np.cumsum(pieces)]).astype(np.int32))
    longest = int(pieces.max())
    return inputs | {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}


def to_device(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The same inputs with their tensors on a device; numbers stay."""
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


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


def summed_loss(model: Any, inputs: dict[str, Any], targets: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropy over all targets, in nats, in fp32."""
    return row_losses(model, inputs, targets).sum()


def row_losses(model: Any, inputs: dict[str, Any], targets: torch.Tensor) -> torch.Tensor:
    """(B,) sum of the cross-entropy over the targets of each row, in nats, in fp32."""
    if getattr(model, "takes_targets", False):
        losses = model(**inputs, use_cache=False, targets=targets)
    else:
        losses = _cross_entropy(model(**inputs, use_cache=False).logits.flatten(0, 1), targets.flatten())
    return losses.view(targets.shape).sum(dim=1)


def changed_logits(model: Any) -> str | None:
    """What this model does to its logits after the output head, by the name in its configuration; None where it does nothing."""
    names = ("logits_scaling", "logit_scale", "final_logit_softcapping")
    return next((name for name in names if getattr(model.config, name, None)), None)


def loss_at_targets(model: Any, chunk_tokens: int | None) -> None:
    """From now on model(..., targets=(B, L)) gives the loss of each token, (B * L,); the output head sees those with a target.

    In tuning they are few, and the head is a large part of a small model: bench/tuning.py shows the gain. With `chunk_tokens` the
    logits of so many tokens exist at a time, and the backward pass computes them again (Chen et al. 2016, section 3), which costs
    one more pass through the head. Logits are as large as tokens * vocabulary * 4 bytes, several times over: 0.5 GiB for 2048
    tokens of a vocabulary of 64 thousand, once for the logits, the loss and the gradient each. The number of chunks does not
    depend on how many targets there are, because with ZeRO 3 each chunk gathers the head's weights, and all ranks must do so
    equally often.
    Raises PlanError for a model that does more to its logits than the output head does.
    """
    if changed := changed_logits(model):
        raise PlanError(
            f"{model.config.model_type} changes its logits after the output head ({changed}), which chunks would leave out",
            "leave out cluster.loss_chunk_tokens",
            "cluster.loss_chunk_tokens",
        )
    whole, body, head = model.forward, model.get_decoder(), model.get_output_embeddings()

    def forward(*, targets: torch.Tensor | None = None, **inputs: Any) -> Any:
        if targets is None:
            return whole(**inputs)
        hidden, wanted = body(**inputs).last_hidden_state.flatten(0, 1), targets.flatten()
        places = (wanted != IGNORED).nonzero().flatten()
        if chunk_tokens is None:
            losses = [_loss_at(head, hidden[places], wanted[places])]
        else:
            chunks = places.tensor_split(math.ceil(len(wanted) / chunk_tokens))
            losses = [checkpoint(_loss_at, head, hidden[some], wanted[some], use_reentrant=False) for some in chunks]
        return torch.zeros(len(wanted), device=hidden.device).index_copy(0, places, torch.cat(losses))

    model.forward, model.takes_targets = forward, True


def _loss_at(head: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return _cross_entropy(head(hidden), targets)


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(N,) cross-entropy of logits (N, V) against targets (N,); 0 where a target is IGNORED."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="none")


def model_copy(artifact: Artifact) -> Path:
    """The model's files on this node's disk, verified: `export/` of a checkpoint, or the whole of an adopted base model."""
    exported = any(file.path.startswith("export/") for file in artifact.files)
    return local_copy(artifact, "export/" if exported else "")
