"""A conversation as text, and where in it the answers and the words that only look like control tokens stand.

What a message says is text: `<|im_end|>` in it stays those characters, otherwise a message could end its own turn and speak for
the system. While the template runs, such a word stands between two marks, so its place is known whatever the template does
around it; the marks are taken out of the text before it is encoded.

An answer starts where the conversation before it ends once it is opened for the assistant, and is over where the conversation
up to and with it ends. Both are rendered too, as text, and must be the beginning of the whole: a template that only appends.
Nothing is tokenized here, so no token can be at odds with it.

    whole            <user>How much?<end><assistant>Two.<end><user>Why?<end>...
    opened before    <user>How much?<end><assistant>|                               the answer starts here
    up to and with   <user>How much?<end><assistant>Two.<end>|                      and is over here

Price: one rendering, two more for each earlier answer and one for the last, about 40 microseconds each.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from medschool.rows import Message

OPEN, CLOSE = "\U000f0000", "\U000f0001"
"""The marks: characters of private use, those of transformers' sanitize_control_tokens. As there, messages lose them."""
_MARKED = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}|[{OPEN}{CLOSE}]")

Write = Callable[[Sequence[Message], bool], str]
"""(messages, opened for the assistant) -> text by the template."""
Span = tuple[int, int]
"""[start, end) in characters."""


@dataclass(frozen=True)
class Answer:
    """One of the assistant's turns in the text."""

    start: int | None
    """Where its first character stands; None where the template changes what is before it once it is there."""
    end: int | None
    """Where the conversation up to and with it is over; None where the template changes that once it goes on."""


@dataclass(frozen=True)
class Rendering:
    """A conversation as text."""

    text: str
    literal: tuple[Span, ...]
    """Words of messages that are names of control tokens, and stay words."""
    answers: tuple[Answer, ...]


def control_pattern(names: Iterable[str]) -> re.Pattern[str]:
    """What finds any of the control tokens `names`, the longest first; nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def render(messages: Sequence[Message], opened: bool, write: Write, control: re.Pattern[str]) -> Rendering:
    """The conversation by the template `write`. Raises what `write` raises."""
    marked = [Message(message.role, _marked(message.content, control)) for message in messages]
    whole = write(marked, opened)
    places = [place for place, message in enumerate(messages) if message.role == "assistant"]
    answers = [
        Answer(_length(whole, marked[:place], True, write), _length(whole, marked[: place + 1], False, write)) for place in places
    ]
    text, literal = _without_marks(whole)
    return Rendering(text, literal, tuple(answers))


def plain(content: str) -> str:
    """A message's content as the model reads it: without the two characters that are marks here."""
    return content.replace(OPEN, "").replace(CLOSE, "")


def _marked(content: str, control: re.Pattern[str]) -> str:
    return control.sub(f"{OPEN}\\g<0>{CLOSE}", plain(content))


def _length(whole: str, messages: Sequence[Message], opened: bool, write: Write) -> int | None:
    """Characters of the conversation of `messages` without marks; None unless the whole begins with it."""
    part = write(messages, opened)
    return len(plain(part)) if whole.startswith(part) else None


def _without_marks(marked: str) -> tuple[str, tuple[Span, ...]]:
    """The text, and where the marked words stand in it. A template may take a mark from its word; that one marks nothing."""
    if OPEN not in marked and CLOSE not in marked:
        return marked, ()
    parts: list[str] = []
    literal, size, last = [], 0, 0
    for found in _MARKED.finditer(marked):
        before, word = marked[last : found.start()], found[1] or ""
        start = size + len(before)
        size, last = start + len(word), found.end()
        parts += [before, word]
        if word:
            literal.append((start, size))
    return "".join([*parts, marked[last:]]), tuple(literal)
