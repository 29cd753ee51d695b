"""Proof that an export is the model that was trained: plain transformers loads it in a process of its own, and says the same.

    trained engine --logits--> sample.safetensors --+
    export folder --AutoModelForCausalLM, a new process--> logits --compare--> largest difference, argmax agreement

The sample is a few packed rows of the last batch, kept apart as in training, and one prompt that the engine goes on with
greedily; that one is read the way users call a model, without positions. So a lost tensor, a wrong tie between embedding and
head, a dtype that was rounded, or rotary frequencies that were rounded in training all show up as numbers.

Nothing is shared with the trainer: the process starts from the files, without the variables of a worker group, and its memory
ends with it. It costs some four seconds of imports and a forward pass over the sample. Memory: the model once more, on the
accelerator as far as it fits there and else in the host's memory (accelerate's `device_map="auto"`, which no GPU has run here),
and POSITIONS logits of each row.

What it does not show: that generation with a key-value cache is right (that is transformers' own), or that the model is any good.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from medschool.errors import StageError
from medschool.train.model import model_inputs, to_device

MOST_DIFFERENCE = {"fp32": 0.01, "bf16": 0.1}
"""Largest allowed difference between two logits of the same token, by the precision of the weights."""
ROWS, POSITIONS = 2, 256
"""Packed rows compared, and positions of each, evenly spread: 256 logits of 128k tokens are 131 MB."""
PROMPT_TOKENS, GENERATED_TOKENS = 16, 16
PROMPT = "prompt"
TIMEOUT_S = 3600
OF_A_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that tell a process it is one of several; the one that proves is alone."""


@dataclass(frozen=True)
class Proof:
    """What the comparison found."""

    largest_logit_difference: float
    """Over all positions and tokens; NaN where a logit is no number."""
    argmax_agreement: float
    """Share of the positions at which both put the same token first."""
    positions: int
    """Positions compared."""


