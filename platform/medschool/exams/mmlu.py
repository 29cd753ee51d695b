"""Questions of MMLU (Hendrycks et al. 2021), licence MIT: JSON lines.

    {"question": ..., "answer_a": ..., "answer_b": ..., "answer_c": ..., "answer_d": ..., "correct_answer": "B", "topic": ...}

A question with two equal options is malformed: whichever letter is right, the other one is right too.

Price: 60,000 questions a second and core.
"""

from collections.abc import Iterator
from string import ascii_uppercase
from typing import Any

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

OPTIONS = ("answer_a", "answer_b", "answer_c", "answer_d")
LETTERS = ascii_uppercase[: len(OPTIONS)]


def mmlu(data: bytes, uri: str, name: str) -> Iterator[ExamItem | Dropped]:
    """One row a line; the id is `<subject>:<line>`, as in `clinical_knowledge:17`, counted from 1."""
    for number, record, line in json_lines(data, uri):
        problem = record if isinstance(record, str) else _problem(record)
        if problem:
            yield malformed(number, problem, line, name, uri)
            continue
        options, subject = tuple(one_line(record[key]) for key in OPTIONS), subject_name(record["topic"])
        answer, question = LETTERS.index(record["correct_answer"].strip()), paragraphs(record["question"])
        yield ExamItem(f"{subject_key(subject)}:{number}", name, subject, question, options, answer, "", uri)


def _problem(record: dict[str, Any]) -> str:
    """What is wrong with one question, naming the key; empty when nothing is."""
    if wrong := text_problem(record, ("question", *OPTIONS, "correct_answer", "topic")):
        return wrong
    if record["correct_answer"].strip() not in tuple(LETTERS):
        return f"correct_answer is {record['correct_answer']!r:.60}, not one of {', '.join(LETTERS)}"
    return options_problem(OPTIONS, [record[key] for key in OPTIONS])
