"""How many records a released file has, and how many of them the product can use.

The count comes from the reader or maker that a recipe would name, so that a file that is counted can be read. Every record is one
row of those, kept or dropped; a maker that makes two of one, such as `medqa`, is not used: its exam reader is.

Price: that of the reader, 15,000 conversations of MedC-I a second and core; exams are in memory as a whole.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from medschool.errors import InputError
from medschool.exams.formats import EXAM_FORMATS
from medschool.instructions.formats import INSTRUCTION_FORMATS
from medschool.rows import Dropped, LeftOut

LABELS = "labels"
"""A JSON object of labels by id, such as PubMedQA's test_ground_truth.json: no reader has it."""


@dataclass(frozen=True)
class Count:
    """What a file came to."""

    records: int
    used: int
    dropped: dict[str, int] = field(default_factory=dict)
    """Records that cannot be used, by reason."""

    def words(self) -> str:
        """`16,407 records, 16,398 of them used (malformed 9)`."""
        reasons = ", ".join(f"{step} {count:,}" for step, count in self.dropped.items())
        return f"{self.records:,} records" + (f", {self.used:,} of them used ({reasons})" if reasons else "")


def count(path: Path, format: str) -> Count:
    """Count the records of a local file. Raises InputError where it cannot be read as `format`."""
    if format == LABELS:
        return _labels(path)
    if format in EXAM_FORMATS:
        return _rows(EXAM_FORMATS[format](path.read_bytes(), path.name, "fetched"))
    with path.open("rb") as stream:
        return _rows(INSTRUCTION_FORMATS[format](stream, path.name, "fetched", 0))


def _rows(rows: Iterable[object]) -> Count:
    used, dropped = 0, Counter[str]()
    for row in rows:
        if isinstance(row, Dropped):
            dropped[row.step] += 1
        elif not isinstance(row, LeftOut):
            used += 1
    return Count(used + dropped.total(), used, dict(sorted(dropped.items())))


def _labels(path: Path) -> Count:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"not JSON ({error})", "fetch the file again", path.name) from error
    if not isinstance(found, dict):
        raise InputError("not a JSON object of labels by id", "give the file as it was released", path.name)
    return Count(len(found), len(found))
