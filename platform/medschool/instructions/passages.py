"""A document of the corpus as passages: whole sentences in a row, as many as a question can carry with it.

    text --without its title and headings--> paragraphs --sentences--> passages of at most so many words

A sentence ends at a full stop, a question mark or an exclamation mark, or the bracket or quotation mark after it, before white
space and a capital letter, a digit, a bracket or a quotation mark; but not behind an initial (`E. Coli`) or a usual abbreviation
(`et al. 2019`). A passage holds whole sentences only; one
sentence longer than a passage is left out, because in a corpus such a thing is a list or a table.

It knows no language but that rule: sentences of a script without capital letters are not told apart.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from medschool.rows import Document

_BREAK = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]\u201d\u2019]))\s+(?=[A-Z0-9(\[\"'`\u201c\u2018])")
_ABBREVIATED = re.compile(r"(?:^|[\s(])(?:[A-Z]|al|approx|ca|cf|Dr|e\.g|Fig|i\.e|Mr|Mrs|No|Prof|resp|spp?|St|vs)\.$")
_HEADING = re.compile(r"#{1,6} .*")
_LABEL = re.compile(r"[A-Z][A-Z/&, -]{2,60}: ")
"""The label of a part of an abstract, such as `RESULTS: `."""


@dataclass(frozen=True)
class Passage:
    """Sentences in a row, paragraph by paragraph."""

    paragraphs: tuple[tuple[str, ...], ...]

    @property
    def text(self) -> str:
        return "\n".join(" ".join(sentences) for sentences in self.paragraphs)

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(sentence for sentences in self.paragraphs for sentence in sentences)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Each sentence with the one before it in its paragraph."""
        return tuple(pair for some in self.paragraphs for pair in pairwise(some))


def passages(document: Document, words: int) -> list[Passage]:
    """The passages of a document, of at most `words` words each, in order."""
    found: list[Passage] = []
    paragraphs: list[tuple[str, ...]] = []
    room = words
    for sentences in _paragraphs(document):
        kept: list[str] = []
        for sentence in sentences:
            size = len(sentence.split())
            if size > room and (paragraphs or kept):
                found.append(Passage((*paragraphs, *([tuple(kept)] if kept else []))))
                paragraphs, kept, room = [], [], words
            if size <= room:
                kept.append(sentence)
                room -= size
        if kept:
            paragraphs.append(tuple(kept))
    return [*found, Passage(tuple(paragraphs))] if paragraphs else found


def sentences_of(paragraph: str) -> list[str]:
    """The sentences of a paragraph, in order; joined with spaces they are the paragraph."""
    found: list[str] = []
    for piece in _BREAK.split(" ".join(paragraph.split())):
        if found and _ABBREVIATED.search(found[-1]):
            found[-1] += f" {piece}"
        elif piece:
            found.append(piece)
    return found


def unlabelled(sentence: str) -> str:
    """A sentence without the label of its part of the abstract."""
    return _LABEL.sub("", sentence, count=1) if _LABEL.match(sentence) else sentence


def _paragraphs(document: Document) -> Iterator[list[str]]:
    for part in document.text.removeprefix(document.title).split("\n\n"):
        lines = [line for line in part.split("\n") if not _HEADING.fullmatch(line)]
        if sentences := sentences_of(" ".join(lines)):
            yield sentences
