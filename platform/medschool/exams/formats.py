"""The exam formats that a recipe can name, and the reader of each.

A reader takes the whole file, already unpacked (the caller removes gzip), and yields one row for each line in it: an ExamItem, or
a Dropped with the step `malformed` and the line and key that spoil it. A file that is not text raises InputError.

    mmlu    JSON lines with `question`, `answer_a` to `answer_d`, `correct_answer` (A to D) and `topic`: the test questions of
            MMLU (Hendrycks et al. 2021), licence MIT.

A question with two equal options is malformed: whichever letter is right, the other one is right too.

Price: 60,000 questions a second and core.
"""

import json
import re
from collections.abc import Callable, Iterator
from string import ascii_uppercase
from typing import Any, TypeAlias

from medschool.errors import InputError
from medschool.rows import Dropped, ExamItem

SAMPLE_CHARS = 200

ExamReader: TypeAlias = Callable[[bytes, str, str], Iterator[ExamItem | Dropped]]
"""(data, uri, name of the exam) -> rows in the order of the file."""

_MMLU_OPTIONS = ("answer_a", "answer_b", "answer_c", "answer_d")
_MMLU_KEYS = ("question", *_MMLU_OPTIONS, "correct_answer", "topic")
_MMLU_LETTERS = ascii_uppercase[: len(_MMLU_OPTIONS)]
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def mmlu(data: bytes, uri: str, name: str) -> Iterator[ExamItem | Dropped]:
    """One row a line; the id is `<subject>:<line>`, as in `clinical_knowledge:17`, counted from 1.

    Raises InputError, naming the line, when the file is not UTF-8, and when it is empty.
    """
    lines = decoded(data, uri).split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _mmlu_row(line, number, uri, name)


def _mmlu_row(line: str, number: int, uri: str, name: str) -> ExamItem | Dropped:
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        found, problem = None, f"not JSON ({error})"
    else:
        problem = _mmlu_problem(found) if isinstance(found, dict) else "not a JSON object"
    if problem:
        return Dropped(f"{uri}:{number}", name, "malformed", f"line {number}: {problem}", line[:SAMPLE_CHARS], uri)
    question = "\n".join(words for part in found["question"].splitlines() if (words := one_line(part)))
    options = tuple(one_line(found[key]) for key in _MMLU_OPTIONS)
    answer = _MMLU_LETTERS.index(found["correct_answer"].strip())
    subject = subject_name(found["topic"])
    return ExamItem(f"{subject_key(subject)}:{number}", name, subject, question, options, answer, "", uri)


def _mmlu_problem(record: dict[str, Any]) -> str:
    """What is wrong with one question, naming the key; empty when nothing is."""
    for key in _MMLU_KEYS:
        value = record.get(key)
        if key not in record:
            return f"{key} is missing"
        if not isinstance(value, str):
            return f"{key} is {value!r:.60}, not text"
        if not value.strip():
            return f"{key} is empty"
        if _HALF_CHARACTER.search(value):
            return f"{key} holds half a character"
    if record["correct_answer"].strip() not in tuple(_MMLU_LETTERS):
        return f"correct_answer is {record['correct_answer']!r:.60}, not one of {', '.join(_MMLU_LETTERS)}"
    pair = equal_options([record[key] for key in _MMLU_OPTIONS])
    return (
        f"{_MMLU_OPTIONS[pair[0]]} and {_MMLU_OPTIONS[pair[1]]} are both {record[_MMLU_OPTIONS[pair[0]]]!r:.60}" if pair else ""
    )


# ---- shared by all formats of questions ---------------------------------------------------------------------------------------


def decoded(data: bytes, uri: str) -> str:
    """Text of a UTF-8 file. Raises InputError, naming the line, when it is none, and when the file is empty."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            "not UTF-8 text", "fetch the file again, and check its `format` in the recipe", f"{uri}:{line}"
        ) from error
    if not text.strip():
        raise InputError("the file is empty", "fetch the file again", uri)
    return text


def one_line(text: str) -> str:
    return " ".join(text.split())


def subject_name(text: str) -> str:
    """A subject as the recipe names it, `clinical knowledge`: words with one space between them, no `_` and no `:`."""
    return one_line(re.sub(r"[_:]", " ", text))


def subject_key(subject: str) -> str:
    """A subject as ids begin with it, `clinical_knowledge`; `subject_name` reads it back."""
    return subject.replace(" ", "_")


def equal_options(options: list[str]) -> tuple[int, int] | None:
    """Places of the first two options that are the same but for white space. Case counts: AA and Aa are two genotypes."""
    seen: dict[str, int] = {}
    for index, option in enumerate(map(one_line, options)):
        if option in seen:
            return seen[option], index
        seen[option] = index
    return None


EXAM_FORMATS: dict[str, ExamReader] = {"mmlu": mmlu}
