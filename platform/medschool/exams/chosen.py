"""Which questions of an exam are kept by their ids, as PubMedQA publishes its official test half.

The file is a JSON object whose keys are the ids (`test_ground_truth.json`), a JSON list of ids, or text with one id a line. An id
is the item's whole id or what stands behind its colon: the PMID 123 keeps `pubmed:123`.

Where the object says an answer for each id, it must be that of the exam: two files that disagree are not of one exam.
"""

import json
from collections.abc import Sequence

from medschool.errors import InputError
from medschool.exams.records import decoded, one_line
from medschool.rows import ExamItem

SHOWN = 3


def chosen(items: Sequence[ExamItem], data: bytes, uri: str) -> list[ExamItem]:
    """The items that the file of ids at `uri` names, in their order. Raises InputError for ids without an item, and as above."""
    wanted = _wanted(data, uri)
    kept = [item for item in items if _key(item, wanted) in wanted]
    if missing := [key for key in wanted if key not in {_key(item, wanted) for item in kept}]:
        named = ", ".join(missing[:SHOWN])
        raise InputError(f"{len(missing):,} of {len(wanted):,} ids have no question, {named} among them", "check both files", uri)
    for item in kept:
        said, right = wanted[_key(item, wanted)], item.options[item.answer]
        if said is not None and one_line(said) != right:
            raise InputError(f"{item.id} is answered {said!r:.60} here and {right!r:.60} in {item.uri}", "check both files", uri)
    return kept


def _key(item: ExamItem, wanted: dict[str, str | None]) -> str:
    return item.id if item.id in wanted else item.id.rpartition(":")[2]


def _wanted(data: bytes, uri: str) -> dict[str, str | None]:
    """Ids, and the answer of each where the file says it."""
    text = decoded(data, uri)
    try:
        found = json.loads(text) if text.lstrip()[:1] in ("{", "[") else text.split()
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error})", "give a JSON object, a JSON list or one id a line", uri) from error
    answers = found if isinstance(found, dict) else dict.fromkeys(map(str, found))
    return {str(key): said if isinstance(said, str) else None for key, said in answers.items()}
