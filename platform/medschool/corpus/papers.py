"""Papers: MEDLINE abstracts and PMC full texts become Documents.

`medline` streams PubmedArticleSet files (30,000 records, 200 MB of XML) one record at a time, in memory of one record beside the
bytes. `jats` reads the articles of a PubMed Central file: title, abstract and body, with section headings as `## Heading` lines
and without references, tables, figures, formulas and acknowledgements. A citation leaves with the brackets that it empties;
"Table 2" stays where it is a word of the sentence ("Table 2 shows"), because a sentence without its subject teaches nothing.

XML is read with entities unresolved, no DTD and no network; a file that declares entities is refused. `elements` does that, for
every XML format of this folder.

Price: about 6,000 MEDLINE records a second and core; a full text takes 10 ms.
"""

import html
import re
from collections.abc import Iterator
from io import BytesIO

from lxml import etree

from medschool.corpus.clean import licence_group
from medschool.errors import InputError
from medschool.rows import Document, Dropped

SAMPLE_CHARS = 200
_MEDLINE_TAGS = ("PubmedArticle", "PubmedBookArticle", "DeleteCitation")


def elements(data: bytes, uri: str, *tags: str) -> Iterator[etree._Element]:
    """Stream the elements named `tags` in any namespace; each is emptied when the next one is asked for.

    Raises InputError, naming the line, when the bytes are not whole, well-formed XML, declare entities, or hold no such element.
    """
    wanted = [f"{{*}}{tag}" for tag in tags]
    found = False
    try:
        for _, element in etree.iterparse(
            BytesIO(data), events=("end",), tag=wanted, resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False,
            remove_comments=True, remove_pis=True,
        ):  # fmt: skip
            if not found:
                _refuse_entities(element.getroottree(), uri)
            found = True
            yield element
            element.clear()
            while element.getprevious() is not None:
                del element.getparent()[0]
    except etree.XMLSyntaxError as error:
        remedy = "fetch the file again; if it is the same, take it out of the source"
        raise InputError(f"not well-formed XML ({error.msg})", remedy, f"{uri}:{error.lineno}") from error
    if not found:
        raise InputError(f"holds no <{tags[0]}> element", "check the `format` of this source in the recipe", uri)


def _refuse_entities(tree: etree._ElementTree, uri: str) -> None:
    dtd = tree.docinfo.internalDTD
    names = [str(entity.name) for entity in dtd.iterentities()] if dtd is not None else []
    if names:
        raise InputError(
            f"declares {len(names)} XML entities ({', '.join(names[:3])}), which could read files or grow without end",
            "take the file out of the source; no file of MEDLINE, PMC or ICD-10-CM declares any",
            uri,
        )


# ---- text of one element ------------------------------------------------------------------------------------------------------

_REFERENCES = {"ref-list", "contrib-group", "ack", "fn", "fn-group", "label", "object-id", "sec-meta"}
_FIGURES = {"fig", "fig-group", "table-wrap", "table-wrap-group", "graphic", "inline-graphic", "media", "supplementary-material"}
_FORMULAS = {"disp-formula", "disp-formula-group", "inline-formula", "math", "tex-math", "chem-struct-wrap", "DispFormula"}
_NOT_PROSE = _REFERENCES | _FIGURES | _FORMULAS
_SPOKEN = {"fig", "table", "supplementary-material", "disp-formula"}
_LINKS = _SPOKEN | {"bibr", "fn", "table-fn"}
_CITATION, _SPOKEN_LINK, _MARK = 0xE000, 0xF000, "[\ue000-\uf8ff]"
_MAX_LINKS = 0x800
_GROUP = re.compile(r"\s?[(\[]([^()\[\]]*" + _MARK + r"[^()\[\]]*)[)\]]")
_CITATIONS = re.compile("(?:\\b(?:see|and|in)\\s+)?[\ue000-\uefff]")
_MARK_RUN = re.compile(rf"(\s*)({_MARK}(?:\s*[,;\u2013-]?\s*{_MARK})*)")
_FILLER = re.compile(
    r"\b(?:see|also|and|or|in|e\.?g|refs?|references?|reviewed|figs?|figures?|tables?|panels?|additional files?|[a-z])\b\.?",
    re.IGNORECASE,
)

