"""Exams answered in words: the share of answers that name an option, and the share that is right, each with its interval.

    written answers of one exam --written_scores--> entry of the verdict's JSON --written_rows--> table of the report

An answer from which no option can be read counts as wrong: whoever uses the model has no answer then. (The paper's script leaves
such answers out, which makes a model that rarely answers look better.) So the share that is right stands in the table of the
exams with the share that cannot be read beside it (medschool.ablate.exam_table), apart from the accuracy by log-probability,
which asks for no form and takes every item. How often the commonest letter is named stands here: a model that says B to every
question has learned the form and nothing else, and both shares may look well.

What it does not know: whether a text that names an option means it. The first one that is called correct is taken.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

from medschool.ablate.exam_scores import share, without
from medschool.exams.layout import letter

HEADINGS = ["variant", "exam", "items", "answer can be read", "commonest answer"]


def written_scores(rows: pa.Table, confidence: float, found: Collection[str] | None = None) -> dict[str, Any]:
    """Counts and shares of one exam's written answers, ANSWERS_SCHEMA of medschool.evaluate.answer, at least one.

    parse_rate and accuracy are shares of all `items`, each with the interval of Wilson (1927); `letters` counts what is named.
    found: ids of items found in what is trained on; `uncontaminated` has the same counts and shares without them, None with None.
    """
    named = Counter(letter(option) for option in rows.column("chosen").drop_null().to_pylist())
    clean = None if found is None else _counted(without(rows, found), confidence)
    return _counted(rows, confidence) | {"letters": dict(sorted(named.items())), "uncontaminated": clean}


def _counted(rows: pa.Table, confidence: float) -> dict[str, Any]:
    items, unparsed = rows.num_rows, rows.column("chosen").null_count
    correct = sum(rows.column("correct").to_pylist())
    return {
        "items": items,
        "correct": correct,
        "unparsed": unparsed,
        "parse_rate": share(items - unparsed, items, confidence),
        "accuracy": share(correct, items, confidence),
    }


def written_rows(trials: Sequence[dict[str, Any]]) -> list[list[str]]:
    """HEADINGS, and a line for each trial and exam of the verdict that has written answers."""
    found = [(trial["name"], name, exam["written"]) for trial in trials for name, exam in trial["exams"].items()]
    return [
        HEADINGS,
        *(
            [trial, name, f"{written['items']:,}", share_text(written["parse_rate"]), _most(written)]
            for trial, name, written in found
            if written
        ),
    ]


def _most(written: dict[str, Any]) -> str:
    """`B, 396 of 398`: of the answers that can be read."""
    letters: dict[str, int] = written["letters"]
    return (
        f"{max(letters, key=lambda name: letters[name])}, {max(letters.values())} of {sum(letters.values())}" if letters else "-"
    )


def share_text(share: dict[str, float]) -> str:
    """`99.5% [98.2, 99.9]`"""
    return f"{100 * share['value']:.1f}% [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"
