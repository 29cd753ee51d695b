"""Text whose parts are marked: how a reader writes it, and how a step cuts it without losing the marks.

`MarkedText` is written piece by piece, in the order of the document; a span records where each part stands. White space inside a
paragraph becomes single spaces, paragraphs are apart by one blank line, and what turns out empty leaves no trace.

`without` cuts holes into a draft. It only ever deletes: the new text is a subsequence of the old one, so every span that stays is
found again by counting what went before it. A cut leaves seams ("shown  ." or "( , 5%)" or a heading with nothing under it);
each hole is widened until its seam reads well, and nothing is touched that no hole touches.

Price: linear in the text, about 50 MB a second; holes are few.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from typing import TypeAlias

from medschool.rows import Draft, Span

Hole: TypeAlias = tuple[int, int]
"""Start and end of what goes, in characters."""

_PREFIX = re.compile(r"(?:-|#{1,6}) ?")
_HEADING = re.compile(r"(#{1,6}) \S")
_HEADING_LINE = re.compile(r"^(#{1,6}) +(\S.*)$", re.MULTILINE)


class MarkedText:
    """A text under construction. `begin` opens a paragraph, `write` adds to it, `block` and `inline` mark what is written."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._parts: list[str] = []
        self._chars = 0
        self._head, self._gap = "", ""
        self._open = True
        self._body = 0
        """Number of parts up to the text of this paragraph; it is empty while there are no more."""
        self._before = 0
        self._space = False

    def begin(self, prefix: str = "", gap: str = "\n\n") -> None:
        """End the paragraph and start another. prefix: `## ` or `- `, written only where text follows; gap: what is before it."""
        self._settle()
        self._head, self._gap, self._open = prefix, gap, False

    def write(self, text: str | None) -> None:
        """Add to the paragraph, white space collapsed."""
        words = " ".join((text or "").split())
        if not text or not words:
            self._space = self._space or bool(text)
            return
        self._start()
        if len(self._parts) > self._body and (self._space or text[0].isspace()):
            self._emit(" ")
        self._emit(words)
        self._space = text[-1].isspace()

    @contextmanager
    def block(self, kind: str) -> Iterator[None]:
        """Mark the whole paragraphs that are begun inside, with their prefixes."""
        self._settle()
        with self._span(kind):
            yield
            self._settle()

    @contextmanager
    def inline(self, kind: str) -> Iterator[None]:
        """Mark what is written inside, in the paragraph that is open."""
        self._start()
        with self._span(kind):
            yield

    @property
    def last(self) -> str:
        """The last character of the paragraph, white space included; empty where nothing was written."""
        return " " if self._space else self._parts[-1][-1] if len(self._parts) > self._body else ""

    @property
    def chars(self) -> int:
        return self._chars

    def end(self) -> tuple[str, tuple[Span, ...]]:
        """The text, and its spans in the order in which they ended."""
        self._settle()
        return "".join(self._parts), tuple(self.spans)

    @contextmanager
    def _span(self, kind: str) -> Iterator[None]:
        first, start = len(self._parts), self._chars
        yield
        while first < len(self._parts) and self._parts[first].isspace():
            start, first = start + len(self._parts[first]), first + 1
        if start < self._chars:
            self.spans.append(Span(kind, start, self._chars))

    def _start(self) -> None:
        if self._open:
            return
        self._before = len(self._parts)
        for part in (self._gap if self._parts else "", self._head):
            if part:
                self._emit(part)
        self._body, self._open, self._space = len(self._parts), True, False

    def _settle(self) -> None:
        """Take back the prefix of a paragraph without text."""
        if len(self._parts) == self._body and self._before < self._body:
            self._chars -= sum(map(len, self._parts[self._before :]))
            del self._parts[self._before :]
        self._before = self._body = len(self._parts)
        self._open, self._head, self._space = True, "", False

    def _emit(self, part: str) -> None:
        self._parts.append(part)
        self._chars += len(part)


def without(draft: Draft, holes: Iterable[Hole]) -> tuple[Draft, list[str]]:
    """The draft without `holes` and their seams, spans moved, empty spans gone; and the pieces that went, in order."""
    holes = settled(draft.text, holes)
    if not holes:
        return draft, []
    starts = [start for start, _ in holes]
    gone = [0, *accumulate(end - start for start, end in holes)]

    def moved(position: int) -> int:
        """Where a position of the old text is in the new one; one inside a hole is where the hole was."""
        before = bisect_right(starts, position)
        inside = max(holes[before - 1][1] - position, 0) if before else 0
        return position - gone[before] + inside

    spans = (Span(span.kind, moved(span.start), moved(span.end)) for span in draft.spans)
    kept = tuple(span for span in spans if span.start < span.end)
    return replace(draft, text=_rest(draft.text, holes), spans=kept), [draft.text[start:end] for start, end in holes]


