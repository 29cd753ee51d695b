"""Questions of MMLU (Hendrycks et al. 2021), licence MIT, in each of the three forms that are passed on.

    JSON lines       {"question": ..., "answer_a": ..., ..., "answer_d": ..., "correct_answer": "B", "topic": "anatomy"}
    as `cais/mmlu`   {"question": ..., "choices": [...], "answer": 1, "subject": "anatomy"}, JSON lines or Parquet
    as released      anatomy_test.csv, without a header: question,A,B,C,D,answer     (the format `mmlu_csv`)

A question with two equal options is malformed: whichever letter is right, the other one is right too.

Price: 60,000 questions a second and core.
"""

import csv
import io
import re
from collections.abc import Iterator
from string import ascii_uppercase
from typing import Any

from medschool.errors import InputError
from medschool.exams.harness import MMLU, mmlu_asked
from medschool.exams.records import (
    decoded,
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

OPTIONS = ("answer_a", "answer_b", "answer_c", "answer_d")
LETTERS = ascii_uppercase[: len(OPTIONS)]
_FILE = re.compile(r"([a-z_]+)_(?:test|dev|val)\.csv(?:\.gz)?$")
_LONGEST_FIELD = 1_000_000


def mmlu(data: bytes, uri: str, name: str) -> Iterator[ExamItem | Dropped]:
    """One row a line; the id is `<subject>:<line>`, as in `clinical_knowledge:17`, counted from 1."""
    for number, record, line in json_lines(data, uri):
        found = _from_choices(record) if isinstance(record, dict) and "choices" in record else record
        yield _row(number, found, line, name, uri)


def mmlu_csv(data: bytes, uri: str, name: str) -> Iterator[ExamItem | Dropped]:
    """As `mmlu`, from a file as released, whose name says its subject: `anatomy_test.csv`. Raises InputError for another name."""
    named = _FILE.search(uri)
    if not named:
        raise InputError("the name does not say the subject", "call it <subject>_test.csv, as it was released", uri)
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        for number, fields in enumerate(csv.reader(io.StringIO(decoded(data, uri), newline=""), strict=True), start=1):
            keys = ("question", *OPTIONS, "correct_answer")
            whole = dict(zip(keys, fields, strict=False), topic=named[1]) if len(fields) == len(keys) else None
            yield _row(number, whole or f"{len(fields)} columns, not {len(keys)}", ",".join(fields), name, uri)
    except csv.Error as error:
        raise InputError(
            f"not a CSV file ({error})", "fetch the file again, and check its `format` in the recipe", uri
        ) from error


def _row(number: int, record: dict[str, Any] | str, line: str, name: str, uri: str) -> ExamItem | Dropped:
    problem = record if isinstance(record, str) else _problem(record)
    if isinstance(record, str) or problem:
        return malformed(number, problem, line, name, uri)
    raw, subject = [record[key] for key in OPTIONS], subject_name(record["topic"])
    answer, question = LETTERS.index(record["correct_answer"].strip()), paragraphs(record["question"])
    read = (question, tuple(map(one_line, raw)), answer, "", uri)
    asked = mmlu_asked(record["question"], raw)
    return ExamItem(f"{subject_key(subject)}:{number}", name, subject, *read, task=MMLU, asked=asked)


def _from_choices(record: dict[str, Any]) -> dict[str, Any] | str:
    """A record of `cais/mmlu` with the keys of the JSON lines."""
    choices, answer = record["choices"], record.get("answer")
    if not isinstance(choices, list) or len(choices) != len(OPTIONS):
        return f"choices is {choices!r:.60}, not a list of {len(OPTIONS)} texts"
    if not isinstance(answer, int) or isinstance(answer, bool) or answer not in range(len(OPTIONS)):
        return f"answer is {answer!r:.60}, not a number from 0 to {len(OPTIONS) - 1}"
    told = {"question": record.get("question"), "correct_answer": LETTERS[answer], "topic": record.get("subject")}
    return told | dict(zip(OPTIONS, choices, strict=True))


def _problem(record: dict[str, Any]) -> str:
    """What is wrong with one question, naming the key; empty when nothing is."""
    if wrong := text_problem(record, ("question", *OPTIONS, "correct_answer", "topic")):
        return wrong
    if record["correct_answer"].strip() not in tuple(LETTERS):
        return f"correct_answer is {record['correct_answer']!r:.60}, not one of {', '.join(LETTERS)}"
    return options_problem(OPTIONS, [record[key] for key in OPTIONS])
