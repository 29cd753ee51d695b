"""Which of the items that were read make up the exam: the wanted subjects, each question once, in an order drawn by the seed.

The rank of an item is a hash of the seed and its id, and a sample of n items is the first n. So a larger sample contains the
smaller one, and an item that is added or taken away changes no other item's rank. Overlap is checked against the whole exam, not
against a sample.

Price: a second for 100,000 items.
"""

from collections.abc import Sequence

from medschool.errors import InputError
from medschool.rows import Dropped, ExamItem
from medschool.seed import seed_of

SAMPLE_CHARS = 200


def select(items: Sequence[ExamItem], subjects: tuple[str, ...] | None, seed: int) -> tuple[list[ExamItem], list[Dropped]]:
    """The exam in the order of rank, and the repeats that were left out (step `duplicate`).

    Items of other subjects are no part of the exam and are not counted as dropped.
    Raises InputError for a subject that no item has, and when two questions have one id.
    """
    kept, dropped = _without_repeats(_of_subjects(items, subjects))
    kept.sort(key=lambda item: (seed_of(seed, "exam", item.id), item.id))
    return kept, dropped


def _of_subjects(items: Sequence[ExamItem], subjects: tuple[str, ...] | None) -> list[ExamItem]:
    if subjects is None:
        return list(items)
    known = {item.subject for item in items}
    if unknown := [subject for subject in subjects if subject not in known]:
        there_are = ", ".join(sorted(known)) or "none"
        raise InputError(f"no item has the subject {', '.join(map(repr, unknown))}", f"there are: {there_are}", "subjects")
    return [item for item in items if item.subject in subjects]


def _without_repeats(items: Sequence[ExamItem]) -> tuple[list[ExamItem], list[Dropped]]:
    first: dict[tuple[str, frozenset[str]], ExamItem] = {}
    of_id: dict[str, ExamItem] = {}
    dropped = []
    for item in items:
        original = first.setdefault(content(item), item)
        if original is not item:
            dropped.append(_repeat(item, original))
        elif other := of_id.get(item.id):
            problem = f"two questions have the id {item.id!r}: the other one is in {other.uri}"
            raise InputError(problem, "put the files of this exam into one file", item.uri)
        else:
            of_id[item.id] = item
    return list(first.values()), dropped


def content(item: ExamItem) -> tuple[str, frozenset[str]]:
    """What makes two items the same question: the words asked, and the options in any order."""
    return _normalised(item.question), frozenset(map(_normalised, item.options))


def _normalised(text: str) -> str:
    """Signs stay, because `> 5` and `< 5` are two options; the mark at the end goes."""
    return " ".join(text.casefold().split()).rstrip(" .:?")


def _repeat(item: ExamItem, original: ExamItem) -> Dropped:
    same = _normalised(item.options[item.answer]) == _normalised(original.options[original.answer])
    reason = f"repeats {original.id}" + ("" if same else ", where another answer is right")
    return Dropped(item.id, item.exam, "duplicate", reason, item.question[:SAMPLE_CHARS], item.uri)
