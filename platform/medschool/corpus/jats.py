"""PubMed Central full texts in JATS XML (NISO Z39.96): an article becomes a draft with everything in it, marked.

    title / authors, affiliations / journal, keywords, licence / ## Abstract / body / floats, back matter, references

Sections have their headings (`## Methods`, `### Dose`), a heading only where its section has text. A table has one line a row, a
figure or table stands behind the paragraph it is anchored in. What is not written is layout (numbering of sections, references)
and what machines read (identifiers, dates, counts, addresses of files). What goes is for the corpus steps to decide.

Price: a full text takes 10 ms. Memory: one article.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO

from lxml import etree

from medschool.corpus.clean import licence_group
from medschool.corpus.inline import FORMULAS, words_of, write_inline
from medschool.corpus.marked import MarkedText
from medschool.corpus.xml import elements, name_of
from medschool.rows import Draft, Dropped, Span

SAMPLE_CHARS = 200
_KINDS = {
    "contrib-group": "authors", "bio": "authors", "aff": "affiliations", "author-notes": "affiliations",
    "ack": "acknowledgements", "ref-list": "references", "fn": "footnote", "fn-group": "footnote",
    "fig": "figure", "fig-group": "figure", "graphic": "figure", "media": "figure",
    "table-wrap": "table", "table-wrap-group": "table",
    "supplementary-material": "back_matter", "app": "back_matter", "app-group": "back_matter", "glossary": "back_matter",
    "notes": "back_matter", "sub-article": "back_matter", "response": "back_matter",
    **dict.fromkeys(FORMULAS, "formula"),
}  # fmt: skip
"""Element -> kind of the span over it."""
_LABELLED = {"fig", "table-wrap", "supplementary-material"}
_CONTAINERS = {
    "sec", "list", "boxed-text", "disp-quote", "def-list", "statement", "verse-group", "abstract", "trans-abstract", "body",
    "back", "floats-group", "caption", "alternatives", "table", "thead", "tbody", "tfoot", "table-wrap-foot", "permissions",
    "license", "ack", "ref-list", "fn", "fn-group", "fig", "fig-group", "media", "table-wrap", "table-wrap-group",
    "supplementary-material", "app", "app-group", "glossary", "notes", "sub-article", "response", "author-notes",
}  # fmt: skip
"""Elements that hold paragraphs, not words."""
_RECORDS = {"contrib", "ref", "aff", "tr"}
"""Elements whose parts are fields, apart by a space, or cells, apart by a bar."""
_SILENT = {"", "title", "label", "front", "front-stub", "object-id", "sec-meta", "copyright-year", "copyright-holder"}
_HREF = "{http://www.w3.org/1999/xlink}href"
_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_NO_SUMMARY = {"graphical", "teaser", "toc", "precis", "key-points", "web-summary"}
_FRONT = (
    ("title-group/subtitle", "front_matter"), ("title-group/alt-title", "front_matter"),
    ("contrib-group", ""), ("aff", ""), ("author-notes", ""),
    ("article-categories//subject", "front_matter"), ("kwd-group", "front_matter"), ("funding-group", "back_matter"),
    ("permissions", "copyright"), ("trans-abstract", "front_matter"),
)  # fmt: skip


def jats(stream: BinaryIO, uri: str, source: str) -> Iterator[Draft | Dropped]:
    """One row an article of a JATS file. Dropped (`parse`): no identifier; neither abstract nor body (a scanned article).

    Raises as corpus.xml.elements.
    """
    for position, article in enumerate(elements(stream, uri, "article"), start=1):
        yield _row(article, f"{uri}#{position}", uri, source)


def _row(article: etree._Element, place: str, uri: str, source: str) -> Draft | Dropped:
    for node in article.iter("*"):
        node.tag = name_of(node)
    title, article_id = words_of(article.find("front/article-meta/title-group/article-title")), _id(article)
    kind = article.get("article-type") or "article"
    prose = [*article.iterfind("front/article-meta/abstract"), *article.iterfind("body")]
    for dropped, reason in (
        (not article_id, "<article> without a pmc, pmid or doi identifier"),
        (not any(map(_content, prose)), "no abstract and no body text"),
    ):
        if dropped:
            return Dropped(article_id or place, source, "parse", reason, title[:SAMPLE_CHARS], uri)
    years = [year for date in article.iterfind("front/article-meta/pub-date") if (year := year_of(date.findtext("year")))]
    text, spans = _text(article)
    return Draft(
        article_id, source, text, title, jats_licence(article), min(years, default=None), kind, uri, spans,
        (article.get(_LANG) or "").lower(), _retracted(article, kind, title),
    )  # fmt: skip


def _id(article: etree._Element) -> str:
    ids = {node.get("pub-id-type"): (node.text or "").strip() for node in article.iterfind("front/article-meta/article-id")}
    pmc = ids.get("pmc") or ids.get("pmcid") or ""
    if pmc:
        return f"pmc:{pmc.upper().removeprefix('PMC')}"
    return next((f"{kind}:{ids[kind]}" for kind in ("pmid", "doi") if ids.get(kind)), "")


def _retracted(article: etree._Element, kind: str, title: str) -> bool:
    """Whether it is a retraction, or an article that says it was retracted (by its title, or a link to the retraction)."""
    related = (node.get("related-article-type") for node in article.iterfind("front/article-meta/related-article"))
    return kind == "retraction" or title.lower().startswith("retracted") or "retraction-forward" in related


def year_of(text: str | None) -> int | None:
    """The first year in a date, from 1500 to 2099."""
    found = re.search(r"\b(1[5-9]|20)\d\d\b", text or "")
    return int(found[0]) if found else None


# ---- text ---------------------------------------------------------------------------------------------------------------------


def _text(article: etree._Element) -> tuple[str, tuple[Span, ...]]:
    out = MarkedText()
    if (title := article.find("front/article-meta/title-group/article-title")) is not None:
        _paragraph(out, title, 2)
    with out.block("front_matter"):
        for path in ("journal-title", "publisher-name"):
            for node in article.iterfind(f"front/journal-meta//{path}"):
                _paragraph(out, node, 2)
    for path, kind in _FRONT:
        for node in article.iterfind(f"front/article-meta/{path}"):
            _marked(out, node, kind or _KINDS[name_of(node)], 2)
    for abstract in article.iterfind("front/article-meta/abstract"):
        if abstract.get("abstract-type") in _NO_SUMMARY:
            _marked(out, abstract, "front_matter", 2)
        else:
            _section(out, abstract, 2, "Abstract")
    for tag in ("body", "floats-group"):
        for part in article.iterfind(tag):
            _children(out, part, 2)
    for node in article.iterfind("back/*"):
        _marked(out, node, _KINDS.get(name_of(node), "back_matter"), 2)
    for node in (*article.iterfind("sub-article"), *article.iterfind("response")):
        _block(out, node, 2)
    return out.end()


def _marked(out: MarkedText, node: etree._Element, kind: str, depth: int) -> None:
    with out.block(kind):
        _unmarked(out, node, depth)


def _block(out: MarkedText, node: etree._Element, depth: int) -> None:
    """Write one element that stands by itself, marked if it is of a kind. depth: level of a heading at this place."""
    if kind := _KINDS.get(name_of(node)):
        _marked(out, node, kind, depth)
    else:
        _unmarked(out, node, depth)


def _unmarked(out: MarkedText, node: etree._Element, depth: int) -> None:
    tag = name_of(node)
    if tag in _RECORDS:
        _record(out, node)
    elif tag == "contrib-group":
        _children(out, node, depth)
    elif tag in _CONTAINERS:
        _section(out, node, depth)
    else:
        _paragraph(out, node, depth)


def _section(out: MarkedText, node: etree._Element, depth: int, heading: str = "") -> None:
    """The heading, where there is text under it, and what the section holds; one of one kind as a whole is marked as a whole."""
    inside = _content(node)
    kinds = {_KINDS.get(name_of(child), "") for child in inside}
    if len(kinds) == 1 and (kind := kinds.pop()) and node.find("title") is not None:
        with out.block(kind):
            _headed(out, node, depth, heading)
    elif inside:
        _headed(out, node, depth, heading)


def _headed(out: MarkedText, node: etree._Element, depth: int, heading: str) -> None:
    title = node.find("title")
    if title is not None and words_of(title) and name_of(node) != "caption":
        out.begin("#" * min(depth, 6) + " ")
        write_inline(out, title)
    elif heading:
        out.begin("#" * depth + " ")
        out.write(heading)
    elif title is not None:
        _paragraph(out, title, depth)
    _children(out, node, depth + 1)


def _children(out: MarkedText, node: etree._Element, depth: int) -> None:
    for child in node:
        if name_of(child) == "label" and name_of(node) in _LABELLED:
            _paragraph(out, child, depth)
        elif name_of(child) not in _SILENT:
            _block(out, child, depth)


def _content(node: etree._Element) -> list[etree._Element]:
    """What stands in a section beside its title: the children with text in them."""
    return [child for child in node if name_of(child) not in _SILENT and any(map(str.strip, child.itertext()))]


def _paragraph(out: MarkedText, node: etree._Element, depth: int) -> None:
    """One paragraph of words, and behind it the floats that are anchored in it."""
    out.begin("- " if name_of(node) == "list-item" else "")
    for float_ in write_inline(out, node):
        _block(out, float_, depth)


def _record(out: MarkedText, node: etree._Element) -> None:
    """One line: the cells of a table row, or the fields of a reference, an affiliation, an author."""
    row = name_of(node) == "tr"
    table = next(node.iterancestors("table"), None)
    out.begin(gap="\n" if row and table is not None and next(table.iter("tr")) is not node else "\n\n")
    for place, child in enumerate(node):
        out.write(" | " if row and place else " ")
        if row or name_of(child) in {"mixed-citation", "citation"}:
            write_inline(out, child)
        elif name_of(child) not in {"label", "xref"}:
            out.write(" ".join(child.itertext()))
        out.write("" if row else child.tail)


# ---- licence ------------------------------------------------------------------------------------------------------------------


def jats_licence(article: etree._Element) -> str:
    """Licence group of an article (namespaces stripped) from its <license>; `unstated` where there is none."""
    meta = article.find("front/article-meta")
    if meta is None:
        return "unstated"
    stated = " ".join(_licence_words(node) for node in meta.iterfind("permissions/license"))
    return licence_group(stated) if stated.strip() else "unstated"


def _licence_words(licence: etree._Element) -> str:
    links = [value for node in licence.iter("*") if (value := node.get(_HREF))]
    return " ".join([*links, *licence.itertext()])
