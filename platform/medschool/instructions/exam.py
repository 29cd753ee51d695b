"""Exam questions become conversations: the question in the layout of exams/layout.py, the letter of the right option as answer.

Each question is put twice, under two different instructions: once with its options in the order of the file, once in another
order with the letter following, so that the answer must be read from the options and not from their places. A question with an
option that speaks of other options by their place (`All of the above`, `Both A and C`) keeps its order and is put once only; the
missing twin is a Dropped of the step `fixed_order`.

Price: 20,000 questions a second and core.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from medschool.exams import formats
from medschool.exams.layout import DIRECT_INSTRUCTIONS, answer_text, user_text
from medschool.rows import Conversation, Dropped, ExamItem, Message
from medschool.seed import seed_of

SAMPLE_CHARS = 200
LICENCE = "mit"

_BY_PLACE = re.compile(
    r"\b(?:of|the|listed) above\b|\b[A-D]\b[.)]*,? (?:and|or|nor|&) \(?[A-D]\b|\b[A-D]\)? only\b",
    re.IGNORECASE,
)


def mmlu(data: bytes, uri: str, name: str, seed: int) -> Iterator[Conversation | Dropped]:
    """Two conversations a question, `<subject>:<line>:direct` and `<subject>:<line>:shuffled`. Drops and raises as the reader."""
    for row in formats.mmlu(data, uri, name):
        if isinstance(row, Dropped):
            yield row
        else:
            yield from _twice(row, seed)


def _twice(item: ExamItem, seed: int) -> Iterator[Conversation | Dropped]:
    first, second = sorted(DIRECT_INSTRUCTIONS, key=lambda instruction: seed_of(seed, item.id, instruction))[:2]
    yield _conversation(item, "direct", first)
    fixed = next((option for option in item.options if _BY_PLACE.search(option)), None)
    if fixed is None:
        yield _conversation(shuffled(item, seed), "shuffled", second)
    else:
        reason = f"the option {fixed[:60]!r} speaks of other options by their place"
        yield Dropped(f"{item.id}:shuffled", item.exam, "fixed_order", reason, item.question[:SAMPLE_CHARS], item.uri)


def shuffled(item: ExamItem, seed: int) -> ExamItem:
    """The same question with its options in another order than the file's, drawn by the seed."""
    places = range(len(item.options))
    order = sorted(places, key=lambda place: seed_of(seed, item.id, "option", place))
    if order == list(places):
        order.reverse()
    return replace(item, options=tuple(item.options[place] for place in order), answer=order.index(item.answer))


def _conversation(item: ExamItem, variant: str, instruction: str) -> Conversation:
    messages = (Message("user", user_text(item, instruction)), Message("assistant", answer_text(item.answer)))
    return Conversation(f"{item.id}:{variant}", item.exam, "exam", messages, LICENCE, item.uri)