class Remembered:
    """Hands on the tables of an iterable, and remembers the last one."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        self._tables = tables
        self.last: pa.Table | None = None

    def __iter__(self) -> Iterator[pa.Table]:
        for table in self._tables:
            self.last = table
            yield table


def take_sample(engine: Any, rows: pa.Table | None, dtype: torch.dtype, path: Path) -> None:
    """Write tokens and the trained engine's logits of them: the first ROWS of a slice of a batch, and a prompt it goes on with.

    Under ZeRO 3 every rank calls this: each forward pass gathers parameters. `rows` is None where a resumed run had no batch
    left; the prompt is then the model's first token alone.
    """
    engine.eval()
    found: dict[str, torch.Tensor] = {}
    attention = str(engine.module.config._attn_implementation)
    taken = [] if rows is None else zip(*_tokens_and_lengths(rows), strict=True)
    prompt = torch.tensor([[engine.module.config.bos_token_id or 0]])
    for number, (tokens, lengths) in enumerate(taken):
        inputs = model_inputs(tokens[None], [lengths], attention)
        found |= _case(str(number), inputs["input_ids"], _logits(engine, inputs), lengths)
        prompt = inputs["input_ids"][:, : min(lengths[0], PROMPT_TOKENS)] if number == 0 else prompt
    whole = _go_on(engine, prompt)
    found |= _case(PROMPT, whole, _logits(engine, {"input_ids": whole}), [whole.shape[1]])
    _save(found, path, {"attention": attention, "dtype": str(dtype).removeprefix("torch."), "device": engine.device.type})


def prove(folder: Path, sample: Path, dtype: str, where: str) -> Proof:
    """Load the export in `folder` in a new process and compare its logits with the sample's.

    Raises StageError at `where`, with the numbers, when it does not load cleanly or a logit differs by MOST_DIFFERENCE or more.
    """
    environment = {name: value for name, value in os.environ.items() if name not in OF_A_GROUP}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "medschool.train.proof", str(folder), str(sample)]
    try:
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise _refused(f"transformers has not loaded and run the exported model within {TIMEOUT_S} s", where) from error
    if ran.returncode:
        last = next((line for line in reversed(ran.stderr.splitlines()) if line.strip()), f"exit code {ran.returncode}")
        raise _refused(f"transformers does not load the exported model: {last.strip()}", where)
    found = Proof(**json.loads(ran.stdout.splitlines()[-1]))
    if not found.largest_logit_difference < MOST_DIFFERENCE[dtype]:
        raise _refused(
            f"the exported model's logits differ from the trained one's by {found.largest_logit_difference:.3g} "
            f"(less than {MOST_DIFFERENCE[dtype]:g} is allowed in {dtype}); "
            f"the most likely token is the same at {found.argmax_agreement:.1%} of {found.positions} positions",
            where,
        )
    return found


def _refused(problem: str, where: str) -> StageError:
    return StageError(problem, "nothing was committed; the training state is kept: report this with the job's log", where)


def _tokens_and_lengths(rows: pa.Table) -> tuple[np.ndarray, list[list[int]]]:
    from medschool.tokens.shards import tokens_of

    first = rows.slice(0, ROWS)
    return tokens_of(first), first.column("doc_lengths").to_pylist()


def _case(name: str, tokens: torch.Tensor, logits: torch.Tensor, lengths: list[int]) -> dict[str, torch.Tensor]:
    places = _places(tokens.shape[1])
    return {
        f"{name}/tokens": tokens.cpu(),
        f"{name}/lengths": torch.tensor(lengths),
        f"{name}/logits": logits[0, places].float().cpu().contiguous(),
    }


def _places(length: int) -> torch.Tensor:
    """At most POSITIONS positions of a row, from first to last."""
    return torch.linspace(0, length - 1, min(length, POSITIONS)).round().long()


def _logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**to_device(inputs, model.device), use_cache=False).logits


def _go_on(engine: Any, prompt: torch.Tensor) -> torch.Tensor:
    """The prompt and its greedy continuation, (1, L); the same number of passes on every rank."""
    for _ in range(GENERATED_TOKENS):
        prompt = torch.cat([prompt, _logits(engine, {"input_ids": prompt})[:, -1:].argmax(-1).cpu()], dim=1)
    return prompt


def _save(tensors: dict[str, torch.Tensor], path: Path, about: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, str(path), metadata=about)


def compare(folder: Path, sample: Path) -> Proof:
    """Load the export as anybody would, and compare: what the process runs. Raises ValueError when it does not load cleanly."""
    from safetensors import safe_open

    with safe_open(str(sample), "pt") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    model = _load(folder, about)
    differences, agreed, positions = [], 0, 0
    for name in sorted({key.split("/")[0] for key in tensors}):
        tokens, expected = tensors[f"{name}/tokens"], tensors[f"{name}/logits"]
        lengths = [tensors[f"{name}/lengths"].tolist()]
        inputs = {"input_ids": tokens} if name == PROMPT else model_inputs(tokens.numpy(), lengths, about["attention"])
        found = _logits(model, inputs)[0, _places(tokens.shape[1])].float().cpu()
        differences.append((found - expected).abs().max())
        agreed += int((found.argmax(-1) == expected.argmax(-1)).sum())
        positions += len(expected)
    return Proof(float(torch.stack(differences).max()), agreed / positions, positions)


def _load(folder: Path, about: dict[str, str]) -> Any:
    from transformers import AutoModelForCausalLM

    model, said = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto",
        local_files_only=True,
        use_safetensors=True,
        attn_implementation=about["attention"],
        device_map="auto" if about["device"] == "cuda" else None,
        output_loading_info=True,
    )
    if wrong := {kind: sorted(map(str, keys)) for kind, keys in said.items() if keys and kind.endswith("_keys")}:
        raise ValueError(f"its tensors are not those of its config.json: {wrong}")
    if (stored := _stored_dtypes(folder)) != {about["dtype"]}:
        raise ValueError(f"its weights are {', '.join(sorted(stored))}, trained were {about['dtype']}")
    return model.eval()


def _stored_dtypes(folder: Path) -> set[str]:
    """Of the tensors in the files: what is loaded has the dtype of config.json, whatever was stored."""
    from safetensors import safe_open

    found = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(str(path), "pt") as file:
            found |= {str(file.get_tensor(name)[:0].dtype).removeprefix("torch.") for name in file.keys()}  # noqa: SIM118
    return found


if __name__ == "__main__":
    print(json.dumps(asdict(compare(Path(sys.argv[1]), Path(sys.argv[2])))))
