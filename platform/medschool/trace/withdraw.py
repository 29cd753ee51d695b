"""Which checkpoints have seen documents, and what is left that has not: for a retraction, a licence, a patient's objection.

A model has seen what its own training consumed, the documents that its conversations were made from among them, and what the
model that it began from had seen: instruction tuning of an affected checkpoint is affected *through* it. The last clean
checkpoint of a run is the newest of those still in the store that has seen none of the documents; if there is none, it is the
model that the run began from, or that model's own last clean checkpoint.

A finished run keeps no training states, so its last clean checkpoint is usually the model it began from; `clean_until_step` says
how far the same run can be repeated without meeting any of the documents.
"""

import csv
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medschool.errors import InputError
from medschool.trace.checkpoints import Checkpoint, checkpoints, models, runs, token_artifacts
from medschool.trace.documents import Found, Seen, find, seen_by
from medschool.trace.talks import instruction_sets


@dataclass(frozen=True)
class Exposed:
    """One checkpoint, and what it has seen of the documents asked for."""

    checkpoint: Checkpoint
    seen: list[Seen]
    through: str | None
    """Run that made the model which it began from, where that one is affected."""

    @property
    def clean(self) -> bool:
        return not self.seen and self.through is None


def why(store_uri: str, id_: str) -> dict[str, Any]:
    """Where a document stands, and which checkpoints have seen it: in which steps, how many tokens, how often."""
    found = find(token_artifacts(store_uri), [id_], instruction_sets(store_uri))
    return {
        "id": id_,
        "stands_in": [_place(item, id_) for item in found.values() if id_ in item.pieces or id_ in item.held_out],
        "checkpoints": [
            {**_named(one.checkpoint), "through": one.through, "seen": [_told(seen) for seen in one.seen]}
            for one in _exposed(checkpoints(store_uri), found)
            if not one.clean
        ],
    }


def withdraw(store_uri: str, ids: Collection[str]) -> dict[str, Any]:
    """What the withdrawal of documents comes to, run by run; documents that stand in no token artifact are listed as unknown."""
    found = find(token_artifacts(store_uri), ids, instruction_sets(store_uri))
    known = {id_ for item in found.values() for id_ in item.pieces}
    held = {id_ for item in found.values() for id_ in item.held_out} - known
    exposed = _exposed(checkpoints(store_uri), found)
    by_run: dict[str, list[Exposed]] = {}
    for one in exposed:
        by_run.setdefault(one.checkpoint.name, []).append(one)
    made = models(store_uri)
    return {
        "documents": len(set(ids)),
        "unknown": sorted(set(ids) - known - held),
        "held_out": sorted(held),
        "runs": [_run(name, by_run, made) for name, states in by_run.items() if not states[-1].clean],
        "clean_runs": [name for name, states in by_run.items() if states[-1].clean],
    }


def read_ids(path: Path) -> list[str]:
    """Ids of a text file, one a line, or of a CSV file: its column `id`, else its first. Raises InputError when it has none."""
    try:
        rows = [row for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")) if row and any(row)]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", "give a text file with one id a line", str(path)) from error
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    column, first = (header.index("id"), 1) if "id" in header else (0, 0)
    ids = [row[column].strip() for row in rows[first:] if len(row) > column and row[column].strip()]
    if not ids:
        raise InputError("holds no ids", "give a text file with one id a line, or a CSV file with a column `id`", str(path))
    return list(dict.fromkeys(ids))


def _exposed(found: list[Checkpoint], documents: dict[str, Found]) -> list[Exposed]:
    """Every checkpoint with what it has seen; the order of a run is searched once, for its newest checkpoint."""
    exposed: list[Exposed] = []
    for states in runs(found).values():
        seen = seen_by(states[-1].ledger, documents)
        begun = {one.checkpoint.digest: one for one in exposed if one.checkpoint.finished and not one.clean}
        parent = begun.get(states[-1].ledger.model)
        for state in states:
            until = [one.until(state.ledger.steps) for one in seen]
            exposed.append(Exposed(state, [one for one in until if one.visits], parent.checkpoint.name if parent else None))
    return exposed


def _run(name: str, by_run: dict[str, list[Exposed]], made: dict[str, str]) -> dict[str, Any]:
    newest = by_run[name][-1]
    steps = sorted({step for seen in newest.seen for step in seen.steps})
    tokens: dict[str, int] = {}
    for seen in newest.seen:
        tokens[seen.source] = tokens.get(seen.source, 0) + seen.tokens
    return {
        "run": name,
        "finished": newest.checkpoint.finished,
        "through": newest.through,
        "documents": len({seen.document for seen in newest.seen}),
        "tokens": tokens,
        "steps": steps,
        "clean_until_step": 0 if newest.through else steps[0] - 1,
        "affected": [_named(one.checkpoint) for one in by_run[name] if not one.clean],
        "last_clean": _last_clean(name, by_run, made),
    }


def _last_clean(name: str, by_run: dict[str, list[Exposed]], made: dict[str, str]) -> dict[str, Any]:
    """The newest checkpoint of a run that has seen none of it, or the model behind it."""
    clean = [one.checkpoint for one in by_run[name] if one.clean]
    if clean:
        return _named(clean[-1])
    newest = by_run[name][-1]
    if newest.through is not None:
        return _last_clean(newest.through, by_run, made)
    model = newest.checkpoint.ledger.model
    return {"checkpoint": "the model it began from", "step": 0, "finished": True, "uri": made.get(model, ""), "digest": model}


def _named(one: Checkpoint) -> dict[str, Any]:
    return {"checkpoint": one.name, "step": one.ledger.steps, "finished": one.finished, "uri": one.uri, "digest": one.digest}


def _place(item: Found, id_: str) -> dict[str, Any]:
    pieces = item.pieces.get(id_, [])
    return {
        "artifact": f"{item.artifact.stage}/{item.artifact.fingerprint}",
        "rows": len({(piece.shard, piece.row) for piece in pieces}),
        "tokens": sum(piece.tokens for piece in pieces),
        "held_out": id_ in item.held_out,
    }


def _told(seen: Seen) -> dict[str, Any]:
    return {"source": seen.source, "steps": seen.steps, "tokens": seen.tokens, "times": round(seen.times, 3)}