_LEFT_OVER = [
    (re.compile(r"\s+([.,;:])"), r"\1"),
    (re.compile(r"\s*[,;]?\s*([)\]])"), r"\1"),
    (re.compile(r"([(\[])\s*[,;]?\s*"), r"\1"),
    (re.compile(r"(?<!\.)\.\.(?!\.)"), "."),
]


def _inline(node: etree._Element, links: list[str]) -> str:
    """Text of `node`; each in-text link becomes one private-use character, which stands for its place in `links`."""
    parts = [_typed(node.text)]
    for child in node:
        if child.tag is etree.Entity:
            parts.append(html.unescape(child.text or ""))
        elif isinstance(child.tag, str):
            parts.append(_child_text(child, links, parts[-1]))
        parts.append(_typed(child.tail))
    return "".join(parts)


def _typed(text: str | None) -> str:
    """Text of the file without private-use characters, which `_inline` needs for itself."""
    return re.sub(_MARK, "", text) if text else ""


def _child_text(child: etree._Element, links: list[str], before: str) -> str:
    tag = _name(child)
    if tag in _NOT_PROSE:
        return ""
    if tag == "xref" and child.get("ref-type") in _LINKS and len(links) < _MAX_LINKS:
        words, spoken = _plain(child), child.get("ref-type") in _SPOKEN
        links.append(words if spoken or any(map(str.isalpha, words)) else "")
        return chr((_SPOKEN_LINK if spoken else _CITATION) + len(links) - 1)
    text = _inline(child, links)
    if tag == "sup" and before[-1:].isdigit() and re.match(r"\s*[-\u2212\u2013+]?\d", text):
        return "^" + text
    return f" {text} " if tag in {"p", "list-item", "def-item", "break", "disp-quote", "td"} else text


def _plain(node: etree._Element | None) -> str:
    """All prose of `node` on one line, links with their own text."""
    if node is None:
        return ""
    links: list[str] = []
    text = _inline(node, links)
    return " ".join(_spoken(text, links).split())


def _spoken(text: str, links: list[str]) -> str:
    """`text` with the words of its links; a number that only points to the references has none."""
    return re.sub(_MARK, lambda mark: links[ord(mark[0]) & 0xFFF], text)


def _paragraph(node: etree._Element) -> str:
    """Prose of `node` on one line without citations and the brackets they leave empty."""
    links: list[str] = []
    text = _GROUP.sub(_shrink_group, _inline(node, links))

    def restore(run: re.Match[str]) -> str:
        words = _spoken(run[2], links)
        return run[1] + words if re.search(r"\w", words) else ""

    text = " ".join(_MARK_RUN.sub(restore, text).split())
    for pattern, better in _LEFT_OVER:
        text = pattern.sub(better, text)
    return text


def _shrink_group(group: re.Match[str]) -> str:
    """A bracket without its citations; nothing where only links, filler words and separators were in it."""
    if not re.search(r"\w", _FILLER.sub("", re.sub(_MARK, "", group[1]))):
        return ""
    opening, closing = group[0][: group[0].index(group[1])], group[0][-1]
    rest = re.sub(r"([,;])(?:\s*[,;])+", r"\1", _CITATIONS.sub("", group[1]))
    return opening + rest.strip(" ,;\u2013") + closing


def _name(node: etree._Element) -> str:
    return str(node.tag).rpartition("}")[2]


# ---- MEDLINE ------------------------------------------------------------------------------------------------------------------

