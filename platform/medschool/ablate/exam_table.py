"""The table of the exams: what was scored how, by which variant, on how many items, how well and how surely.

    trials of the verdict's JSON --exam_rows--> a line for each exam, protocol and variant
    recipe --published_rows--> what others have printed for the same exams, below it

A line is one score under one protocol, which is named with its hash (medschool.evaluate.protocol). An exam that is chosen by
letters and answered in words, too, has two lines. Lines of one exam and protocol stand together; those of two hashes do not share
a line, whatever a results file was put together from. The share of answers that cannot be read stands beside generated scores.

Scores of others are theirs, and each row says under which protocol; most of them are under none of ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medschool.evaluate.protocol import GENERATED
from medschool.exams.calibration import table_rows
from medschool.recipe import Recipe

HEADINGS = ["variant", "exam", "protocol", "hash", "items", "accuracy", "clean items", "clean accuracy", "unparsed"]
"""Clean are the items that no document of the corpus and no conversation of the instructions holds."""
PUBLISHED_TITLE = "Published by others (theirs, not measured here), per cent right, each under its own protocol"
PUBLISHED_NOTE = (
    "Only rows under the same protocol may be compared. The mean is worked out here: PMC-LLaMA's Table 2 prints 64.43 as the "
    "average of its own model, and the mean of its three scores is 63.43."
)
_THEIR_FORMATS = ("medqa", "medmcqa", "pubmedqa")
NONE = "-"


@dataclass(frozen=True)
class Line:
    """One score under one protocol."""

    variant: str
    exam: str
    protocol: str
    hash: str
    """'' where the scores name none."""
    score: dict[str, Any]
    """`items`, `accuracy`, `low`, `high`."""
    clean: dict[str, Any] | None
    """The same without items that were found there; None where nobody looked for them."""
    unparsed: int | None
    """Answers that cannot be read; None where none is read."""


def exam_lines(trials: Sequence[dict[str, Any]]) -> list[Line]:
    """Every score of every trial; those of one exam and protocol stand together, in the order of the trials."""
    found = [line for trial in trials for name, exam in trial["exams"].items() for line in _lines(trial["name"], name, exam)]
    order = list(dict.fromkeys((line.exam, line.protocol, line.hash) for line in found))
    exams = list(dict.fromkeys(line.exam for line in found))
    order.sort(key=lambda key: exams.index(key[0]))
    return sorted(found, key=lambda line: order.index((line.exam, line.protocol, line.hash)))


def _lines(variant: str, name: str, exam: dict[str, Any]) -> list[Line]:
    hash_, written = exam.get("protocol") or "", exam.get("written") or {}
    spoken = bool(written and hash_) and written.get("protocol") == hash_  # the score itself is of answers in words
    unparsed = exam.get("unparsed", written["unparsed"] if spoken else None)
    found = [Line(variant, name, exam.get("protocol_name") or NONE, hash_, exam, exam.get("uncontaminated"), unparsed)]
    if written and not spoken:
        clean = written.get("uncontaminated")
        score, others = _flat(written), _flat(clean) if clean else None
        found.append(Line(variant, name, GENERATED, written.get("protocol") or "", score, others, written["unparsed"]))
    return found


def _flat(written: dict[str, Any]) -> dict[str, Any]:
    """Counts and accuracy of written answers in the form of any other score; without an interval where a file has none."""
    shares = written.get("accuracy") or {"value": written["correct"] / written["items"], "low": None, "high": None}
    return {"items": written["items"], "accuracy": shares["value"], "low": shares["low"], "high": shares["high"]}


def exam_rows(trials: Sequence[dict[str, Any]]) -> list[list[str]]:
    """HEADINGS, and the cells of each line."""
    return [HEADINGS, *(_cells(line) for line in exam_lines(trials))]


def _cells(line: Line) -> list[str]:
    items = line.score["items"]
    clean = [f"{line.clean['items']:,}", score_text(line.clean)] if line.clean else [NONE, NONE]
    unparsed = NONE if line.unparsed is None or not items else f"{line.unparsed / items:.0%} of {items:,}"
    named = [line.variant, line.exam, line.protocol, line.hash or NONE]
    return [*named, f"{items:,}", score_text(line.score), *clean, unparsed]


def score_text(score: dict[str, Any]) -> str:
    """`25.5% [19.9, 32.0]`; `-` where there is no item."""
    if score["accuracy"] is None:
        return NONE
    interval = "" if score["low"] is None else f" [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
    return f"{100 * score['accuracy']:.1f}%{interval}"


def published_rows(recipe: Recipe) -> list[list[str]]:
    """What others have printed, with a header, where the recipe sits any of these exams; else the header alone."""
    head, *rows = table_rows()
    formats = [files.format for exam in recipe.exams.values() for files in exam.files]
    return [head, *(rows if any(name.startswith(_THEIR_FORMATS) for name in formats) else [])]
