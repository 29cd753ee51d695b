"""The score of one exam, twice: on all its items, and on those alone that do not stand in what is trained on.

    answers of one exam + ids of its items that were found --exam_scores--> entry of the verdict's JSON

Every score has its number of items and an interval. The second one leaves out the items that were found in any source
or set of instructions that a variant trains on (medschool.ablate.contamination). What held them was kept out of training, so both
scores should agree; where they do not, there is more of the exam in it than word-by-word search can find, or the items that are
quoted are easier than others.

What it does not know: items that stand in the base model's own training text, which nobody can search.
"""

from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medschool.ablate.chance import wilson


def exam_scores(rows: pa.Table, found: Collection[str] | None, confidence: float) -> dict[str, Any]:
    """`items`, `correct`, `accuracy`, `low`, `high` of one exam's rows (id, correct), and the same once more as `uncontaminated`.

    found: ids of items that were found; None where nobody looked, and then `uncontaminated` is None. A share of no items, and its
    interval (Wilson 1927), are None.
    """
    whole = _score(rows.column("correct").to_pylist(), confidence)
    clean = None if found is None else _score(without(rows, found).column("correct").to_pylist(), confidence)
    return whole | {"uncontaminated": clean}


def without(rows: pa.Table, found: Collection[str]) -> pa.Table:
    """The rows whose `id` is not among those found."""
    return rows.filter(pc.invert(pc.is_in(rows.column("id"), pa.array(sorted(found), pa.string()))))


def share(part: int, whole: int, confidence: float) -> dict[str, float | None]:
    """`value`, `low` and `high` of a share, with the interval of Wilson; all None where there is no item."""
    if not whole:
        return {"value": None, "low": None, "high": None}
    low, high = wilson(part, whole, confidence)
    return {"value": part / whole, "low": low, "high": high}


def _score(right: Sequence[bool], confidence: float) -> dict[str, Any]:
    found = share(sum(right), len(right), confidence)
    return {
        "items": len(right), "correct": sum(right), "accuracy": found["value"], "low": found["low"], "high": found["high"],
    }  # fmt: skip
