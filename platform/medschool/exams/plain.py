"""An exam of one's own: JSON lines, one question a line, the format `plain`.

    {"id": "ward-1", "question": "Which drug is given first?", "options": ["Aspirin", "Heparin", "Insulin"], "answer": "B"}

    key        required   what it is
    id         yes        text, unique in the exam; it is how scores of one item are found again
    question   yes        text; line ends stay
    options    yes        2 to 26 texts, all different; their letters are A, B, C... in this order
    answer     yes        the letter of the right option, never a number: some count from 0 and some from 1
    subject    no         text to choose by (`subjects`); `own` where it is left out
    context    no         text to be read before the question
    rationale  no         why the answer is right; never shown in the exam

Any other key is refused by name, because a misspelt `answr` would else be an exam without answers. The file is UTF-8, plain or
gzipped. In the layout of lm-evaluation-harness it is put as MedQA is, with the context as a first paragraph.
"""

from collections.abc import Iterator
from string import ascii_uppercase
from typing import Any

from medschool.exams.harness import MEDQA, medqa_asked
from medschool.exams.records import json_lines, malformed, one_line, options_problem, paragraphs, subject_name, text_problem
from medschool.rows import Dropped, ExamItem

REQUIRED = ("id", "question", "options", "answer")
OPTIONAL = ("subject", "context", "rationale")
WITHOUT_SUBJECT = "own"


def plain(data: bytes, uri: str, name: str) -> Iterator[ExamItem | Dropped]:
    """One row a line; the id is the record's own. Raises InputError as `records.decoded`."""
    for number, record, line in json_lines(data, uri):
        problem = record if isinstance(record, str) else _problem(record)
        if isinstance(record, str) or problem:
            yield malformed(number, problem, line, name, uri)
            continue
        subject, context = subject_name(record.get("subject") or WITHOUT_SUBJECT), paragraphs(record.get("context") or "")
        read = (paragraphs(record["question"]), tuple(map(one_line, record["options"])), _index(record["answer"]))
        why = one_line(record.get("rationale") or "")
        asked = "".join([f"{record['context']}\n\n"] if context else []) + medqa_asked(record["question"], record["options"])
        yield ExamItem(record["id"].strip(), name, subject, *read, why, uri, context, task=MEDQA, asked=asked)


def _index(answer: str) -> int:
    return ascii_uppercase.index(answer.strip().upper())


def _problem(record: dict[str, Any]) -> str:
    """What is wrong with one question, naming the key; empty when nothing is."""
    if unknown := [key for key in record if key not in (*REQUIRED, *OPTIONAL)]:
        return f"{unknown[0]} is no key of this format; there are {', '.join((*REQUIRED, *OPTIONAL))}"
    if wrong := text_problem(record, ("id", "question", "answer")):
        return wrong
    if wrong := text_problem(record, tuple(key for key in OPTIONAL if record.get(key) is not None)):
        return wrong
    options = record.get("options")
    if not isinstance(options, list) or not 2 <= len(options) <= len(ascii_uppercase):
        return f"options is {options!r:.60}, not a list of 2 to {len(ascii_uppercase)} texts"
    letters = tuple(ascii_uppercase[: len(options)])
    if wrong := text_problem(dict(zip(letters, options, strict=True)), letters) or options_problem(letters, options):
        return f"options: {wrong}"
    if record["answer"].strip().upper() not in letters:
        return f"answer is {record['answer']!r:.60}, not one of {', '.join(letters)}"
    return ""
