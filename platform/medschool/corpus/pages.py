"""What the pages of a book are made of: which lines are running heads and page numbers, which pages hold no text to read.

A page is a list of lines. A running head or foot is one of the outer EDGE_LINES lines that stands on at least REPEATS pages, its
page number aside, or that bears the number of its page, counted as on at least REPEATS others; a number alone at the edge is a
page number. On the page where a chapter opens, its head is the heading.
The kinds of pages are those of the corpus steps: `toc` where most lines end in leaders or page numbers, `front_matter` up to the
copyright page, `back_matter` for the index and the colophon. What is in doubt is text.

Price: 30,000 pages a second.
"""

import re
from collections import Counter
from collections.abc import Sequence

Page = list[str]

EDGE_LINES = 2
REPEATS = 3
HEAD_CHARS = 100
FIRST_PAGES, LAST_PAGES = 16, 4
"""Where a copyright page and where a colophon may stand."""
MIN_ENTRIES = 5
"""Lines that make a table of contents or an index."""

_NUMBER = r"(?:\d{1,4}|[ivxlc]{1,7}|[IVXLC]{2,7})"
_PAGE_NUMBER = re.compile(rf"[\W_]*(?:[Pp](?:age|\.))?\s*{_NUMBER}(?:\s*(?:of|/)\s*\d+)?[\W_]*")
_NUMBER_FIRST, _NUMBER_LAST = re.compile(r"(\d{1,4})\s+\D"), re.compile(r"[^\d\s]\s+(\d{1,4})$")
_AT_START, _AT_END = re.compile(rf"^{_NUMBER}\b[\W_]+"), re.compile(rf"[\W_]+{_NUMBER}$")
CHAPTER = re.compile(
    r"(?:chapter|part|unit|lecture|appendix)\s+(?:\d+|[ivxlc]+|[a-z]|one|two|three|four|five|six|seven|eight|nine|ten)\b[\W_]*(.*)",
    re.IGNORECASE,
)
_LEADERS = re.compile(r"\S.*(?:\.{3,}|(?:\s\.){3,}|\u2026)\s*(?:\d{1,4}|[ivxlc]+)$")
_ENTRY = re.compile(r"(?=.*[A-Za-z]{2}).*\S\s+(?:\d{1,4}|[ivxlc]+)$")
_CONTENTS = re.compile(r"(?:table of |brief |detailed )?contents(?: in brief)?|inhalt", re.IGNORECASE)
_INDEX_HEAD = re.compile(r"(?:(?:subject|author|general) )?index", re.IGNORECASE)
_INDEX_ENTRY = re.compile(r"[A-Za-z(].{0,70}?[ ,]\d{1,4}[ft]?(?:[-\u2013]\d{1,4})?(?:, ?\d{1,4}[ft]?(?:[-\u2013]\d{1,4})?)*")
_CROSS_ENTRY = re.compile(r".{0,60}\bsee (?:also )?\w.{0,60}", re.IGNORECASE)
_COPYRIGHT = re.compile(
    r"\bISBN\b|all rights reserved|librar(?:y|ies) .{0,30}catalog|british library|cataloging-in-publication", re.IGNORECASE
)
_COPYRIGHT_YEAR = re.compile(r"(?:\u00a9|\(c\)|copyright)[^\d\n]{0,40}((?:1[5-9]|20)\d\d)\b", re.IGNORECASE)


def running_heads(pages: Sequence[Page]) -> list[list[bool]]:
    """For each line of each page, whether it is a running head, a running foot or a page number."""
    edges = [{index: _key(page[index]) for index in _edges(page)} for page in pages]
    counts = Counter(key for edge in edges for key in set(edge.values()) if key)
    shift = _first_number(pages, edges)
    opened: set[str] = set()
    flags = []
    for number, (page, edge) in enumerate(zip(pages, edges, strict=True)):
        flag = [False] * len(page)
        for index, key in edge.items():
            line = page[index]
            repeated = counts[key] >= REPEATS or (shift is not None and number + shift in _numbers(line))
            opens = CHAPTER.match(line) is not None and key not in opened
            short = bool(key) and len(line) <= HEAD_CHARS
            flag[index] = bool(_PAGE_NUMBER.fullmatch(line)) or (short and repeated and not opens)
        opened.update(edge.values())
        flags.append(flag)
    return flags


