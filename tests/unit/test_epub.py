"""Books as EPUB 2 and 3, written by the tests in their real format. All texts here are invented."""

import html
import io
import random
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.corpus import epub_package
from medschool.corpus.admit import Terms, admit
from medschool.corpus.clean import Rules
from medschool.corpus.formats import FORMATS
from medschool.corpus.funnel import Funnel
from medschool.corpus.steps import KINDS, run_steps
from medschool.errors import InputError
from medschool.rows import Draft, Dropped

CONTAINER = """<?xml version="1.0"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
<rootfiles><rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""
DTD = '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.1//EN" "http://www.w3.org/TR/xhtml11/DTD/xhtml11.dtd">'
DC = "<dc:title>The River of Blood</dc:title><dc:language>en-GB</dc:language><dc:date>2011-03-01</dc:date>"
XHTML = "application/xhtml+xml"


def page(body: str, attributes: str = "", doctype: str = "<!DOCTYPE html>") -> str:
    """An XHTML document. attributes: of its body."""
    spaces = 'xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops"'
    return f'<?xml version="1.0" encoding="utf-8"?>{doctype}<html {spaces}><head><title>No</title></head><body {attributes}>{body}</body></html>'


def opf(
    chapters: Sequence[str], metadata: str = DC, items: str = "", rest: str = "", spine: str = "", refs: Sequence[str] = ()
) -> str:
    """A package of these chapters, `c0.xhtml` and so on. spine: attributes; refs: attributes of each itemref."""
    manifest = "".join(f'<item id="c{n}" href="text/c{n}.xhtml" media-type="{XHTML}"/>' for n in range(len(chapters)))
    itemrefs = "".join(f'<itemref idref="c{n}" {refs[n] if n < len(refs) else ""}/>' for n in range(len(chapters)))
    return (
        '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id">'
        f'<metadata xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:opf="http://www.idpf.org/2007/opf">{metadata}</metadata>'
        f"<manifest>{manifest}{items}</manifest><spine {spine}>{itemrefs}</spine>{rest}</package>"
    )


def packed(members: Mapping[str, str | bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        for name, data in members.items():
            archive.writestr(name, data)
    return sink.getvalue()


def members(*chapters: str, package: str = "", **options: Any) -> dict[str, str | bytes]:
    """The members of a book. chapters: bodies, or whole documents."""
    pages = [chapter if chapter.startswith("<?xml") else page(chapter) for chapter in chapters]
    texts = {f"OEBPS/text/c{number}.xhtml": text for number, text in enumerate(pages)}
    return {epub_package.CONTAINER: CONTAINER, "OEBPS/book.opf": package or opf(pages, **options), **texts}


def read(data: bytes, uri: str = "raw/river.epub") -> list[Draft | Dropped]:
    return list(FORMATS["epub_book"](io.BytesIO(data), uri, "books"))


def drafts(data: bytes) -> list[Draft]:
    rows = read(data)
    assert all(isinstance(row, Draft) for row in rows), rows
    return [row for row in rows if isinstance(row, Draft)]


def one(body: str, **options: Any) -> Draft:
    (row,) = drafts(packed(members(body, **options)))
    return row


def marked(row: Draft, kind: str) -> list[str]:
    return [row.text[span.start : span.end] for span in row.spans if span.kind == kind]


def left(row: Draft) -> list[str]:
    return run_steps(row)[0].text.split("\n\n")


def bare(text: str) -> str:
    """The letters and digits of a text."""
    return "".join(filter(str.isalnum, text))


# ---- chapters -----------------------------------------------------------------------------------------------------------------

HEART = """
<section epub:type="chapter"><header><h1>Chapter 1<br/>The heart<a epub:type="noteref" href="#n1">1</a></h1></header>
<p>The heart is a <em>hollow</em> muscle.<sup><a href="#n1">1</a></sup> It beats<a epub:type="noteref" href="#n2">2</a> 10<sup>5</sup> times
a day&#160;<a role="doc-biblioref" href="#r1">[4]</a>.<span epub:type="pagebreak" id="p2">23</span> H<sub>2</sub>O is water.</p>
<section><h2>The valves</h2>
Loose words, <b>too</b>.
<div>There are <span>four</span>.</div>
<h3>Names</h3><ul><li>mitral</li><li><p>aortic</p><p>and more of it</p><ol><li>inner</li></ol></li></ul>
<dl><dt>Pulse</dt><dd>The beat.</dd></dl></section>
<figure><img src="a.png" alt="A heart"/><figcaption>Fig. 1. A heart.</figcaption></figure>
<table><caption>Table 1. Beats.</caption><thead><tr><th>who</th><th>beats</th></tr></thead>
<tbody><tr><td>mouse</td><td><p>600</p><p>a minute</p></td></tr></tbody></table>
<p>Its output is <math xmlns="http://www.w3.org/1998/Math/MathML"><semantics><mi>Q</mi><annotation>\\TeX</annotation></semantics></math> litres.</p>
<section epub:type="bibliography"><h2>Sources</h2><ol><li>Inventor A. A book of nothing.</li></ol></section>
<aside epub:type="footnote" id="n1"><p>1 In most animals.</p></aside>
</section>"""
WORDS = [
    "## Chapter 1 The heart",
    "The heart is a hollow muscle. It beats 10^5 times a day. H2O is water.",
    "### The valves",
    "Loose words, too.",
    "There are four.",
    "#### Names",
    "- mitral",
    "- aortic",
    "and more of it",
    "- inner",
    "Pulse",
    "The beat.",
    "Its output is litres.",
]


def test_a_chapter_has_its_headings_lists_and_marks() -> None:
    row = one(HEART)
    assert (row.id, row.title, row.year, row.licence, row.article_type, row.uri, row.language) == (
        "raw/river:00000", "Chapter 1 The heart", 2011, "unstated", "book-chapter", "raw/river.epub", "en",
    )  # fmt: skip
    assert {span.kind for span in row.spans} <= set(KINDS)
    assert marked(row, "footnote_mark") == ["1", "1", "2"] and marked(row, "citation") == ["[4]"]
    assert marked(row, "running_head") == ["23"] and marked(row, "formula") == ["Q"]
    assert marked(row, "figure") == ["Fig. 1. A heart."]
    assert marked(row, "table") == ["Table 1. Beats.\n\nwho | beats\nmouse | 600 a minute"]
    assert marked(row, "references") == ["### Sources\n\n- Inventor A. A book of nothing."]
    assert marked(row, "footnote") == ["1 In most animals."]
    assert left(row) == WORDS


def test_a_link_that_is_a_number_close_to_a_word_is_the_mark_of_a_note() -> None:
    row = one(
        '<p>It beats<a href="#n1">1</a>, it does.<a href="n.xhtml#n">[2]</a> See Figure <a href="#f3">3</a> or page<a href="x"> 4</a>.</p>'
    )
    assert marked(row, "footnote_mark") == ["1", "[2]"] and left(row) == ["It beats, it does. See Figure 3 or page 4."]


def test_chapters_come_in_the_order_of_the_spine() -> None:
    chapters = [f"<h1>{name}</h1><p>Words of {name}.</p><h1>More</h1><p>And more.</p>" for name in ("One", "Two", "Three")]
    package = (
        opf(["", "", ""])
        .replace('<itemref idref="c0" />', "")
        .replace("</spine>", '<itemref idref="c0"/><itemref idref="c1"/></spine>')
    )
    rows = drafts(packed(members(*chapters, package=package)))
    assert [(row.id[-5:], row.title) for row in rows] == [("00000", "Two"), ("00001", "Three"), ("00002", "One")]
    assert rows[0].text == "## Two\n\nWords of Two.\n\n## More\n\nAnd more." and not rows[0].spans


def test_headings_count_from_the_highest_of_the_document() -> None:
    row = one("<div><h3>Top</h3><p>a</p><h4>Under</h4><p>b</p><h6>Deep</h6><p>c</p><h3>Next</h3><p>d</p></div>")
    assert [line for line in row.text.split("\n\n") if line.startswith("#")] == ["## Top", "### Under", "##### Deep", "## Next"]


@pytest.mark.parametrize(
    ("body", "attributes", "kind"),
    [
        ("<h1>Contents</h1><ol><li>One</li><li>Two</li></ol>", "", "toc"),
        ('<nav epub:type="toc"><h1>What is in here</h1><ol><li>One</li></ol></nav>', "", "toc"),
        ('<section epub:type="toc"><p>One</p></section>', "", "toc"),
        ("<h2>Preface</h2><p>Nobody wrote this.</p>", "", "front_matter"),
        ("<h1>Something else</h1><p>Nobody wrote this.</p>", 'epub:type="frontmatter"', "front_matter"),
        ("<p>For nobody.</p>", 'epub:type="frontmatter dedication"', "front_matter"),
        ("<p>All rights reserved.</p><p>ISBN 0-00-000000-0</p>", "", "front_matter"),
        ("<h1>Index</h1><p>wound, 3, 5</p>", "", "back_matter"),
        ('<section role="doc-index"><h1>Words</h1><p>wound, 3</p></section>', "", "back_matter"),
        ("<h1>Anything</h1><p>At the end.</p>", 'epub:type="backmatter"', "back_matter"),
        ("<h1>Further reading</h1><p>Nobody. Nothing.</p>", "", "references"),
        ("<h1>Acknowledgments</h1><p>To nobody.</p>", "", "acknowledgements"),
        ('<section role="doc-acknowledgments"><h1>Thanks</h1><p>To nobody.</p></section>', "", "acknowledgements"),
        ('<section epub:type="endnotes"><h1>Notes</h1><ol><li>A note.</li></ol></section>', "", "footnote"),
    ],
)  # fmt: skip
def test_what_is_no_text_of_the_book_is_marked_and_still_there(body: str, attributes: str, kind: str) -> None:
    (row,) = drafts(packed(members(page(body, attributes))))
    assert marked(row, kind)[0] == row.text and run_steps(row)[0].text == ""
    assert [what.step for what in run_steps(row)[1]] == [KINDS[kind]]


@pytest.mark.parametrize(
    ("body", "attributes"),
    [
        ("<h1>Introduction</h1><p>The body is one.</p>", 'epub:type="frontmatter"'),
        ('<section epub:type="introduction"><h1>Why</h1><p>The body is one.</p></section>', 'epub:type="frontmatter"'),
        ('<section epub:type="appendix"><h1>Doses</h1><p>The body is one.</p></section>', 'epub:type="backmatter"'),
        ('<section epub:type="glossary"><h1>Words</h1><p>The body is one.</p></section>', 'epub:type="backmatter"'),
        ("<p>The body is one.</p>", ""),
        ('<p><span epub:type="pagebreak" id="p1"/>The body is one.</p>', ""),
        ('<div><section epub:type="index"/>The body is one.</div>', ""),
        ("<h1>Index fossils</h1><p>The body is one.</p>", ""),
        ('<table role="presentation"><tr><td><p>The body is one.</p></td></tr></table>', ""),
    ],
)
def test_what_is_text_is_not_marked(body: str, attributes: str) -> None:
    (row,) = drafts(packed(members(page(body, attributes))))
    assert not row.spans and row.text.endswith("The body is one.")


def test_a_mark_that_opens_a_document_says_nothing_of_the_whole() -> None:
    row = one('<p><a epub:type="noteref" href="#n">1</a> The body is one.</p>')
    assert [(span.kind, span.start, span.end) for span in row.spans] == [("footnote_mark", 0, 1)]


def test_a_section_that_is_named_goes_up_to_the_next_heading_of_its_level() -> None:
    row = one(
        "<h1>The heart</h1><p>It beats.</p><h2>References:</h2><p>Nobody.</p><h3>More</h3><p>Nothing.</p><h2>Summary</h2><p>It did.</p>"
    )
    assert marked(row, "references") == ["### References:\n\nNobody.\n\n#### More\n\nNothing."]
    assert left(row) == ["## The heart", "It beats.", "### Summary", "It did."]


def test_a_document_out_of_the_reading_order_is_back_matter() -> None:
    row, notes = drafts(packed(members("<h1>One</h1><p>a</p>", "<h1>Answers</h1><p>b</p>", refs=['linear="yes"', 'linear="no"'])))
    assert not row.spans and marked(notes, "back_matter") == [notes.text]


def test_a_document_without_words_is_dropped_and_so_is_a_picture() -> None:
    items = '<item id="pic" href="cover.svg" media-type="image/svg+xml"/>'
    package = opf(["", ""], items=items).replace('<itemref idref="c0" />', '<itemref idref="pic"/><itemref idref="c0"/>')
    files = members('<div><img src="a.jpg" alt="Cover"/><svg><text>x</text></svg></div>', "<p>Words.</p>", package=package)
    picture, cover, chapter = read(packed(files | {"OEBPS/cover.svg": "<svg/>"}))
    assert isinstance(picture, Dropped) and (picture.id, picture.step) == ("raw/river:00000", "no_text")
    assert isinstance(cover, Dropped) and "OEBPS/text/c0.xhtml has no words" in cover.reason
    assert isinstance(chapter, Draft) and (chapter.id, chapter.title) == ("raw/river:00002", "The River of Blood, part 3")


def test_a_document_of_another_kind_stands_for_what_it_falls_back_on() -> None:
    items = '<item id="x" href="x.pdf" media-type="application/pdf" fallback="y"/><item id="y" href="y.bin" media-type="x/y" fallback="c0"/>'
    package = opf([""], items=items).replace('idref="c0"', 'idref="x"')
    assert one("<p>Words.</p>", package=package).text == "Words."


# ---- EPUB 2 -------------------------------------------------------------------------------------------------------------------

TOC = """<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap>
<navPoint id="a"><navLabel><text>Cover</text></navLabel><content src="text/c0.xhtml"/></navPoint>
<navPoint id="b"><navLabel><text>Chapter 1:  The heart</text></navLabel><content src="text/c2.xhtml#top"/>
<navPoint id="c"><navLabel><text>Valves</text></navLabel><content src="text/c2.xhtml#v"/></navPoint></navPoint>
<navPoint id="d"><navLabel><text>2 Veins</text></navLabel><content src="text/c3.xhtml"/></navPoint></navMap></ncx>"""
NCX_ITEM = f'<item id="ncx" href="toc.ncx" media-type="{epub_package.NCX}"/>'


def test_epub_2_has_its_titles_in_the_ncx_and_its_kinds_in_the_guide() -> None:
    guide = (
        '<guide><reference type="toc" href="text/c1.xhtml"/><reference type="copyright-page" href="text/c3.xhtml#legal"/></guide>'
    )
    dates = '<dc:date opf:event="modification">2020</dc:date><dc:date>0101-01-01</dc:date><dc:date opf:event="publication">1998-05</dc:date>'
    chapters = [
        page(body, doctype=DTD)
        for body in (
            "<p>The River of Blood</p>",
            "<p><a href='c2.xhtml'>The&nbsp;heart</a></p>",
            "<h2>The heart</h2><p>It&nbsp;beats &mdash; always.</p>",
            "<p class='h'>Veins</p><p>They carry.</p>",
        )
    ]
    files = members(*chapters, metadata=dates, items=NCX_ITEM, rest=guide, spine='toc="ncx"') | {"OEBPS/toc.ncx": TOC}
    cover, toc, heart, veins = drafts(packed(files))
    assert [row.title for row in (cover, toc, heart, veins)] == ["Cover", "river, part 2", "Chapter 1: The heart", "2 Veins"]
    assert marked(cover, "front_matter") == [cover.text] and marked(toc, "toc") == ["The heart"]
    assert heart.text == "## The heart\n\nIt beats \u2014 always." and not heart.spans
    assert veins.text == "Veins\n\nThey carry." and not veins.spans and veins.year == 1998


def test_epub_3_has_its_titles_in_the_navigation_document() -> None:
    nav = page(
        '<nav epub:type="landmarks"><ol><li><a href="text/c0.xhtml">Start</a></li></ol></nav>'
        '<nav epub:type="toc"><ol><li><a href="text/c%30.xhtml#x">The <i>heart</i></a></li><li><span>None</span></li></ol></nav>'
    )
    items = f'<item id="nav" href="nav.xhtml" properties="nav" media-type="{XHTML}"/>'
    package = opf([""], items=items).replace("</spine>", '<itemref idref="nav"/></spine>')
    chapter, toc = drafts(packed(members("<p>It beats.</p>", package=package) | {"OEBPS/nav.xhtml": nav}))
    assert chapter.title == "The heart"
    assert toc.text == "- Start\n\n- The heart\n\n- None" and run_steps(toc)[0].text == ""


@pytest.mark.parametrize(
    ("rights", "licence"),
    [
        ("", "unstated"), ("All rights reserved.", "unstated"), ("MIT", "unstated"), ("CC BY-NC 4.0", "cc-by-nc"),
        ("\u00a9 Nobody. See https://creativecommons.org/licenses/by-sa/4.0/", "cc-by-sa"), ("CC0", "cc0"),
    ],
)  # fmt: skip
def test_a_licence_is_one_that_the_file_names(rights: str, licence: str) -> None:
    assert one("<p>a</p>", metadata=f"{DC}<dc:rights>{rights}</dc:rights>").licence == licence


# ---- what is no whole EPUB ----------------------------------------------------------------------------------------------------

BODIES = ("<h1>One</h1><p>Words of one.</p>", HEART, "<h1>Index</h1><p>wound, 3</p>")
BOOK = members(*BODIES)


def test_a_file_that_is_no_zip_or_cut_short_is_an_error() -> None:
    data = packed(BOOK)
    for damaged in (b"", b"hello", b"%PDF-1.4"):
        with pytest.raises(InputError, match=r"^raw/river\.epub: not a zip archive"):
            read(damaged)
    for cut in range(4, len(data), 101):
        with pytest.raises(InputError, match=r"^raw/river\.epub: not a whole zip archive"):
            read(data[:cut])


def test_damaged_bytes_give_rows_or_an_error_and_nothing_else() -> None:
    data = packed(BOOK)
    errors = 0
    for place in range(0, len(data), 3):
        try:
            read(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        except InputError as error:
            assert error.where.startswith("raw/river.epub")
            errors += 1
    assert errors > len(data) // 6


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (epub_package.CONTAINER, None, r": holds no META-INF/container\.xml"),
        (epub_package.CONTAINER, "<container/>", r"container\.xml: names no package"),
        ("OEBPS/book.opf", None, r"book\.opf: is missing"),
        ("OEBPS/book.opf", opf([]), "has no spine"),
        ("OEBPS/book.opf", opf([""]).replace('idref="c0"', 'idref="c9"'), r"book\.opf:1: the spine names 'c9'"),
        ("OEBPS/book.opf", opf([""]).replace("text/c0.xhtml", "../../../etc/passwd"), "is missing"),
        ("OEBPS/book.opf", opf([""]).replace("text/c0.xhtml", "/etc/passwd"), r"!/etc/passwd: is missing"),
        ("OEBPS/book.opf", opf([""]).replace(XHTML, "image/png"), r"c0\.xhtml: is a document of the spine and no XHTML, but image/png"),
        ("OEBPS/book.opf", opf([""]).replace(XHTML, "image/png").replace("<item ", '<item fallback="c0" '), "no XHTML"),
        ("OEBPS/book.opf", opf([""], items=NCX_ITEM), r"toc\.ncx: is missing"),
        ("OEBPS/text/c1.xhtml", None, r"!OEBPS/text/c1\.xhtml: is missing"),
        ("OEBPS/text/c1.xhtml", page("<p>a</p>\n<p>b"), r"!OEBPS/text/c1\.xhtml:2: not well-formed XML"),
        ("OEBPS/text/c1.xhtml", page("<p>a&nbsp;b</p>"), "not well-formed XML"),
        ("OEBPS/text/c1.xhtml", "", r"c1\.xhtml:\d: not well-formed XML"),
        ("OEBPS/text/c1.xhtml", "<html/>", "without <body>"),
        ("OEBPS/text/c1.xhtml", "<book><body/></book>", "<book> with <body>"),
        ("OEBPS/text/c1.xhtml", page("<p>&a;</p>", doctype='<!DOCTYPE html [<!ENTITY a SYSTEM "file:///etc/passwd">]>'), "declares XML entities"),
        ("OEBPS/text/c1.xhtml", page("<p>a</p>", doctype='<!DOCTYPE html [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]>'), "declares XML entities"),
    ],
)  # fmt: skip
def test_what_is_missing_or_wrong_is_named(name: str, content: str | None, problem: str) -> None:
    files = {key: data for key, data in BOOK.items() if key != name} | ({name: content} if content is not None else {})
    with pytest.raises(InputError, match=rf"^raw/river\.epub.*{problem}"):
        read(packed(files))


def test_an_encrypted_book_is_an_error_and_an_encrypted_font_is_none() -> None:
    form = (
        '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container" xmlns:enc="http://www.w3.org/2001/04/xmlenc#">'
        '<enc:EncryptedData><enc:CipherData><enc:CipherReference URI="{}"/></enc:CipherData></enc:EncryptedData></encryption>'
    )
    with pytest.raises(InputError, match=r"river\.epub!OEBPS/text/c1\.xhtml: is encrypted \(DRM\).*without DRM"):
        read(packed(BOOK | {epub_package.ENCRYPTION: form.format("OEBPS/text/c1.xhtml")}))
    assert len(read(packed(BOOK | {epub_package.ENCRYPTION: form.format("OEBPS/font.otf")}))) == 3


def test_a_member_with_a_password_is_an_error() -> None:
    data = bytearray(packed(BOOK))
    entry = data.rindex(b"OEBPS/text/c1.xhtml") - 46
    data[entry + 8] |= 1
    with pytest.raises(InputError, match=r"c1\.xhtml: is locked with a password"):
        read(bytes(data))


def test_a_bomb_is_refused_before_the_first_row() -> None:
    zeros = page("<p>" + " " * 2**21 + "</p>")
    with pytest.raises(InputError, match=r"c1\.xhtml: has 20\d+ bytes packed into \d+: a zip bomb"):
        next(iter(FORMATS["epub_book"](io.BytesIO(packed(members("<p>a</p>", zeros))), "raw/river.epub", "books")))


def test_a_directory_that_lies_about_a_size_gives_no_more_than_it_says() -> None:
    data = bytearray(packed(members("<p>a</p>" * 100)))
    entry = data.rindex(b"OEBPS/text/c0.xhtml") - 46
    data[entry + 24 : entry + 28] = (500).to_bytes(4, "little")
    with pytest.raises(InputError, match=r"c0\.xhtml: is damaged in the EPUB"):
        read(bytes(data))


def test_documents_and_books_have_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = random.Random(1).randbytes(3000).hex()
    monkeypatch.setattr(epub_package, "MEMBER_BYTES", 5000)
    with pytest.raises(InputError, match=r"c0\.xhtml: has 6\d+ bytes, more than 5000"):
        read(packed(members(f"<p>{noise}</p>")))
    monkeypatch.setattr(epub_package, "MEMBER_BYTES", 10**6)
    monkeypatch.setattr(epub_package, "BOOK_BYTES", 10_000)
    with pytest.raises(InputError, match=r"river\.epub: its documents have 12\d+ bytes together, more than 10000"):
        read(packed(members(f"<p>{noise}</p>", f"<p>{noise}</p>")))


def test_deep_nesting_is_read_or_refused() -> None:
    assert one(f"{'<div>' * 240}deep{'</div>' * 240}").text == one(f"<p>{'<i>' * 240}deep{'</i>' * 240}</p>").text == "deep"
    with pytest.raises(InputError, match="not well-formed XML"):
        one(f"{'<div>' * 5000}deep{'</div>' * 5000}")


def test_books_come_in_archives() -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in (("a/good.epub", packed(BOOK)), ("a/bad.epub", b"hello"), ("a/cover.jpg", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    rows = read(sink.getvalue(), "raw/p.tar")
    assert [row.id for row in rows if isinstance(row, Draft)] == [f"raw/p.tar!a/good:{number:05}" for number in range(3)]
    assert [(row.id, row.step) for row in rows if isinstance(row, Dropped)] == [
        ("raw/p.tar!a/bad.epub", "malformed"), ("raw/p.tar", "other_files"),
    ]  # fmt: skip


# ---- properties ---------------------------------------------------------------------------------------------------------------

WORD = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=12)
INLINE = st.sampled_from(
    ["{}", "<b>{}</b>", "<i><b>{}</b></i>", "<a href='#x'>{}</a>", "<sup>{}</sup>", '<a epub:type="noteref" href="#n">{}</a>',
     '<span epub:type="pagebreak">{}</span>']
)  # fmt: skip
BLOCK = st.sampled_from(
    ["<p>{}</p>", "<div>{}</div>", "<h1>{}</h1>", "<h3>{}</h3>", "<ul><li>{}</li></ul>", "<ol><li><p>{}</p></li></ol>", "{}",
     "<blockquote><p>{}</p></blockquote>", "<table><tr><td>{}</td><td/></tr></table>", "<aside epub:type='footnote'>{}</aside>",
     "<dl><dt>{}</dt></dl>", "<figure><figcaption>{}</figcaption></figure>", "<section epub:type='index'><p>{}</p></section>",
     "<span>{}<p/></span>", "<p>{}<br/></p>"]
)  # fmt: skip
PARAGRAPHS = st.lists(st.tuples(BLOCK, st.lists(st.tuples(INLINE, WORD), min_size=1, max_size=4)), min_size=1, max_size=8)
Paragraphs = list[tuple[str, list[tuple[str, str]]]]


@settings(max_examples=200, deadline=None)
@given(PARAGRAPHS)
def test_the_words_of_all_paragraphs_stand_in_the_draft_in_their_order(paragraphs: Paragraphs) -> None:
    body = "".join(
        block.replace("{}", "".join(mark.replace("{}", html.escape(word)) for mark, word in words)) for block, words in paragraphs
    )
    wanted = bare("".join(word for _, words in paragraphs for _, word in words))
    (row,) = read(packed(members(body)))
    if isinstance(row, Dropped):
        assert not wanted and row.step == "no_text"
        return
    assert bare(row.text) == wanted
    assert {span.kind for span in row.spans} <= set(KINDS)
    assert all(0 <= span.start < span.end <= len(row.text) for span in row.spans)
    better, removed = run_steps(row)
    assert len(row.text) == len(better.text) + sum(what.chars for what in removed)


def test_every_character_of_a_book_is_in_the_funnel() -> None:
    terms = Terms(Rules(5, frozenset({"unstated"})), frozenset(), frozenset(), None, (), None)
    funnel = Funnel("books")
    rows = read(packed(members("<img/>", *BODIES)))
    for row in rows:
        if isinstance(row, Dropped):
            funnel = funnel.add(None, (), row)
        else:
            judged = admit(row, terms, None)
            funnel = funnel.add(row, judged.removed, judged.row)
    assert (funnel.records, funnel.drafts, funnel.documents) == (4, 3, 2)
    assert funnel.draft_chars == sum(len(row.text) for row in rows if isinstance(row, Draft))
    assert funnel.draft_chars == funnel.chars + sum(stage.chars for stage in funnel.stages.values())
    assert funnel.draft_bytes == funnel.bytes + sum(stage.bytes for stage in funnel.stages.values())
    assert funnel.records == funnel.documents + sum(stage.dropped for stage in funnel.stages.values())
    assert {
        "no_text",
        "too_short",
        "back_matter",
        "references",
        "figures",
        "tables",
        "formulas",
        "footnotes",
    } <= funnel.stages.keys()
