"""Textbooks as PDF or plain text: one draft a chapter, in the order of the book, with what is not its text marked.

    pages ──pages: running heads, kinds of pages──> booklines: headings, kinds of lines──> chapters ──paragraphs──> drafts

A book in which less than two chapters are found is cut every DRAFT_PAGES pages. Tables of contents, indexes, copyright pages,
prefaces and reference lists are marked, not dropped: the corpus steps decide.

A line of a page is no paragraph: lines are joined until one is short and ends a sentence, or a blank line follows, across pages
and their running heads. A word that was hyphenated at a line's end is joined as the book writes it elsewhere: "hyper-" "tension"
becomes `hypertension`; `beta-blocker` keeps its hyphen where the book has that word within a line.

Memory: one book, a few MB of text; a PDF is copied to the disk. Price: 500 pages a second and core, most of it PDFium.
It does not know columns, tables and figures: their words stand where the file has them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from statistics import quantiles
from typing import BinaryIO

import pypdfium2

from medschool.corpus.booklines import SENTENCE_END, Line, marked
from medschool.corpus.general import decoded
from medschool.corpus.marked import MarkedText
from medschool.corpus.pages import Page, copyright_year
from medschool.corpus.spool import on_disk, whole
from medschool.errors import InputError
from medschool.rows import Draft, Dropped, Span

DRAFT_PAGES = 20
PAGE_CHARS = 3000
"""Page of a text that has no form feeds; it ends at a blank line."""
MIN_CHAPTERS = 2
SHORT_SHARE = 0.8
"""A line shorter than this share of a full one, with the end of a sentence, ends its paragraph."""
BLANK_SHARE = 0.03
"""A book with more blank lines than this has one after each paragraph; chapters and headings alone make fewer."""
PDF_END, PDF_TAIL_BYTES = b"%%EOF", 4096
SOFT_HYPHEN = "\ufffe"
"""What PDFium writes for a hyphen at the end of a line, with the next line directly behind it."""
_CHAPTER_MARK = re.compile(r"chapter\b|\d{1,3}\.?\s", re.IGNORECASE)
_ITEM = re.compile(r"(?:[-*\u2022\u25cf]|\(?\d{1,2}[.)]|\(?[a-z][.)])\s+\S")
_BROKEN = re.compile(r"(\w[\w-]*)(?:-|\u2010|\u00ad)$")


def pdf_book(stream: BinaryIO, uri: str, source: str) -> Iterator[Draft | Dropped]:
    """One row a chapter. Dropped: a book without text (`no_text`: its pages are pictures).

    Raises InputError when the file is no whole PDF, or is locked with a password.
    """
    with on_disk(stream, ".pdf") as path:
        _check_whole(path, uri)
        try:
            title, pages, starts = _read_pdf(path)
        except pypdfium2.PdfiumError as error:
            raise InputError(f"cannot be read as PDF ({error})", "fetch the file again, without a password", uri) from error
    yield from _drafts(pages, starts, title, uri, source)


def text_book(stream: BinaryIO, uri: str, source: str) -> Iterator[Draft | Dropped]:
    """One row a chapter; form feeds divide pages. Raises InputError for an empty or a binary file."""
    text = decoded(whole(stream, uri), uri)
    pages = [_lines(page) for page in (text.split("\f") if "\f" in text else _cut(text))]
    yield from _drafts(pages, {}, "", uri, source)


# ---- pages --------------------------------------------------------------------------------------------------------------------


def _check_whole(path: Path, uri: str) -> None:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - PDF_TAIL_BYTES, 0))
        if PDF_END not in file.read():
            raise InputError("not a whole PDF: it does not end with %%EOF", "fetch the file again", uri)


def _read_pdf(path: Path) -> tuple[str, list[Page], dict[int, str]]:
    """Title, lines of each page, and the page at which each chapter of the outline begins."""
    book = pypdfium2.PdfDocument(path)
    try:
        pages = []
        for number in range(len(book)):
            page = book[number]
            text = page.get_textpage()
            pages.append(_lines(text.get_text_range().replace(SOFT_HYPHEN, "-\n")))
            text.close()
            page.close()
        starts: dict[int, str] = {}
        for mark in book.get_toc(max_depth=2):
            target, name = mark.get_dest(), " ".join(mark.get_title().split())
            first = target.get_index() if target is not None else None
            if first is not None and (mark.level == 0 or _CHAPTER_MARK.match(name)):
                starts.setdefault(first, name)
        return book.get_metadata_value("Title").strip(), pages, starts
    finally:
        book.close()


def _lines(page: str) -> Page:
    return [" ".join(line.split()) for line in page.replace("\r\n", "\n").split("\n")]


def _cut(text: str) -> Iterator[str]:
    """Pages of about PAGE_CHARS characters, each of whole paragraphs."""
    held: list[str] = []
    size = 0
    for paragraph in re.split(r"\n[ \t]*\n", text):
        held.append(paragraph)
        size += len(paragraph)
        if size >= PAGE_CHARS:
            yield "\n\n".join([*held, ""])
            held, size = [], 0
    if held:
        yield "\n\n".join(held)


# ---- drafts -------------------------------------------------------------------------------------------------------------------


def _drafts(pages: list[Page], starts: dict[int, str], title: str, uri: str, source: str) -> Iterator[Draft | Dropped]:
    path = PurePosixPath(uri).with_suffix("")
    if not any(chain.from_iterable(pages)):
        reason = f"none of its {len(pages)} pages has text; scanned pages have to be recognised first"
        yield Dropped(str(path), source, "no_text", reason, "", uri)
        return
    lines = _unbroken(marked(pages, starts))
    year, book, layout = copyright_year(pages), title or path.name, _layout(lines)
    chapters = [chapter for chapter in _chapters(lines) if any(line.text for line in chapter)]
    for serial, chapter in enumerate(chapters):
        text, spans = _render(chapter, layout)
        heading = starts.get(chapter[0].page, "") if chapter[0].begins else ""
        heading = heading or next((line.text for line in chapter if line.level == 2), "")
        heading = heading or f"{book}, pages {chapter[0].page + 1}-{chapter[-1].page + 1}"
        yield Draft(f"{path}:{serial:05}", source, text, heading, "unstated", year, "book-chapter", uri, spans)


def _chapters(lines: list[Line]) -> Iterator[list[Line]]:
    """Lines of each draft: from one chapter to the next, or of DRAFT_PAGES pages where the book has no chapters."""
    chaptered = sum(line.begins and not line.kind for line in lines) >= MIN_CHAPTERS
    held: list[Line] = []
    for line in lines:
        if held and (line.begins if chaptered else line.page - held[0].page >= DRAFT_PAGES):
            yield held
            held = []
        held.append(line)
    if held:
        yield held


def _unbroken(lines: list[Line]) -> list[Line]:
    """The lines with every hyphenated word whole, on the line where it began."""
    known = set(re.findall(r"\w+(?:-\w+)*", "\n".join(line.text for line in lines).casefold()))
    used_up: set[int] = set()
    for index, line in enumerate(lines):
        broken, after = _BROKEN.search(line.text), _next_text(lines, index)
        if not broken or after is None or line.kind != lines[after].kind or not lines[after].text[:1].islower():
            continue
        word, _, rest = lines[after].text.partition(" ")
        lines[index] = replace(line, text=line.text[: broken.start()] + _joined(broken[1], word, known))
        lines[after] = replace(lines[after], text=rest)
        if not rest:
            used_up.add(after)
    return [line for index, line in enumerate(lines) if index not in used_up]


def _next_text(lines: list[Line], index: int) -> int | None:
    """Index of the first line below that is no running head."""
    return next((place for place in range(index + 1, len(lines)) if lines[place].kind != "running_head"), None)


def _joined(start: str, end: str, known: set[str]) -> str:
    """`start` and `end` with a hyphen between them only where the book has the word with a hyphen and not without."""
    core = re.match(r"[\w-]*", end.casefold())
    whole_word, hyphened = (f"{start.casefold()}{mark}{core[0] if core else ''}" for mark in ("", "-"))
    return f"{start}-{end}" if hyphened in known and whole_word not in known else start + end


@dataclass(frozen=True)
class Layout:
    """How the lines of a book tell its paragraphs."""

    full_line: int
    """Length of a full line, in characters."""
    blank_lines: bool
    """Whether a blank line stands between paragraphs."""


def _layout(lines: list[Line]) -> Layout:
    sizes = [len(line.text) for line in lines if not line.kind and not line.begins]
    full = int(quantiles(found, n=10)[-1]) if len(found := [size for size in sizes if size]) > 1 else 0
    return Layout(full, sizes.count(0) > BLANK_SHARE * len(sizes))


def _render(lines: list[Line], layout: Layout) -> tuple[str, tuple[Span, ...]]:
    """Text and spans of one draft: paragraphs apart by blank lines, headings as `## ` and `### ` lines."""
    out = MarkedText()
    open_ = False
    for index, line in enumerate(lines):
        if line.kind == "running_head":
            if not open_:
                out.begin()
            with out.inline(line.kind):
                out.write(f" {line.text} ")
            continue
        if not open_ or line.level or _ITEM.match(line.text):
            out.begin("#" * line.level + " " if line.level else "")
        _write(out, line)
        place = _next_text(lines, index)
        following = lines[place] if place is not None else None
        open_ = bool(line.text) and not line.level and following is not None and not _ends(line, following, layout)
    return out.end()


def _write(out: MarkedText, line: Line) -> None:
    if not line.kind:
        out.write(f" {line.text} ")
        return
    with out.inline(line.kind):
        out.write(f" {line.text} ")


def _ends(line: Line, following: Line, layout: Layout) -> bool:
    """Whether a paragraph ends between two lines of text. At the end of a page a blank line says nothing."""
    if not following.text or following.level or following.kind != line.kind:
        return True
    if layout.blank_lines and following.page == line.page:
        return False
    return len(line.text) < SHORT_SHARE * layout.full_line and SENTENCE_END.search(line.text) is not None