_TRAILER = re.compile(
    r"(?:\s*\(PsycInfo Database Record \(c\)[^\n]{0,100}\)\.?"
    r"|(?:^|(?<=[.!?)\]]))\s*(?:Copyright\s*(?:©|\(c\)|\d{4})|©\s*(?:[\w ]{1,30},? )?\d{4})[^\n]{0,300}"
    r"|\s*This article is protected by copyright\.[^\n]{0,60}"
    r"|\s*\(ABSTRACT TRUNCATED[^\n]{0,40}\))\s*$",
    re.IGNORECASE,
)
_COMMON_TYPES = re.compile(r"Journal Article|Research Support|English Abstract|Comparative Study|Video-Audio Media")


def medline(data: bytes, uri: str, source: str) -> Iterator[Document | Dropped]:
    """One row a record of a PubmedArticleSet: title and abstract, labelled parts as `BACKGROUND: ...` paragraphs.

    Dropped: records without a PMID, deleted by NLM, retracted, not in English, without an abstract; book chapters.
    """
    for position, record in enumerate(elements(data, uri, *_MEDLINE_TAGS), start=1):
        if _name(record) == "DeleteCitation":
            for pmid in record.iter("PMID"):
                yield Dropped(_pmid(pmid), source, "deleted", "NLM deleted this record", "", uri)
        else:
            yield _medline_row(record, f"{uri}#{position}", uri, source)


def _medline_row(record: etree._Element, place: str, uri: str, source: str) -> Document | Dropped:
    pmid, title = _pmid(record.find("MedlineCitation/PMID")), _plain(record.find("MedlineCitation/Article/ArticleTitle"))
    article = record.find("MedlineCitation/Article")
    if article is None or not pmid:
        return Dropped(place, source, "parse", f"<{_name(record)}> without PMID or Article", title[:SAMPLE_CHARS], uri)
    paragraphs, claimed = _abstract(article)
    types = [kind.text or "" for kind in article.iter("PublicationType")]
    languages = [language.text or "" for language in article.iter("Language")]
    for dropped, step, reason in (
        ("Retracted Publication" in types, "retracted", "the publication was retracted"),
        ("eng" not in languages, "language", f"language is {'+'.join(languages) or 'not stated'}, not eng"),
        (not paragraphs, "parse", "no abstract"),
    ):
        if dropped:
            return Dropped(pmid, source, step, reason, title[:SAMPLE_CHARS], uri)
    owned = claimed or article.find("Abstract/CopyrightInformation") is not None
    licence = "publisher-copyright" if owned else "nlm-medline"
    text = "\n\n".join([title, *paragraphs] if title else paragraphs)
    return Document(pmid, source, text, title, licence, _medline_year(article), _article_type(types), uri)


def _pmid(node: etree._Element | None) -> str:
    """`pmid:30271887`, with `.2` behind it for the second version of a record; empty where there is none."""
    if node is None or not node.text:
        return ""
    version = node.get("Version") or "1"
    return f"pmid:{node.text.strip()}" + (f".{version}" if version != "1" else "")


def _abstract(article: etree._Element) -> tuple[list[str], bool]:
    """Paragraphs of the abstract, and whether its last words claimed a copyright (they are removed)."""
    paragraphs, claimed = [], False
    for part in article.iterfind("Abstract/AbstractText"):
        whole = _plain(part)
        text = _TRAILER.sub("", whole)
        claimed = claimed or (text != whole and "TRUNCATED" not in whole[len(text) :])
        label = (part.get("Label") or "").strip().rstrip(":")
        if text:
            paragraphs.append(f"{label}: {text}" if label and label != "UNLABELLED" else text)
    return paragraphs, claimed


def _medline_year(article: etree._Element) -> int | None:
    for path in ("Journal/JournalIssue/PubDate/Year", "Journal/JournalIssue/PubDate/MedlineDate", "ArticleDate/Year"):
        if year := _year(article.findtext(path)):
            return year
    return None


def _year(text: str | None) -> int | None:
    found = re.search(r"\b(1[5-9]|20)\d\d\b", text or "")
    return int(found[0]) if found else None