def _first_number(pages: Sequence[Page], edges: list[dict[int, str]]) -> int | None:
    """What the first page would bear as its number, where REPEATS pages agree."""
    votes: Counter[int] = Counter()
    for number, (page, edge) in enumerate(zip(pages, edges, strict=True)):
        votes.update({found - number for index in edge for found in _numbers(page[index])})
    shift, agreeing = max(votes.items(), key=lambda vote: (vote[1], vote[0]), default=(None, 0))
    return shift if agreeing >= REPEATS else None


def _numbers(line: str) -> list[int]:
    """What may be the page number of a running head: numbers at its ends, apart from its words."""
    found = _NUMBER_FIRST.match(line), None if CHAPTER.fullmatch(line) else _NUMBER_LAST.search(line)
    return [int(number[1]) for number in found if number]


def _edges(page: Page) -> list[int]:
    filled = [index for index, line in enumerate(page) if line]
    return sorted({*filled[:EDGE_LINES], *filled[-EDGE_LINES:]})


def _key(line: str) -> str:
    """The line without the page number at one of its ends; but the number of "Chapter 3" is its name."""
    for pattern in (_AT_START, _AT_END):
        rest = pattern.sub("", line)
        if rest != line and " " not in rest and CHAPTER.match(line):
            break
        line = rest
    return " ".join(line.casefold().split())


def page_kinds(pages: Sequence[Page]) -> list[str]:
    """The kind of each page: `toc`, `front_matter`, `back_matter`, or empty for a page of text."""
    kinds: list[str] = []
    for number, page in enumerate(pages):
        before = kinds[-1] if kinds else ""
        kinds.append(_kind([line for line in page if line], before, number, len(pages)))
    copyright_page = next((number for number, page in enumerate(pages[:FIRST_PAGES]) if _is_copyright(page)), None)
    if copyright_page is not None and not any(CHAPTER.match(line) for page in pages[:copyright_page] for line in page[:3]):
        kinds[: copyright_page + 1] = [kind or "front_matter" for kind in kinds[: copyright_page + 1]]
    return kinds


def copyright_year(pages: Sequence[Page]) -> int | None:
    """The first year that the copyright page names."""
    for page in pages[:FIRST_PAGES]:
        if _is_copyright(page) and (found := _COPYRIGHT_YEAR.search("\n".join(page))):
            return int(found[1])
    return None


def is_entry(line: str) -> bool:
    """Whether the line could be one of a table of contents: it ends with a page number."""
    return _ENTRY.fullmatch(line) is not None


def _kind(lines: Page, before: str, number: int, pages: int) -> str:
    def share(found: Sequence[bool]) -> float:
        return sum(found) / len(lines) if sum(found) >= MIN_ENTRIES else 0.0

    headed = any(_CONTENTS.fullmatch(line) for line in lines[:3]) or before == "toc"
    if share([bool(_LEADERS.fullmatch(line)) for line in lines]) >= 0.5:
        return "toc"
    if headed and share([is_entry(line) for line in lines]) >= 0.5:
        return "toc"
    indexed = any(_INDEX_HEAD.fullmatch(line) for line in lines[:3]) or before == "back_matter"
    entries = [bool(_INDEX_ENTRY.fullmatch(line) or _CROSS_ENTRY.fullmatch(line)) for line in lines]
    if indexed and share(entries) >= 0.5:
        return "back_matter"
    return "back_matter" if number >= max(pages - LAST_PAGES, FIRST_PAGES) and _is_copyright(lines) else ""


def _is_copyright(page: Page) -> bool:
    return sum(len(line) > 0 for line in page) < 60 and sum(bool(_COPYRIGHT.search(line)) for line in page) >= 1
