"""Textbooks as EPUB 2 and 3: one draft a document of the spine, which is a chapter, in order, with what is not its text marked.

    zip --META-INF/container.xml--> package (OPF) --spine--> XHTML --blocks, lines, marks--> draft

What a part is says its `epub:type` or `role`, down to the mark of a note; where those are silent its heading does, by the names
of corpus.booklines, else its name in the navigation document or NCX, the OPF's guide, or the look of a copyright page. Tables of
contents, indexes, prefaces, references, notes, figures, tables and formulas are marked, not dropped: the corpus steps decide.
What the spine takes out of the reading order (`linear="no"`) is back matter. What is in doubt is text.

A table has one line a row, headings are `## `, `### `... from the highest level in the document down. What is not written is
pictures (SVG and descriptions of images too), sound, scripts and styles.

Memory: one chapter, at most MEMBER_BYTES of XHTML; the file is copied to the disk. Price: 4 MB of XHTML a second and core.
It does not know headings that are plain paragraphs in large letters, captions outside of `figure` and `table`, formulas that are
pictures, nor that two files of the spine may be one chapter.
"""

import html
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import PurePosixPath
from typing import BinaryIO

from lxml import etree

from medschool.corpus.booklines import NAMED
from medschool.corpus.epub_package import AGAIN, SVG, Archive, Book, Document, opened, read_book, types_of
from medschool.corpus.marked import MarkedText, cut, sections
from medschool.corpus.mentions import CITATION, FOOTNOTE_MARK, is_word
from medschool.corpus.pages import page_kinds
from medschool.corpus.spool import on_disk
from medschool.corpus.textbooks import PAGE_CHARS
from medschool.corpus.xml import name_of
from medschool.errors import InputError
from medschool.rows import Draft, Dropped, Span

TYPES = {
    **dict.fromkeys(
        ("cover", "titlepage", "halftitlepage", "title-page", "copyright-page", "seriespage", "imprint", "imprimatur",
         "dedication", "foreword", "preface", "contributors", "other-credits", "credit", "credits", "errata"), "front_matter",
    ),
    **dict.fromkeys(("toc", "toc-brief", "landmarks", "page-list", "pagelist", "loa", "loi", "lot", "lov"), "toc"),
    **dict.fromkeys(("acknowledgments", "acknowledgements"), "acknowledgements"),
    **dict.fromkeys(("bibliography", "biblioentry"), "references"),
    **dict.fromkeys(("footnote", "footnotes", "endnote", "endnotes", "rearnote", "rearnotes", "notes"), "footnote"),
    **dict.fromkeys(("index", "colophon"), "back_matter"),
    **dict.fromkeys(
        ("bodymatter", "part", "chapter", "subchapter", "introduction", "prologue", "preamble", "epilogue", "afterword",
         "conclusion", "appendix", "glossary", "text"), "",
    ),
    "noteref": FOOTNOTE_MARK, "biblioref": CITATION, "pagebreak": "running_head",
}  # fmt: skip
"""What an `epub:type`, a `role` without `doc-` or a reference of the guide names -> kind of span; empty for text."""
DIVISIONS = {"frontmatter": "front_matter", "backmatter": "back_matter"}
"""Types that say what a document is when nothing more exact does: an introduction in the front matter is text."""
_ELEMENTS = {"figure": "figure", "table": "table", "nav": "toc", "math": "formula"}
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_BLOCKS = (
    *_HEADINGS, "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "form", "header", "hgroup", "hr", "legend", "li", "main", "menu", "nav", "ol",
    "p", "pre", "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul",
)  # fmt: skip
_APART = {*_BLOCKS, "br"}
_UNWRITTEN = ("annotation", "annotation-xml", "audio", "iframe", "script", "style", "svg", "template", "video")
_NOTE = re.compile(r"[\[(]?(?:\d{1,3}|[*\u2020\u2021\u00a7\u00b6]{1,3})[\])]?")
_POWER = re.compile(r"\s*[-\u2212\u2013+]?\d")


def epub_book(stream: BinaryIO, uri: str, source: str) -> Iterator[Draft | Dropped]:
    """One row a document of the spine. Dropped (`no_text`): one without words, such as a cover.

    Raises InputError, naming the member, for what is no whole EPUB: not a zip or cut short, without container, package or spine,
    encrypted, with a document that is missing, no XHTML or not well-formed (with its line), or too large.
    """
    path = PurePosixPath(uri).with_suffix("")
    with on_disk(stream, ".epub") as copy, opened(copy, uri) as archive:
        book = read_book(archive, path.name)
        for serial, document in enumerate(book.documents):
            yield _row(archive, book, document, f"{path}:{serial:05}", source)


