"""MEDLINE and PubMed records (PubmedArticleSet XML): title, authors, abstract, keywords become a draft.

Files hold 30,000 records in 200 MB; they are streamed one record at a time. Labelled parts of an abstract are paragraphs
`BACKGROUND: ...`. A claim of copyright, in its own element or as the last words of the abstract, is marked, and decides the
licence: `publisher-copyright` with one, `nlm-medline` without. Subject headings, identifiers and reference lists are the index to
a record and no text of it; they are not written.

Price: about 5,000 records a second and core.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO

from lxml import etree

from medschool.corpus.inline import words_of, write_inline
from medschool.corpus.jats import year_of
from medschool.corpus.marked import MarkedText
from medschool.corpus.xml import elements, name_of
from medschool.rows import Draft, Dropped, Span

SAMPLE_CHARS = 200
_TAGS = ("PubmedArticle", "PubmedBookArticle", "DeleteCitation")
_TRAILER = re.compile(
    r"(?:[^\S\n]*\(PsycInfo Database Record \(c\)[^\n]{0,100}\)\.?"
    r"|(?:^|(?<=[.!?)\]]))[^\S\n]*(?:Copyright\s*(?:©|\(c\)|\d{4})|©\s*(?:[\w ]{1,30},? )?\d{4})[^\n]{0,300}"
    r"|[^\S\n]*This article is protected by copyright\.[^\n]{0,60}"
    r"|[^\S\n]*\((?P<cut>ABSTRACT TRUNCATED)[^\n]{0,40}\))[^\S\n]*$",
    re.IGNORECASE | re.MULTILINE,
)
_TRAILER_HINTS = ("©", "opyright", "OPYRIGHT", "PsycI", "PSYCI", "TRUNCATED")
"""One of these stands in every trailer; most abstracts have none."""
_COMMON_TYPES = re.compile(r"Journal Article|Research Support|English Abstract|Comparative Study|Video-Audio Media")


def medline(stream: BinaryIO, uri: str, source: str) -> Iterator[Draft | Dropped]:
    """One row a record. Dropped: deleted by NLM (`deleted`); without a PMID, an abstract, or a book chapter (`parse`).

    Raises as corpus.xml.elements.
    """
    for position, record in enumerate(elements(stream, uri, *_TAGS), start=1):
        if name_of(record) == "DeleteCitation":
            for pmid in record.iter("PMID"):
                yield Dropped(_pmid(pmid), source, "deleted", "NLM deleted this record", "", uri)
        else:
            yield _row(record, f"{uri}#{position}", uri, source)


def _row(record: etree._Element, place: str, uri: str, source: str) -> Draft | Dropped:
    pmid, article = _pmid(record.find("MedlineCitation/PMID")), record.find("MedlineCitation/Article")
    title = words_of(record.find("MedlineCitation/Article/ArticleTitle"))
    if article is None or not pmid:
        return Dropped(place, source, "parse", f"<{name_of(record)}> without PMID or Article", title[:SAMPLE_CHARS], uri)
    abstract = [part for part in article.iterfind("Abstract/AbstractText") if any(map(str.strip, part.itertext()))]
    if not abstract:
        return Dropped(pmid, source, "parse", "no abstract", title[:SAMPLE_CHARS], uri)
    text, spans, owned = _text(record, article, abstract)
    types = [kind.text or "" for kind in article.iter("PublicationType")]
    languages = "+".join(language.text or "" for language in article.iter("Language"))
    return Draft(
        pmid, source, text, title, "publisher-copyright" if owned else "nlm-medline", _year(article), _type(types), uri, spans,
        languages, "Retracted Publication" in types,
    )  # fmt: skip


def _pmid(node: etree._Element | None) -> str:
    """`pmid:30271887`, with `.2` behind it for the second version of a record; empty where there is none."""
    if node is None or not node.text:
        return ""
    version = node.get("Version") or "1"
    return f"pmid:{node.text.strip()}" + (f".{version}" if version != "1" else "")


def _text(record: etree._Element, article: etree._Element, abstract: list[etree._Element]) -> tuple[str, tuple[Span, ...], bool]:
    """Text and spans of a record, and whether somebody claims a copyright in it."""
    out = MarkedText()
    for node in article.iterfind("ArticleTitle"):
        out.begin()
        write_inline(out, node)
    _authors(out, article)
    first = out.chars
    for part in abstract:
        label = (part.get("Label") or "").strip().rstrip(":")
        out.begin(f"{label}: " if label and label != "UNLABELLED" else "")
        write_inline(out, part)
    last = out.chars
    _paragraph(out, "front_matter", _joined("; ", record.iterfind("MedlineCitation/KeywordList/Keyword")))
    _paragraph(out, "copyright", _joined(" ", article.iterfind("Abstract/CopyrightInformation")))
    text, spans = out.end()
    claimed = any(hint in text for hint in _TRAILER_HINTS)
    trailers = list(_TRAILER.finditer(text, first, last)) if claimed else []
    owned = article.find("Abstract/CopyrightInformation") is not None or any(not trailer["cut"] for trailer in trailers)
    return text, (*spans, *(Span("copyright", *trailer.span()) for trailer in trailers)), owned


def _authors(out: MarkedText, article: etree._Element) -> None:
    """Authors in one paragraph; their affiliations, each once, in the next."""
    authors = [" ".join(filter(None, map(author.findtext, ("ForeName", "LastName", "Suffix", "CollectiveName"))))
               for author in article.iterfind("AuthorList/Author")]  # fmt: skip
    _paragraph(out, "authors", ", ".join(filter(None, authors)))
    _paragraph(out, "affiliations", _joined("; ", article.iterfind("AuthorList/Author/AffiliationInfo/Affiliation")))


def _joined(separator: str, nodes: Iterator[etree._Element]) -> str:
    """The words of the nodes that have any, each once."""
    return separator.join(filter(None, dict.fromkeys(map(words_of, nodes))))


def _paragraph(out: MarkedText, kind: str, words: str) -> None:
    with out.block(kind):
        out.begin()
        out.write(words)


def _year(article: etree._Element) -> int | None:
    for path in ("Journal/JournalIssue/PubDate/Year", "Journal/JournalIssue/PubDate/MedlineDate", "ArticleDate/Year"):
        if year := year_of(article.findtext(path)):
            return year
    return None


def _type(types: list[str]) -> str:
    """The first telling publication type, as in `case-reports`; `journal-article` where there is none."""
    kind = next((kind for kind in types if not _COMMON_TYPES.match(kind)), "Journal Article")
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")
