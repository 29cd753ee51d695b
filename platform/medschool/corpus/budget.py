"""How much of a source may be broken, or hold people, before the corpus is not accepted.

The budget is `clean.bad_files` of the recipe: malformed records as a share of those read, and files that could not be read to
their end as a number. Three things stop a stage within it: a source of which nothing is left, an entry of `files` of which no
file could be read (it names the wrong format), and identifiers of people in more documents than `clean.identifiers` allows.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from medschool.corpus.deidentify import check_quarantine
from medschool.corpus.marks import Mark, read_uri
from medschool.corpus.parts import Part
from medschool.errors import StageError
from medschool.recipe.corpus import Clean
from medschool.rows import Dropped

NAMED = 3


def check_budget(parts: Sequence[Part], marks: Sequence[Mark], clean: Clean, source: str, work_uri: str) -> None:
    """Raise StageError, with the first of what is broken, when it is more than the recipe allows."""
    where, limits, listed = f"sources.{source}", clean.bad_files, read_uri(work_uri, "*", "aside.parquet")
    read, malformed = sum(mark.read for mark in marks), sum(mark.steps.get("malformed", 0) for mark in marks)
    unreadable = [row for mark in marks for row in mark.unreadable]
    files = sum(len(part.files) for part in parts)
    _check_entries(parts, marks, where)
    if len(unreadable) > limits.max_files:
        raise StageError(
            f"{len(unreadable)} of {files} files could not be read, clean.bad_files.max_files allows {limits.max_files}: "
            f"{_named(unreadable)}",
            f"fetch them again or take them out of the source; all are listed in {listed}",
            where,
        )
    if malformed > limits.max_share * read:
        raise StageError(
            f"{malformed} of {read} records are malformed, clean.bad_files.max_share allows {limits.max_share:g} of them: "
            f"{_named(row for mark in marks for row in mark.first_malformed)}",
            f"mend the files, or raise clean.bad_files.max_share; all are listed in {listed}",
            where,
        )
    if clean.identifiers is not None:
        _check_identifiers(marks, clean.identifiers.max_quarantined_share, source)


def nothing_left(read: int, aside: dict[str, int], marks: Iterable[Mark], source: str) -> StageError:
    """The error of a source without a document."""
    broken = _named(row for mark in marks for row in (*mark.unreadable, *mark.first_malformed))
    return StageError(
        f"no document of {read} is left after cleaning ({aside}){': ' + broken if broken else ''}",
        "look at the reasons; widen `licences`, lower `clean.min_chars` or check the `format` of the files",
        f"sources.{source}",
    )


def _check_entries(parts: Sequence[Part], marks: Sequence[Mark], where: str) -> None:
    files = [file for part in parts for file in part.files]
    failed = [(entry, row) for mark in marks for entry, row in zip(mark.failed_entries, mark.unreadable, strict=True)]
    for entry in sorted({entry for entry, _ in failed}):
        there, broken = [file for file in files if file.entry == entry], [row for at, row in failed if at == entry]
        if len(there) == len(broken):
            raise StageError(
                f"not one of its {len(there)} files could be read as {there[0].format}: {_named(broken)}",
                "check the `format`; if it is right, fetch the files again",
                f"{where}.files[{entry}]",
            )


def _check_identifiers(marks: Sequence[Mark], max_share: float, source: str) -> None:
    found: Counter[str] = Counter()
    for mark in marks:
        found.update(mark.found)
    quarantined = sum(mark.steps.get("identifiers", 0) for mark in marks)
    check_quarantine(source, found, quarantined, sum(mark.documents for mark in marks) + quarantined, max_share)


def _named(rows: Iterable[Dropped]) -> str:
    """The first rows, each with its place and its reason."""
    return "; ".join(f"{row.id}: {row.reason}" for row, _ in zip(rows, range(NAMED), strict=False))
