"""Questions of MedQA (Jin et al. 2020, jind11/MedQA, licence MIT), JSON lines in each of the three forms that are passed on.

    as released    {"question", "answer": "Drug B", "options": {"A": ..., "B": ...}, "meta_info": "step1", "answer_idx": "B"}
    bigbio/med_qa  the same, with options as [{"key": "A", "value": ...}, ...]
    GBaker's       {"id", "sent1", "sent2", "ending0", ..., "ending3", "label": 1}

Four or five options, as the file has them. Where a record says its answer twice, as letter and in words, the two must agree.
"""

from collections.abc import Iterator
from string import ascii_uppercase
from typing import Any

from medschool.exams.harness import MEDQA, medqa_asked
from medschool.exams.records import (
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

ENDINGS = ("ending0", "ending1", "ending2", "ending3")
WITHOUT_SUBJECT = "usmle"


def medqa(data: bytes, uri: str, name: str) -> Iterator[ExamItem | Dropped]:
    """One row a line; the id is `<subject>:<line>`, the subject its `meta_info` (`step1`, `step2&3`) or `usmle`."""
    for number, record, line in json_lines(data, uri):
        found = record if isinstance(record, str) else _read(record)
        if isinstance(found, str):
            yield malformed(number, found, line, name, uri)
            continue
        question, options, answer = found
        subject = subject_name(str(record.get("meta_info") or WITHOUT_SUBJECT))
        read = (paragraphs(question), tuple(map(one_line, options)), answer, "", uri)
        asked = medqa_asked(str(record.get("sent1", record.get("question"))), options)
        yield ExamItem(f"{subject_key(subject)}:{number}", name, subject, *read, task=MEDQA, asked=asked)


def _read(record: dict[str, Any]) -> tuple[str, tuple[str, ...], int] | str:
    """Question and options as they stand in the record, and the index of the right one; or what is wrong."""
    if "ending0" in record:
        return _endings(record)
    if problem := text_problem(record, ("question", "answer_idx")):
        return problem
    options = _options(record.get("options"))
    if isinstance(options, str):
        return options
    letters, letter = tuple(options), record["answer_idx"].strip()
    if problem := text_problem(options, letters) or options_problem(letters, [options[each] for each in letters]):
        return f"options: {problem}"
    if letter not in options:
        return f"answer_idx is {letter!r:.60}, not one of {', '.join(letters)}"
    said = record.get("answer")
    if isinstance(said, str) and one_line(said) != one_line(options[letter]):
        return f"answer is {said!r:.60}, but option {letter} is {options[letter]!r:.60}"
    return record["question"], tuple(options[each] for each in letters), letters.index(letter)


def _options(found: Any) -> dict[str, Any] | str:
    """Options by letter, in the order of the letters."""
    if isinstance(found, list) and all(isinstance(each, dict) and {"key", "value"} <= each.keys() for each in found):
        found = {each["key"]: each["value"] for each in found}
    if not isinstance(found, dict) or len(found) < 2:
        return "options is neither {letter: text} nor a list of {key, value}, with two at least"
    letters = list(ascii_uppercase[: len(found)])
    if sorted(map(str, found)) != letters:
        return f"options have the letters {', '.join(map(str, found))}, not {', '.join(letters)}"
    return {letter: found[letter] for letter in letters}


def _endings(record: dict[str, Any]) -> tuple[str, tuple[str, ...], int] | str:
    if problem := text_problem(record, ("sent1", *ENDINGS)) or options_problem(ENDINGS, [record[key] for key in ENDINGS]):
        return problem
    label = record.get("label")
    if isinstance(label, bool) or not isinstance(label, int) or label not in range(len(ENDINGS)):
        return f"label is {label!r:.60}, not a number from 0 to {len(ENDINGS) - 1}"
    question = "\n".join(part for key in ("sent1", "sent2") if (part := paragraphs(str(record.get(key) or ""))))
    return question, tuple(record[key] for key in ENDINGS), label
