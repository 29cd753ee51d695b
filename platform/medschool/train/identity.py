"""What a training state must agree in with the run that goes on from it.

A run's folder is named by its fingerprint, so states of another model, other data or another schedule lie elsewhere. A state that
was copied by hand, or a fingerprint that forgot something, must not go on silently: it would train, and be wrong. So every state
says what it is of, and that is compared before a model is built or anything is downloaded.

Not compared: what changes the speed and not the result (micro-batch, attention, offload, versions of libraries). The number of
workers and the ZeRO stage decide how a state is read, not whether: medschool.train.resume.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from medschool.artifact import Artifact, digest_of
from medschool.errors import PlanError
from medschool.ledger import Ledger
from medschool.recipe.training import Tuning
from medschool.train.checkpoint import Position, read_state
from medschool.train.course import Course

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "chat_template.jinja")


def identity_of(course: Course, ledger: Ledger) -> dict[str, Any]:
    """What a state of this run is of, as JSON values: names, numbers and digests."""
    order, spec = ledger.order, course.spec
    identity = {
        "phase": course.phase,
        "model": ledger.model,
        "tokenizer": _tokenizer_digest(course.model),
        "tokens": ledger.digests,
        "row_tokens": ledger.row_tokens,
        "rows": digest_of([order.shard_rows, order.withheld]),
        "weights": order.weights,
        "weights_from": order.weights_from,
        "batch_rows": order.batch_rows,
        "seed": order.seed,
        "steps": course.steps,
        "optimizer": spec.optimizer.model_dump(mode="json"),
        "lora": spec.lora and spec.lora.model_dump(mode="json"),
        "neftune_alpha": spec.neftune_alpha if isinstance(spec, Tuning) else None,
        "dtype": course.recipe.model.dtype,
    }
    parsed: dict[str, Any] = json.loads(json.dumps(identity))
    return parsed


def check_resumable(start: Position, course: Course, ledger: Ledger) -> None:
    """Raise PlanError unless the state that `start` names is one of this run; a fresh start always is."""
    if start.state_uri:
        check_identity(read_state(start.state_uri).identity, identity_of(course, ledger), start.state_uri)


def check_identity(stored: Mapping[str, Any], ours: Mapping[str, Any], where: str) -> None:
    """Raise PlanError at `where` that names every field in which a stored state is of another run, with both values."""
    theirs, mine = dict(_flat(stored)), dict(_flat(ours))
    differ = [name for name in sorted(theirs.keys() | mine.keys()) if theirs.get(name) != mine.get(name)]
    if differ:
        told = "; ".join(f"{name} is {theirs.get(name)!r} there and {mine.get(name)!r} here" for name in differ)
        raise PlanError(
            f"the checkpoint is of another run: {told}",
            "go on with the recipe and the inputs that it was made with, or delete the checkpoint to train from the one before",
            where,
        )


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{before}{key}.")
        else:
            yield before + key, inner


def _tokenizer_digest(model: Artifact) -> str | None:
    """Digest of the tokenizer's files beside the weights; None where a model has none."""
    files = [[file.path, file.sha256] for file in model.files if file.path.rsplit("/", 1)[-1] in TOKENIZER_FILES]
    return digest_of(sorted(files)) if files else None
