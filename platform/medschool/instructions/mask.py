"""From the text of a conversation to its tokens and which of them are trained, by offsets; and what fits into a row.

Every token says which characters of the text it stands for. Trained are the tokens from the first character of an answer up to
and with the EOS that ends it. The prompt is never encoded alone to count its tokens, as the released code does (PMC-LLaMA,
SFT/train.py): where a token is shared, or the tokenizer looks ahead, that count shifts the mask, silently.

No token straddles the start of an answer, because the text is broken there: `### Response:###Answer` has no token `:#`. Serving
is on that side: there the prompt ends at the border for certain, so the model reads the prompt's own tokens and has to say all
of the answer's. A shared token would teach an answer that no prompt can be followed by, trained or not; and dropping the
conversation would lose most exam questions under some tokenizers. Even without a shared token the prompt may be cut otherwise
once an answer follows, by a regular expression that looks ahead: GPT-2's makes one token of two newlines at the end, and two
before a word.

Words that are names of control tokens are set apart in the same way, and encoded as plain text. A SentencePiece tokenizer puts
a space before what it takes for a beginning, so what stands behind a break is encoded behind a newline, whose tokens are then
taken off: as transformers does for sanitize_control_tokens (encode_marked_chat).
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from medschool.errors import InputError
from medschool.instructions.render import Rendering, Span
from medschool.rows import Message

Turns = Literal["all", "last"]
"""Which of the assistant's turns are trained: the recipe's `chats.trained_turns`."""
_WORD = re.compile(r"(?<=\s)\S")
Encode = Callable[[str, bool], tuple[list[int], list[Span]]]
"""(text, whether names of control tokens are plain text in it) -> token ids and the characters [start, end) of each."""


@dataclass(frozen=True)
class Tokens:
    """An encoded text."""

    ids: list[int]
    spans: list[Span]
    """Characters [start, end) that each token stands for, ascending; together all of the text."""


@dataclass(frozen=True)
class Masked:
    """A conversation as the trainer gets it."""

    ids: list[int]
    trained: list[bool]


def tokens_of(rendering: Rendering, encode: Encode) -> Tokens:
    """The tokens of a rendering, encoded piece by piece: none straddles the start of an answer or the name of a control token."""
    starts = {answer.start for answer in rendering.answers if answer.start is not None}
    edges = sorted({0, len(rendering.text), *starts, *(edge for span in rendering.literal for edge in span)})
    literal, ids, spans = set(rendering.literal), list[int](), list[Span]()
    for start, end in pairwise(edges):
        some, places = _piece(rendering.text[start:end], (start, end) in literal, start > 0, encode)
        ids += some
        spans += [(start + first, start + last) for first, last in _closed(places)]
    return Tokens(ids, spans)


def masked(rendering: Rendering, encode: Encode, eos_id: int, turns: Turns, where: str) -> Masked:
    """Tokens of a whole conversation, and which are trained: of all answers or of the last, each with its EOS.

    Raises InputError at `where` when the template changes what it wrote before, or does not end an answer with the EOS token.
    """
    found = tokens_of(rendering, encode)
    trained = [False] * len(found.ids)
    for answer in rendering.answers if turns == "all" else rendering.answers[-1:]:
        if answer.start is None or answer.end is None:
            remedy = "use a template that only appends" + (", or set chats.trained_turns: last" if turns == "all" else "")
            raise InputError("the template renders the start of a conversation differently once it goes on", remedy, where)
        first = _first_from(found.spans, answer.start)
        last = _eos_between(found, first, answer.end, eos_id)
        if last is None:
            raise InputError(
                "the template does not end an assistant's turn with the EOS token",
                "name that token as `eos_token` in tokenizer_config.json, or set chats.template: pmc_llama",
                where,
            )
        trained[first : last + 1] = [True] * (last + 1 - first)
    return Masked(found.ids, trained)


def _first_from(spans: list[Span], start: int) -> int:
    return next((index for index, span in enumerate(spans) if span[0] >= start), len(spans))


def _eos_between(found: Tokens, first: int, end: int, eos_id: int) -> int | None:
    """Index of the first EOS from token `first` on that ends before character `end`."""
    inside = (index for index in range(first, len(found.ids)) if found.ids[index] == eos_id)
    index = next(inside, None)
    return index if index is not None and found.spans[index][1] <= end else None


def _piece(text: str, as_text: bool, behind: bool, encode: Encode) -> tuple[list[int], list[Span]]:
    """Tokens of a piece; one that stands behind another is encoded behind a newline, which is taken off again."""
    if not behind:
        return encode(text, as_text)
    newline = encode("\n", False)[0]
    ids, spans = encode("\n" + text, as_text)
    if ids[: len(newline)] != newline:
        return encode(text, as_text)
    return ids[len(newline) :], [(max(0, start - 1), end - 1) for start, end in spans[len(newline) :]]


def _closed(spans: list[Span]) -> list[Span]:
    """Spans without gaps: a byte-level tokenizer may leave the space before a word out of its offsets (`trim_offsets`)."""
    closed, reached = [], 0
    for start, end in spans:
        closed.append((min(start, reached), end))
        reached = max(reached, end)
    return closed


# ---- what fits into a row -----------------------------------------------------------------------------------------------------


def shortened(messages: Sequence[Message], fits: Callable[[Sequence[Message]], bool]) -> tuple[Message, ...] | None:
    """The conversation without its oldest turns, as few as possible; of the last question then without its oldest context.

    System messages, the last answer and the instruction of the last question (what stands before its first blank line) stay
    whole. None where that does not fit, or no character of the question would be left. `fits` is asked about log2(turns) +
    log2(words) conversations.
    """
    system = [message for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    begins = [place for place, message in enumerate(turns[:-1]) if message.role == "user"]
    if not begins:
        return None
    last = turns[begins[-1] :]
    head, words = _context(last[0].content)
    return _first_fit(begins, lambda place: [*system, *turns[place:]], fits) or _first_fit(
        words, lambda place: [*system, Message("user", head + last[0].content[place:]), *last[1:]], fits
    )


def _context(question: str) -> tuple[str, list[int]]:
    """A question's instruction with the blank line behind it, and where in the question each later word of its context begins."""
    head, blank, _ = question.partition("\n\n")
    head = head + blank if blank else ""
    return head, [place.start() for place in _WORD.finditer(question, len(head) + 1)]


def _first_fit(
    places: Sequence[int], candidate: Callable[[int], list[Message]], fits: Callable[[Sequence[Message]], bool]
) -> tuple[Message, ...] | None:
    """The first of the candidates, which get shorter and shorter, that fits. The shortest is asked first: often none fits."""
    if not places or not fits(candidate(places[-1])):
        return None
    found = bisect_left(places, True, hi=len(places) - 1, key=lambda place: fits(candidate(place)))
    return tuple(candidate(places[found]))