def cut(text: str, holes: Iterable[Hole]) -> str:
    """The text without `holes` and their seams."""
    return _rest(text, settled(text, holes))


def _rest(text: str, holes: list[Hole]) -> str:
    ends, starts = [0, *(end for _, end in holes)], [*(start for start, _ in holes), len(text)]
    return "".join(text[end:start] for end, start in zip(ends, starts, strict=True))


def settled(text: str, holes: Iterable[Hole]) -> list[Hole]:
    """The holes clipped to `text`, in order, joined where they meet, each widened until its seam reads well."""
    found = _joined((max(start, 0), min(end, len(text))) for start, end in holes)
    while True:
        wider = _joined(_widened(text, start, end) for start, end in found)
        if wider == found:
            return found
        found = wider


def apart_from(holes: Iterable[Hole], others: Iterable[Hole]) -> Iterator[Hole]:
    """Those of the holes that share no character with any of the others."""
    joined = _joined(others)
    starts = [start for start, _ in joined]
    for hole in holes:
        before = bisect_left(starts, hole[1])
        if not before or joined[before - 1][1] <= hole[0]:
            yield hole


def _joined(holes: Iterable[Hole]) -> list[Hole]:
    joined: list[Hole] = []
    for start, end in sorted(hole for hole in holes if hole[0] < hole[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _widened(text: str, start: int, end: int) -> Hole:
    """One more character, line break, prefix or heading on a side of the hole that the seam is better without."""
    left, right = text[start - 1 : start], text[end : end + 1]
    line_starts, line_ends = left in ("", "\n"), right in ("", "\n")
    if left == " " and (line_ends or right in " .,;:)]"):
        return start - 1, end
    if right == " " and (line_starts or left in "(["):
        return start, end + 1
    if left and left + right in ("()", "[]"):
        return start - 1, end + 1
    if left and right and ((left in ",;" and right in ",;.:)]") or (left in "([" and right in ",;")):
        return (start, end + 1) if left in "([" else (start - 1, end)
    if left == right == "." and text[start - 2 : start - 1] != "." and text[end + 1 : end + 2] != ".":
        return start, end + 1
    return _widened_by_lines(text, start, end) if line_ends else (start, end)


def _widened_by_lines(text: str, start: int, end: int) -> Hole:
    """For a hole up to the end of a line: without the prefix, the heading or the empty line that it would leave."""
    line = text.rfind("\n", 0, start) + 1
    if line < start and _PREFIX.fullmatch(text, line, start):
        return line, end
    if line < start and text[start] != "\n":
        return start, end
    above, below = _line_end(text, start), _line_start(text, end)
    if (heading := _heading_above(text, above, below)) is not None:
        return heading, end
    if line < start:
        return start, end
    if above == 0 or below == len(text):
        return above, below
    return (above, end) if start - above <= below - end else (start, below)


def _heading_above(text: str, above: int, below: int) -> int | None:
    """Start of the heading that ends at `above`, if no text of its section is left before `below`."""
    line = text.rfind("\n", 0, above) + 1
    heading, after = _HEADING.match(text, line, above), _HEADING.match(text, below)
    empty = below == len(text) or (after is not None and heading is not None and len(after[1]) <= len(heading[1]))
    return line if heading and empty else None


def _line_end(text: str, position: int) -> int:
    """End of the last line with something on it before `position`."""
    while position and text[position - 1] == "\n":
        position -= 1
    return position


def _line_start(text: str, position: int) -> int:
    while position < len(text) and text[position] == "\n":
        position += 1
    return position


def sections(text: str) -> Iterator[tuple[str, Hole]]:
    """Every heading line, and where its section stands: from the heading to the next one of its level or above."""
    headings = list(_HEADING_LINE.finditer(text))
    for place, heading in enumerate(headings):
        later = (headings[number] for number in range(place + 1, len(headings)))
        following = (after.start() for after in later if len(after[1]) <= len(heading[1]))
        yield heading[2].strip(), (heading.start(), _line_end(text, next(following, len(text))))
