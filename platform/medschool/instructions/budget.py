"""How much of a set may be broken, or hold people, before it is not accepted.

The budget is `instructions.<set>.bad_files` of the recipe: malformed records as a share of all rows that the makers yield, and
files that could not be read to their end as a number. Two things stop a stage within it: an entry of `files` of which no file
could be read (it names the wrong format), and identifiers of people in more conversations than `clean.identifiers` allows. It is
the budget of the corpus (medschool.corpus.budget), for conversations.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from medschool.errors import StageError
from medschool.instructions.check import Checked
from medschool.instructions.portions import Reading
from medschool.recipe.corpus import BadFiles, Identifiers
from medschool.rows import Dropped

NAMED = 3


def check_files(readings: Sequence[Reading], limits: BadFiles, where: str) -> None:
    """Raise StageError, with the first of what is broken, when it is more than `limits` allow. where: `instructions.<set>`."""
    unreadable = [reading.unreadable for reading in readings if reading.unreadable]
    _check_entries(readings, where)
    if len(unreadable) > limits.max_files:
        raise StageError(
            f"{len(unreadable)} of {len(readings)} files could not be read, bad_files.max_files allows {limits.max_files}: "
            f"{_named(unreadable)}",
            "fetch them again or take them out of the set",
            where,
        )
    rows, malformed = sum(reading.rows for reading in readings), sum(reading.malformed for reading in readings)
    if malformed > limits.max_share * rows:
        raise StageError(
            f"{malformed} of {rows} records are malformed, bad_files.max_share allows {limits.max_share:g} of them: "
            f"{_named(row for reading in readings for row in reading.first_malformed)}",
            f"mend the files, or raise {where}.bad_files.max_share",
            where,
        )


def check_identifiers(checked: Sequence[Checked], limits: Identifiers, where: str) -> None:
    """Raise StageError when more than the allowed share of those that came to the check were quarantined."""
    quarantined = sum(portion.quarantined for portion in checked)
    conversations = quarantined + sum(int(portion.passed.sum()) for portion in checked)
    if quarantined > limits.max_quarantined_share * conversations:
        found: Counter[str] = Counter()
        for portion in checked:
            found.update(portion.found)
        raise StageError(
            f"{quarantined} of {conversations} conversations hold identifiers of people "
            f"({', '.join(f'{kind} {count}' for kind, count in sorted(found.items()))}), "
            f"more than clean.identifiers.max_quarantined_share allows ({limits.max_quarantined_share:g})",
            "look at the set with whoever answers for this data; do not raise the limit before",
            where,
        )


def _check_entries(readings: Sequence[Reading], where: str) -> None:
    for entry in sorted({reading.file.entry for reading in readings}):
        there = [reading for reading in readings if reading.file.entry == entry]
        broken = [reading.unreadable for reading in there if reading.unreadable]
        if len(broken) == len(there):
            raise StageError(
                f"not one of its {len(there)} files could be read as {there[0].file.format}: {_named(broken)}",
                "check the `format`; if it is right, fetch the files again",
                f"{where}.files[{entry}]",
            )


def _named(rows: Iterable[Dropped]) -> str:
    """The first rows, each with its place and its reason."""
    return "; ".join(f"{row.id}: {row.reason}" for row in islice(rows, NAMED))