# ---- a chapter ----------------------------------------------------------------------------------------------------------------


def _row(archive: Archive, book: Book, document: Document, row_id: str, source: str) -> Draft | Dropped:
    place = archive.where(document.path)
    if document.media == SVG:
        return Dropped(row_id, source, "no_text", f"{place} is a picture", "", archive.uri)
    root = archive.xml(document.path)
    body = root.find("{*}body")
    if name_of(root) != "html" or body is None:
        problem = f"no XHTML document: <{name_of(root)}> {'with' if body is not None else 'without'} <body>"
        raise InputError(problem, AGAIN, place)
    etree.strip_elements(root, *(f"{{*}}{name}" for name in _UNWRITTEN), with_tail=False)
    for node in root.iter("*"):
        node.tag = name_of(node)
    heading = _words_of(next(body.iter(*_HEADINGS), None))
    label = book.labels.get(document.path, "")
    stated = _stated(root, body, book.types.get(document.path, ""))
    text, marks = _text(body)
    if not text:
        return Dropped(row_id, source, "no_text", f"{place} has no words: pictures have to be recognised first", "", archive.uri)
    kind = _kind(text, heading, label, stated) if document.linear else "back_matter"
    whole = [Span(kind, 0, len(text))] if kind else []
    spans = tuple(dict.fromkeys([*whole, *_named(text), *marks]))
    title = label if heading.casefold() in label.casefold() else heading
    title = title or f"{book.title}, part {int(row_id.rpartition(':')[2]) + 1}"
    return Draft(row_id, source, text, title, book.licence, book.year, "book-chapter", archive.uri, spans, book.language)


def _stated(root: etree._Element, body: etree._Element, guided: str) -> list[str]:
    """What the document says that it is, the innermost of the elements that hold all of it first, and then the guide."""
    chain = [root, body]
    while (inner := _only_block(chain[-1])) is not None:
        chain.append(inner)
    return [*(name for node in reversed(chain) for name in types_of(node)), guided]


def _only_block(node: etree._Element) -> etree._Element | None:
    """The block that holds all words of `node`, if there is one."""
    child = node[0] if len(node) == 1 else None
    loose = child is not None and f"{node.text or ''}{child.tail or ''}".strip()
    return child if child is not None and child.tag in _BLOCKS and not loose else None


def _kind(text: str, heading: str, label: str, stated: list[str]) -> str:
    """Kind of a document as a whole: what its type says, else its heading, else the navigation, else its place in the book."""
    if (exact := next((TYPES[name] for name in stated if name in TYPES), None)) is not None:
        return exact
    if _name(heading) in NAMED:
        return ""
    if not heading and _name(label) in NAMED:
        return NAMED[_name(label)]
    if kind := next((DIVISIONS[name] for name in stated if name in DIVISIONS), ""):
        return kind
    bare = not heading and not label and len(text) <= PAGE_CHARS
    return page_kinds([text.split("\n\n")])[0] if bare else ""


def _named(text: str) -> Iterator[Span]:
    """What stands under a heading that says what it is."""
    for title, (start, end) in sections(text):
        if kind := NAMED.get(_name(title), ""):
            yield Span(kind, start, end)


def _name(title: str) -> str:
    return title.casefold().strip(" .:")


# ---- text ---------------------------------------------------------------------------------------------------------------------


def _text(body: etree._Element) -> tuple[str, tuple[Span, ...]]:
    """Text and marks of a document. `body` is used up."""
    out = MarkedText()
    top = min((_level(node) for node in body.iter(*_HEADINGS)), default=1)
    _block(out, body, top)
    return out.end()


def _level(node: etree._Element) -> int:
    return int(node.tag[1])


def _block(out: MarkedText, node: etree._Element, top: int, prefix: str = "") -> None:
    """Write what stands by itself. top: highest level of a heading in the document; prefix: of the first paragraph."""
    prefix = "- " if node.tag == "li" else prefix
    with _mark(out.block, _element_kind(node)):
        if node.tag in _HEADINGS:
            out.begin("#" * min(_level(node) - top + 2, 6) + " ")
            _inline(out, node)
        elif node.tag == "table" and not _is_layout(node):
            _table(out, node)
        elif next(node.iterdescendants(*_BLOCKS), None) is None:
            out.begin(prefix)
            _inline(out, node)
        else:
            _children(out, node, top, prefix)


