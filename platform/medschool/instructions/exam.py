"""Exam questions become conversations: the question in the layout of exams/layout.py, the letter of the right option as answer.

The readers are those of the exams. What a question's file says about why it is so becomes a rationale before the answer.

Each question is put twice, under two different instructions: once with its options in the order of the file, once in another
order with the letter following, so that the answer must be read from the options and not from their places. A question with an
option that speaks of other options by their place (`All of the above`, `Both A and C`) keeps its order and is put once only; the
missing twin is a Dropped of the step `fixed_order`.

Price: 20,000 questions a second and core.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from medschool.exams.formats import ExamReader
from medschool.exams.layout import DIRECT_INSTRUCTIONS, RATIONALE_INSTRUCTIONS, answer_text, user_text
from medschool.rows import Conversation, Dropped, ExamItem, Message
from medschool.seed import seed_of

SAMPLE_CHARS = 200
_BY_PLACE = re.compile(
    r"\b(?:of|the|listed) above\b|\b[A-D]\b[.)]*,? (?:and|or|nor|&) \(?[A-D]\b|\b[A-D]\)? only\b",
    re.IGNORECASE,
)


def direct(data: bytes, uri: str, name: str, seed: int, reader: ExamReader, licence: str) -> Iterator[Conversation | Dropped]:
    """Two conversations a question, `<id of the item>:direct` and `<id of the item>:shuffled`. Drops and raises as the reader."""
    yield from twice(reader(data, uri, name), seed, licence)


def twice(rows: Iterable[ExamItem | Dropped], seed: int, licence: str) -> Iterator[Conversation | Dropped]:
    """The two conversations of every question among `rows`; what is dropped stays dropped."""
    for row in rows:
        if isinstance(row, Dropped):
            yield row
        else:
            yield from _twice(row, seed, licence)


def explained(data: bytes, uri: str, name: str, seed: int, reader: ExamReader, licence: str) -> Iterator[Conversation | Dropped]:
    """One conversation a question that its file explains, `<id of the item>:rationale`; another one is `no_rationale`."""
    for row in reader(data, uri, name):
        if isinstance(row, Dropped):
            yield row
        elif not row.rationale:
            sample = row.question[:SAMPLE_CHARS]
            yield Dropped(f"{row.id}:rationale", name, "no_rationale", "the file does not say why", sample, uri)
        else:
            yield with_rationale(row, row.rationale, seed, licence)


def with_rationale(item: ExamItem, rationale: str, seed: int, licence: str) -> Conversation:
    """The question under an instruction that asks for reasons; the rationale, then the answer."""
    instruction = RATIONALE_INSTRUCTIONS[seed_of(seed, item.id) % len(RATIONALE_INSTRUCTIONS)]
    reply = f"###Rationale: {rationale}\n{answer_text(item.answer)}"
    messages = (Message("user", user_text(item, instruction)), Message("assistant", reply))
    return Conversation(f"{item.id}:rationale", item.exam, "rationale", messages, licence, item.uri)


def _twice(item: ExamItem, seed: int, licence: str) -> Iterator[Conversation | Dropped]:
    first, second = sorted(DIRECT_INSTRUCTIONS, key=lambda instruction: seed_of(seed, item.id, instruction))[:2]
    yield _conversation(item, "direct", first, licence)
    fixed = next((option for option in item.options if _BY_PLACE.search(option)), None)
    if fixed is None:
        yield _conversation(shuffled(item, seed), "shuffled", second, licence)
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


def _conversation(item: ExamItem, variant: str, instruction: str, licence: str) -> Conversation:
    messages = (Message("user", user_text(item, instruction)), Message("assistant", answer_text(item.answer)))
    return Conversation(f"{item.id}:{variant}", item.exam, "exam", messages, licence, item.uri)