def _article_type(types: list[str]) -> str:
    """The first telling publication type, as in `case-reports`; `journal-article` where there is none."""
    kind = next((kind for kind in types if not _COMMON_TYPES.match(kind)), "Journal Article")
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")


# ---- PMC full text ------------------------------------------------------------------------------------------------------------

_CONTAINERS = {"list", "boxed-text", "disp-quote", "def-list", "statement"}
_ABOUT_PAPER = {"authors' contributions", "competing interests", "pre-publication history", "supporting information"}
_HREF = "{http://www.w3.org/1999/xlink}href"
_NO_SUMMARY = {"graphical", "teaser", "toc", "precis", "key-points", "web-summary"}


def jats(data: bytes, uri: str, source: str) -> Iterator[Document | Dropped]:
    """One row an article of a JATS file. Dropped: no identifier, retracted, not in English, no prose (a scanned article)."""
    for position, article in enumerate(elements(data, uri, "article"), start=1):
        yield _jats_row(article, f"{uri}#{position}", uri, source)


def _jats_row(article: etree._Element, place: str, uri: str, source: str) -> Document | Dropped:
    for node in article.iter("*"):
        node.tag = _name(node)
    title = _plain(article.find("front/article-meta/title-group/article-title"))
    article_id = _jats_id(article)
    kind = article.get("article-type") or "article"
    language = (article.get("{http://www.w3.org/XML/1998/namespace}lang") or "en").lower()
    paragraphs = _jats_prose(article)
    for dropped, step, reason in (
        (not article_id, "parse", "<article> without a pmc, pmid or doi identifier"),
        (kind == "retraction" or title.lower().startswith("retracted"), "retracted", f"{kind}, title {title[:60]!r}"),
        (language[:2] != "en", "language", f"language is {language}, not en"),
        (not paragraphs, "parse", "no abstract and no body text"),
    ):
        if dropped:
            return Dropped(article_id or place, source, step, reason, title[:SAMPLE_CHARS], uri)
    years = [year for date in article.iterfind("front/article-meta/pub-date") if (year := _year(date.findtext("year")))]
    text = "\n\n".join([title, *paragraphs] if title else paragraphs)
    return Document(article_id, source, text, title, jats_licence(article), min(years, default=None), kind, uri)


def _jats_id(article: etree._Element) -> str:
    ids = {node.get("pub-id-type"): (node.text or "").strip() for node in article.iterfind("front/article-meta/article-id")}
    pmc = ids.get("pmc") or ids.get("pmcid") or ""
    if pmc:
        return f"pmc:{pmc.upper().removeprefix('PMC')}"
    return next((f"{kind}:{ids[kind]}" for kind in ("pmid", "doi") if ids.get(kind)), "")


def _jats_prose(article: etree._Element) -> list[str]:
    prose: list[str] = []
    for abstract in article.iterfind("front/article-meta/abstract"):
        blocks = [] if abstract.get("abstract-type") in _NO_SUMMARY else list(_blocks(abstract, 3))
        heading = _plain(abstract.find("title")) or "Abstract"
        prose += [f"## {heading}", *blocks] if blocks else []
    body = article.find("body")
    return prose + (list(_blocks(body, 2)) if body is not None else [])


def _blocks(node: etree._Element, depth: int) -> Iterator[str]:
    """Paragraphs and headings under `node`; a section's heading appears only before text of that section."""
    for child in node:
        tag = _name(child) if isinstance(child.tag, str) else ""
        if not tag or tag == "title" or tag in _NOT_PROSE:
            continue
        if tag == "sec" or tag in _CONTAINERS:
            title = _plain(child.find("title"))
            inside = [] if title.lower() in _ABOUT_PAPER else list(_blocks(child, depth + 1))
            yield from [f"{'#' * depth} {title}", *inside] if inside and title else inside
        elif text := _paragraph(child):
            yield f"- {text}" if tag == "list-item" else text


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
