"""The words of one element of an article, with its links, formulas and footnotes marked.

A superscript number after a digit is written with a caret, because 10^6 is not 106; one that is a link to the references is not.
A formula has its MathML words, or its TeX where there is no MathML. Numbering labels are not written: they are layout.
"""

import html
import re

from lxml import etree

from medschool.corpus.marked import MarkedText, cut
from medschool.corpus.mentions import CITATION, FIGURE_MENTION, FOOTNOTE_MARK, TABLE_MENTION, is_word
from medschool.corpus.xml import name_of

LINKS = {
    "bibr": CITATION,
    "fn": FOOTNOTE_MARK,
    "table-fn": FOOTNOTE_MARK,
    "fig": FIGURE_MENTION,
    "supplementary-material": FIGURE_MENTION,
    "disp-formula": FIGURE_MENTION,
    "table": TABLE_MENTION,
}
FORMULAS = {"disp-formula", "disp-formula-group", "inline-formula", "math", "tex-math", "chem-struct-wrap", "DispFormula"}
FLOATS = {
    "fig", "fig-group", "table-wrap", "table-wrap-group", "graphic", "media", "supplementary-material", "contrib-group", "ack",
    "ref-list", "fn-group",
}  # fmt: skip
"""Elements that stand by themselves, wherever in a paragraph they are anchored."""
LABELS = {"label", "object-id", "sec-meta"}
_APART = {"p", "list-item", "def-item", "break", "disp-quote", "td", "th", "title"}
_FIELDS = {
    "name", "string-name", "given-names", "person-group", "article-title", "source", "year", "volume", "fpage", "lpage", "pub-id",
}  # fmt: skip
"""Elements of a reference that stand without a space between them."""
_POWER = re.compile(r"\s*[-\u2212\u2013+]?\d")
_TEX = re.compile(r"\\begin\{document\}(.*)\\end\{document\}", re.DOTALL)


def write_inline(out: MarkedText, node: etree._Element, labels: bool = False) -> list[etree._Element]:
    """Write the words of `node` into the open paragraph. Returns the floats in it, which are not written.

    labels: whether numbering labels are written too.
    """
    floats: list[etree._Element] = []
    _write(out, node, floats, labels)
    return floats


def words_of(node: etree._Element | None) -> str:
    """The words of `node` on one line, without formulas and without links that are no words; empty where there is no node."""
    if node is None or len(node) == 0:
        return " ".join((node.text or "").split()) if node is not None else ""
    out = MarkedText()
    out.begin()
    write_inline(out, node)
    text, spans = out.end()
    return cut(text, ((span.start, span.end) for span in spans if not is_word(span.kind, text[span.start : span.end])))


def _write(out: MarkedText, node: etree._Element, floats: list[etree._Element], labels: bool) -> None:
    out.write(node.text)
    for child in node:
        if child.tag is etree.Entity:
            out.write(html.unescape(child.text or ""))
        elif tag := name_of(child):
            _write_child(out, child, tag, floats, labels)
        out.write(child.tail)


def _write_child(out: MarkedText, child: etree._Element, tag: str, floats: list[etree._Element], labels: bool) -> None:
    if tag in FLOATS:
        floats.append(child)
    elif tag in FORMULAS:
        with out.inline("formula"):
            _write_formula(out, child)
    elif tag == "fn":
        with out.inline("footnote"):
            _write(out, child, floats, labels)
    elif tag == "xref" and (kind := LINKS.get(child.get("ref-type", ""))):
        with out.inline(kind):
            _write(out, child, floats, labels)
    elif tag not in LABELS or labels:
        joined = tag in _FIELDS and out.last.isalnum()
        space = " " if tag in _APART or tag in LABELS else "^" if tag == "sup" and _is_power(out, child) else ""
        out.write(" " if joined else space)
        _write(out, child, floats, labels)
        out.write(space if space == " " else "")


def _is_power(out: MarkedText, sup: etree._Element) -> bool:
    linked = len(sup) > 0 and not (sup.text or "").strip() and name_of(sup[0]) == "xref"
    return out.last.isdigit() and not linked and bool(_POWER.match("".join(sup.itertext())))


def _write_formula(out: MarkedText, node: etree._Element) -> None:
    nodes = [node, *node.iter("*")]
    math = next((inner for inner in nodes if name_of(inner) == "math"), None)
    tex = next((inner for inner in nodes if name_of(inner) == "tex-math"), None)
    if math is None and tex is not None:
        source = "".join(tex.itertext())
        found = _TEX.search(source)
        out.write(found[1] if found else source)
    else:
        out.write("".join((math if math is not None else node).itertext()))