def _children(out: MarkedText, node: etree._Element, top: int, prefix: str) -> None:
    for block in _blocks(node):
        before = out.chars
        _block(out, block, top, prefix)
        prefix = prefix if out.chars == before else ""


def _blocks(node: etree._Element) -> Iterator[etree._Element]:
    """The blocks in an element, and as paragraphs what stands loose between them."""
    loose = etree.Element("p")
    loose.text = node.text
    for child in list(node):
        inside = isinstance(child.tag, str) and (child.tag in _BLOCKS or next(child.iterdescendants(*_BLOCKS), None) is not None)
        if not inside:
            loose.append(child)
            continue
        tail, child.tail = child.tail, None
        yield loose
        yield child
        loose = etree.Element("p")
        loose.text = tail
    yield loose


def _table(out: MarkedText, table: etree._Element) -> None:
    """Its caption, and one line a row, cells apart by a bar."""
    for caption in table.iterchildren("caption"):
        out.begin()
        _inline(out, caption)
    gap = "\n\n"
    for row in (*table.iterfind("thead/tr"), *table.iterfind("tr"), *table.iterfind("tbody/tr"), *table.iterfind("tfoot/tr")):
        before = out.chars
        out.begin(gap=gap)
        for place, cell in enumerate(row.iterchildren("td", "th")):
            out.write(" | " if place else " ")
            _inline(out, cell)
        gap = gap if out.chars == before else "\n"


def _inline(out: MarkedText, node: etree._Element) -> None:
    """Write the words of an element into the open paragraph."""
    out.write(node.text)
    for child in node:
        if child.tag is etree.Entity:
            out.write(html.unescape(child.text or ""))
        elif isinstance(child.tag, str):
            _inline_child(out, child)
        out.write(child.tail)


def _inline_child(out: MarkedText, child: etree._Element) -> None:
    kind = _element_kind(child) or (FOOTNOTE_MARK if _is_note_link(out, child) else "")
    space = " " if child.tag in _APART else ""
    out.write(space or ("^" if _is_power(out, child) else ""))
    with _mark(out.inline, kind):
        if child.tag == "math":
            out.write("".join(child.itertext()))
        else:
            _inline(out, child)
    out.write(space)


def _mark(marking: Callable[[str], AbstractContextManager[None]], kind: str) -> AbstractContextManager[None]:
    return marking(kind) if kind else nullcontext()


def _element_kind(node: etree._Element) -> str:
    """Kind of the span over an element, by its type, else by what element it is; empty for text."""
    if kind := next((TYPES[name] for name in types_of(node) if TYPES.get(name)), ""):
        return kind
    if node.tag == "figure" and next(node.iterdescendants("table"), None) is not None:
        return "table"
    return "" if _is_layout(node) else _ELEMENTS.get(node.tag, "")


def _is_layout(node: etree._Element) -> bool:
    return node.get("role") in ("presentation", "none")


def _is_note_link(out: MarkedText, node: etree._Element) -> bool:
    """Whether a link to a place in the book is the mark of a note: it is a superscript, or a number or sign close to a word."""
    raised = node.getparent().tag == "sup" or (len(node) == 1 and node[0].tag == "sup" and not (node.text or "").strip())
    close = bool(out.last.strip()) and _NOTE.fullmatch("".join(node.itertext()).strip()) is not None
    return node.tag == "a" and "#" in node.get("href", "") and (raised or close)


def _is_power(out: MarkedText, node: etree._Element) -> bool:
    """Whether a superscript is an exponent: 10^6 is not 106."""
    number = node.tag == "sup" and out.last.isdigit() and _POWER.match("".join(node.itertext())) is not None
    return number and next(node.iterancestors("a"), None) is None and next(node.iterdescendants("a"), None) is None


def _words_of(node: etree._Element | None) -> str:
    """The words of an element on one line, without the marks of notes; empty where there is no element."""
    if node is None:
        return ""
    out = MarkedText()
    out.begin()
    _inline(out, node)
    text, spans = out.end()
    return cut(text, ((span.start, span.end) for span in spans if not is_word(span.kind, text[span.start : span.end])))
