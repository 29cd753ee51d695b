"""Questions of MedMCQA (Pal et al. 2022, licence Apache-2.0): JSON lines, in files that are named .json.

    {"id", "question", "opa", "opb", "opc", "opd", "cop": 2, "choice_type", "exp": "why" or null, "subject_name", "topic_name"}

`cop`, the right option, counts from 1 in the files of the authors and from 0 in the copy on Hugging Face, and nothing in a file
says which: a file read by the wrong one is wrong in every answer. Here the values decide. A 0 shows the one convention, a 4 the
other. A file with both has been put together from two, and a file with neither is too small to tell; such a file is refused.
Name its convention then: `medmcqa_from_0` or `medmcqa_from_1` as its format. Unlabelled questions (-1 or null) are dropped.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from medschool.errors import InputError
from medschool.exams.harness import MEDMCQA, medmcqa_asked
from medschool.exams.records import (
    SAMPLE_CHARS,
    json_lines,
    malformed,
    one_line,
    options_problem,
    paragraphs,
    subject_key,
    subject_name,
    text_problem,
)
from medschool.rows import Dropped, ExamItem

OPTIONS = ("opa", "opb", "opc", "opd")
UNLABELLED = (-1, None)


def medmcqa(data: bytes, uri: str, name: str, counts_from: int | None = None) -> Iterator[ExamItem | Dropped]:
    """One row a line; the id is `<subject>:<the record's own>`. Raises InputError where its way of counting cannot be told."""
    lines = list(json_lines(data, uri))
    first = _counts_from([record for _, record, _ in lines], uri) if counts_from is None else counts_from
    for number, record, line in lines:
        problem = record if isinstance(record, str) else _problem(record, first)
        if problem:
            yield malformed(number, problem, line, name, uri)
            continue
        question, subject = paragraphs(record["question"]), subject_name(str(record.get("subject_name") or "unknown"))
        key = f"{subject_key(subject)}:{record['id'].strip()}"
        if record.get("cop") in UNLABELLED:
            yield Dropped(
                key, name, "unlabelled", "cop is empty: the right option is not published", question[:SAMPLE_CHARS], uri
            )
            continue
        options = tuple(one_line(record[option]) for option in OPTIONS)
        read = (question, options, record["cop"] - first, one_line(str(record.get("exp") or "")), uri)
        asked = medmcqa_asked(record["question"], [record[option] for option in OPTIONS])
        yield ExamItem(key, name, subject, *read, task=MEDMCQA, asked=asked)


medmcqa_from_0 = partial(medmcqa, counts_from=0)
medmcqa_from_1 = partial(medmcqa, counts_from=1)


def _counts_from(records: list[dict[str, Any] | str], uri: str) -> int:
    """0 or 1: what the first option is called in this file."""
    found = Counter(
        record["cop"]
        for record in records
        if isinstance(record, dict) and isinstance(record.get("cop"), int) and not isinstance(record["cop"], bool)
    )
    zeros, fours = found[0], found[len(OPTIONS)]
    if zeros and fours:
        raise InputError(
            f"cop is 0 in {zeros} questions and {len(OPTIONS)} in {fours}: some count from 0 and some from 1",
            "put each into a file of its own: as released `cop` counts from 1, on Hugging Face from 0",
            uri,
        )
    if zeros or fours or not any(value in found for value in range(1, len(OPTIONS))):
        return 0 if zeros else 1
    raise InputError(
        f"cop is neither 0 nor {len(OPTIONS)} in any of {found.total()} questions: whether it counts from 0 or 1 cannot be told",
        "set the format of this file to medmcqa_from_1 (as released) or medmcqa_from_0 (as on Hugging Face)",
        uri,
    )


def _problem(record: dict[str, Any], first: int) -> str:
    if wrong := text_problem(record, ("id", "question", *OPTIONS)):
        return wrong
    cop = record.get("cop")
    if cop not in UNLABELLED and (isinstance(cop, bool) or not isinstance(cop, int) or cop - first not in range(len(OPTIONS))):
        return f"cop is {cop!r:.60}, not a number from {first} to {first + len(OPTIONS) - 1}"
    return options_problem(OPTIONS, [record[key] for key in OPTIONS])
