"""The lines of a book, each with what it belongs to: headings, the text below them, running heads, lists of references.

A chapter begins where the PDF's outline says, else at a heading such as "Chapter 3"; its title may stand on the next line. What
a heading such as "Preface" or "References" names lasts until the next heading. A heading stands near the top of its page or below
a blank line; in a table of contents nothing is one, unless prose follows.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from medschool.corpus.pages import CHAPTER, Page, is_entry, page_kinds, running_heads

HEADING_CHARS, TITLE_CHARS, MIN_TITLE_CHARS = 90, 50, 4
LINES_ABOVE = 3

NAMED = {
    "cover": "front_matter",
    "title page": "front_matter",
    "copyright": "front_matter",
    "copyright page": "front_matter",
    "contents": "toc",
    "table of contents": "toc",
    "brief contents": "toc",
    "preface": "front_matter",
    "foreword": "front_matter",
    "dedication": "front_matter",
    "contributors": "front_matter",
    "list of contributors": "front_matter",
    "about the author": "front_matter",
    "about the authors": "front_matter",
    "acknowledgements": "acknowledgements",
    "acknowledgments": "acknowledgements",
    "references": "references",
    "bibliography": "references",
    "further reading": "references",
    "suggested reading": "references",
    "suggested readings": "references",
    "literature cited": "references",
    "works cited": "references",
    "index": "back_matter",
    "subject index": "back_matter",
    "author index": "back_matter",
    "colophon": "back_matter",
    "introduction": "",
    "summary": "",
    "glossary": "",
    "exercises": "",
    "review questions": "",
    "prologue": "",
    "epilogue": "",
}
"""Headings that stand alone on their line, and the kind of what is under them; empty for text."""
_NUMBERED = re.compile(r"\d{1,2}(?:\.\d{1,2}){1,3}\.?\s+[A-Z][^.!?]{2,70}")
SENTENCE_END = re.compile(r"[.!?:;][\"'\u201d\u2019)\]]?$")


@dataclass(frozen=True)
class Line:
    """One line of a book."""

    text: str
    """Without white space at its ends; empty for a blank line."""
    page: int
    kind: str = ""
    """Kind of the span that it belongs to; empty for text."""
    level: int = 0
    """2 for the heading of a chapter, 3 for one inside it, 0 for no heading."""
    begins: bool = False
    """Whether a draft begins here."""


def marked(pages: Sequence[Page], starts: dict[int, str]) -> list[Line]:
    """Every line but the blank ones at the edges of pages, in order. starts: title of each chapter by the page it begins at."""
    return _titled(list(_marked(pages, starts)))


def _marked(pages: Sequence[Page], starts: dict[int, str]) -> Iterator[Line]:
    kind = ""
    for number, (page, running, page_kind) in enumerate(zip(pages, running_heads(pages), page_kinds(pages), strict=True)):
        title, opening, first = starts.get(number, ""), None, -1
        if number in starts:
            opening, first = _opening(page, running, title)
            under = NAMED.get(title.casefold(), "")
        inner = _inner(page, running)
        for index, (line, is_head) in enumerate(zip(page, running, strict=True)):
            if index == first:
                kind = under
                yield Line("", number, page_kind or kind, begins=True)
            if index == opening and not page_kind:
                yield Line(line, number, kind, 2)
            elif is_head:
                yield Line(line, number, "running_head")
            elif line or index in inner:
                level, kind = (0, kind) if page_kind else _heading(line, page, index, kind, bool(starts))
                yield Line(line, number, page_kind or kind, level, level == 2 and not starts)


def _opening(page: Page, running: list[bool], title: str) -> tuple[int | None, int]:
    """Index of the line that is the outline's title, if there is one, and of the first line of the chapter.

    Lines above the title belong to the chapter before where they are more than its number and a motto.
    """
    found = (index for index, line in enumerate(page) if _is_opening(line, title, running[index]))
    opening = next(found, None)
    above = [line for line, is_head in zip(page[: opening or 0], running, strict=False) if line and not is_head]
    return opening, opening if opening is not None and len(above) > LINES_ABOVE else 0


def _is_opening(line: str, title: str, is_head: bool) -> bool:
    """Whether the line is the title of the outline, or where it looks like no running head, a good part of it."""
    words, wanted = line.casefold(), title.casefold()
    return words == wanted or (not is_head and len(words) >= MIN_TITLE_CHARS and words in wanted)


def _inner(page: Page, running: list[bool]) -> range:
    """Indexes of the lines of text: without the running heads, and the blank lines between them and the text."""
    filled = [index for index, line in enumerate(page) if line and not running[index]]
    last = len(page) if filled and not any(running) and not page[-1] else filled[-1] + 1 if filled else 0
    return range(filled[0] if filled else 0, last)


def _heading(line: str, page: Page, index: int, kind: str, outlined: bool) -> tuple[int, str]:
    """Level of the line as a heading (0: none), and the kind of what is under it. outlined: the outline names the chapters."""
    name = line.casefold().strip(" .:")
    if not line or len(line) > HEADING_CHARS or (kind == "toc" and (is_entry(line) or not _opens_text(page, index))):
        return 0, kind
    if CHAPTER.fullmatch(line) and not line.endswith((".", ",", ";")) and _stands_alone(page, index):
        return 2, ""
    if name in NAMED and _stands_alone(page, index):
        found = NAMED[name]
        return (3 if found in ("", "references") or outlined else 2), found
    return (3, "") if _NUMBERED.fullmatch(line) and kind != "toc" else (0, kind)


def _stands_alone(page: Page, index: int) -> bool:
    """Whether the line is near the top of its page, or has a blank line above."""
    return sum(map(bool, page[:index])) < 3 or not page[index - 1]


def _opens_text(page: Page, index: int) -> bool:
    """Whether prose follows before another heading, as it does not in a table of contents."""
    for line in [line for line in page[index + 1 :] if line][:4]:
        if CHAPTER.match(line) or is_entry(line):
            return False
        if len(line) >= 40 or SENTENCE_END.search(line):
            return True
    return False


def _titled(lines: list[Line]) -> list[Line]:
    """The lines with the title of a chapter beside its number, where it stands on the line below: `Chapter 1 The heart`."""
    titles: set[int] = set()
    for index, line in enumerate(lines):
        bare = line.level == 2 and (found := CHAPTER.fullmatch(line.text)) and not found[1]
        below = next((place for place in range(index + 1, len(lines)) if lines[place].text), None) if bare else None
        if below is not None and _is_title(lines[below], line):
            lines[index] = replace(line, text=f"{line.text} {lines[below].text}")
            titles.add(below)
    return [line for index, line in enumerate(lines) if index not in titles]


def _is_title(line: Line, chapter: Line) -> bool:
    short = len(line.text) <= TITLE_CHARS and not SENTENCE_END.search(line.text)
    return short and line.page == chapter.page and not line.kind
