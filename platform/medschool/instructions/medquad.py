"""MedQuAD (Ben Abacha and Demner-Fushman 2019): questions on diseases and drugs with answers from pages of the NIH.

    {"src": "CancerGov", "url": ..., "focus": "Leukemia", "qtype": "treatment", "question": ..., "answer": ...}

Three of its twelve collections (A.D.A.M., and MedlinePlus on drugs and on herbs) are passed on without their answers, which
others own: those are dropped as `no_answer`. White space is that of the pages' HTML, so lines are put in order: one space between
words, no blank lines. The licence is `cc-by` (CC BY 4.0, github.com/abachaa/MedQuAD).
"""

from collections.abc import Mapping
from typing import Any

from medschool.exams.records import one_line, paragraphs
from medschool.instructions.fields import Refused, text_of
from medschool.rows import Message


def medquad(values: Mapping[str, Any]) -> tuple[str, tuple[Message, ...]]:
    """Question and answer of one record. Raises Refused."""
    question = one_line(text_of(values, "question"))
    answer = values.get("answer")
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        raise Refused("no_answer", f"the answer to {question[:80]!r} is not passed on")
    return "conversation", (Message("user", question), Message("assistant", paragraphs(text_of(values, "answer"))))
