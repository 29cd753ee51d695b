"""Books as PDF and as text, written by the tests in their real formats. All texts here are invented."""

import io
from collections.abc import Sequence

import pytest

from medschool.corpus.formats import FORMATS
from medschool.corpus.pages import page_kinds, running_heads
from medschool.corpus.steps import KINDS, run_steps
from medschool.errors import InputError
from medschool.rows import Draft, Dropped

Pages = list[list[str]]


def pdf(pages: Pages, outline: Sequence[tuple[str, int]] = (), title: str = "") -> bytes:
    """A PDF file of pages of lines. outline: title of a bookmark and its page, counted from 0."""
    objects = [b"", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"]

    def add(content: bytes) -> int:
        objects.append(content)
        return len(objects)

    def words(text: str) -> bytes:
        return b"(" + text.encode("cp1252").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)") + b")"

    kids = []
    for lines in pages:
        body = b"BT /F1 10 Tf 12 TL 72 740 Td\n" + b"".join(words(line) + b" Tj T*\n" for line in lines) + b"ET"
        content = add(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(body), body))
        box = b"/MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >>"
        kids.append(add(b"<< /Type /Page /Parent 2 0 R %s /Contents %d 0 R >>" % (box, content)))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(b"%d 0 R" % kid for kid in kids), len(kids))
    catalog = b"<< /Type /Catalog /Pages 2 0 R"
    if outline:
        root = add(b"")
        first = len(objects) + 1
        for number, (name, page) in enumerate(outline):
            after = b"" if number + 1 == len(outline) else b" /Next %d 0 R" % (first + number + 1)
            add(b"<< /Title %s /Parent %d 0 R /Dest [%d 0 R /Fit]%s >>" % (words(name), root, kids[page], after))
        objects[root - 1] = b"<< /Type /Outlines /First %d 0 R /Last %d 0 R >>" % (first, len(objects))
        catalog += b" /Outlines %d 0 R" % root
    objects[0] = catalog + b" >>"
    info = add(b"<< /Title %s >>" % words(title))
    data, offsets = b"%PDF-1.4\n", []
    for number, content_ in enumerate(objects, start=1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content_)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    head = b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    trailer = b"trailer << /Size %d /Root 1 0 R /Info %d 0 R >>" % (len(objects) + 1, info)
    return data + head + trailer + b"\nstartxref\n%d\n%%%%EOF" % len(data)


def read(name: str, data: bytes, uri: str) -> list[Draft | Dropped]:
    return list(FORMATS[name](io.BytesIO(data), uri, "books"))


def drafts(name: str, data: bytes, uri: str = "raw/river.pdf") -> list[Draft]:
    rows = read(name, data, uri)
    assert all(isinstance(row, Draft) for row in rows), rows
    return [row for row in rows if isinstance(row, Draft)]


def marked(row: Draft, kind: str) -> str:
    return " ".join(row.text[span.start : span.end] for span in row.spans if span.kind == kind)


LONG = "The heart is a hollow muscle that drives the blood through all the vessels of"
FRONT: Pages = [
    ["THE RIVER OF BLOOD", "A. Inventor"],
    ["Copyright \u00a9 2011 Nobody Press", "All rights reserved."],
    ["CONTENTS", *[f"Chapter {number} Words ........ {number}" for number in range(1, 7)]],
    ["Preface", "This book has been written by nobody at all.", "Chapter 1 of it is short."],
]
FIRST: Pages = [
    [
        "Chapter 1",
        "The heart",
        LONG,
        "the body, and it does so for as long as the body that it is in lives on and on.",
        "It beats.",
        f"{LONG} the inter-",
    ],
    [
        "2 The River of Blood",
        "national body. A beta-blocker slows it, and later on in this text a beta-",
        "blocker slows it once more. Yes.",
    ],
    ["The heart 3", f"{LONG} the body that it is in.", "1.1 The valves", "There are four of them."],
    ["4 The River of Blood", "One line ends the chapter."],
]
SECOND: Pages = [
    ["Chapter 2 The vessels", LONG.replace("heart", "vein"), "which nobody has seen.", "5"],
    ["6 The River of Blood", "A vein has valves as well, and they keep the blood from running back."],
    ["The vessels 7", "References", "1. Inventor A. A book of nothing.", "2. Inventor B. Another book of nothing."],
    ["8 The River of Blood", "3. Inventor C. More of nothing."],
]
INDEX: Pages = [["Index", *[f"word{number}, {number}, {number + 3}-{number + 5}" for number in range(9)], "wound, see word"]]
BOOK = FRONT + FIRST + SECOND + INDEX


def test_a_pdf_book_becomes_its_chapters() -> None:
    front, preface, first, second = drafts("pdf_book", pdf(BOOK))
    assert [row.id for row in (front, preface, first, second)] == [f"raw/river:{number:05}" for number in range(4)]
    assert (first.title, second.title) == ("Chapter 1 The heart", "Chapter 2 The vessels")
    assert {(row.year, row.licence, row.article_type, row.uri) for row in (front, first)} == {
        (2011, "unstated", "book-chapter", "raw/river.pdf")
    }
    assert run_steps(first)[0].text.split("\n\n") == [
        "## Chapter 1 The heart",
        f"{LONG} the body, and it does so for as long as the body that it is in lives on and on. It beats.",
        f"{LONG} the international body. A beta-blocker slows it, and later on in this text a beta-blocker slows it once more. Yes.",
        f"{LONG} the body that it is in.",
        "### 1.1 The valves",
        "There are four of them.",
        "One line ends the chapter.",
    ]
    assert run_steps(second)[0].text.split("\n\n") == [
        "## Chapter 2 The vessels",
        f"{LONG.replace('heart', 'vein')} which nobody has seen.",
        "A vein has valves as well, and they keep the blood from running back.",
    ]


def test_what_is_not_text_of_a_book_is_marked_and_still_there() -> None:
    front, preface, first, second = drafts("pdf_book", pdf(BOOK))
    assert {span.kind for row in (front, preface, first, second) for span in row.spans} <= set(KINDS)
    assert marked(front, "front_matter") == "A. Inventor Copyright \u00a9 2011 Nobody Press All rights reserved."
    assert marked(front, "toc").startswith("CONTENTS Chapter 1 Words ........ 1 Chapter 2")
    assert marked(preface, "front_matter").startswith("Preface This book")
    assert run_steps(front)[0].text == run_steps(preface)[0].text == ""
    assert marked(first, "running_head") == "2 The River of Blood The heart 3 4 The River of Blood"
    assert marked(second, "running_head") == "5 6 The River of Blood The vessels 7 8 The River of Blood"
    assert marked(second, "references").startswith("References 1. Inventor A.")
    assert marked(second, "references").endswith("3. Inventor C. More of nothing.")
    assert marked(second, "back_matter").startswith("Index word0, 0, 3-5") and "see word" in marked(second, "back_matter")
    letters = sorted("".join(line for page in BOOK for line in page).replace(" ", "").replace("-", ""))
    assert (
        sorted(
            "".join(row.text for row in (front, preface, first, second))
            .replace(" ", "")
            .replace("-", "")
            .replace("#", "")
            .replace("\n", "")
        )
        == letters
    )


def test_chapters_follow_the_outline_where_the_pdf_has_one() -> None:
    pages: Pages = [
        ["Preface", "Thanks to all."],
        ["The heart", "It beats for as long as it can.", "Yes."],
        ["It goes on."],
        ["3", "The veins", "They carry."],
    ]
    data = pdf(pages, [("Preface", 0), ("The heart", 1), ("3 The veins", 3)], title="A Book")
    preface, heart, veins = drafts("pdf_book", data)
    assert [row.title for row in (preface, heart, veins)] == ["Preface", "The heart", "3 The veins"]
    assert heart.text == "## The heart\n\nIt beats for as long as it can. Yes.\n\nIt goes on."
    assert run_steps(veins)[0].text == "## The veins\n\nThey carry." and marked(veins, "running_head") == "3"
    assert run_steps(preface)[0].text == ""


def test_a_chapter_of_the_outline_may_begin_in_the_middle_of_a_page() -> None:
    ends = [f"Line {number} of the first chapter is here." for number in range(5)]
    pages: Pages = [["One", "It begins."], [*ends, "2. Two", "It goes on."], ["It ends."]]
    first, second = drafts("pdf_book", pdf(pages, [("One", 0), ("2. Two", 1)]))
    assert first.text.endswith("Line 4 of the first chapter is here.")
    assert (second.title, second.text.split("\n\n")[0]) == ("2. Two", "## 2. Two")


def test_a_pdf_without_chapters_is_cut_every_twenty_pages() -> None:
    data = pdf([[f"Words of page {number} end here."] for number in range(45)], title="A Book")
    rows = drafts("pdf_book", data)
    assert [row.title for row in rows] == ["A Book, pages 1-20", "A Book, pages 21-40", "A Book, pages 41-45"]
    assert "Words of page 20 end here." in rows[1].text and "page 19" not in rows[1].text


def test_a_pdf_of_pictures_is_dropped() -> None:
    (row,) = read("pdf_book", pdf([[], []]), "raw/river.pdf")
    assert isinstance(row, Dropped) and (row.id, row.step) == ("raw/river", "no_text") and "2 pages" in row.reason


def test_a_pdf_cut_short_or_none_at_all_is_an_error() -> None:
    data = pdf(BOOK)
    for damaged in (b"", b"hello", data[: len(data) // 2], data[:-6], b"%PDF-1.4\n%%EOF"):
        with pytest.raises(InputError, match=r"raw/river\.pdf"):
            read("pdf_book", damaged, "raw/river.pdf")


TEXT = f"""THE RIVER OF BLOOD

Contents

CHAPTER I The heart

CHAPTER II The vessels


CHAPTER I

The heart

{LONG}
the body, as was well
known to the old physi-
cians.

- first item
- second item

CHAPTER II
The vessels

They carry blood.
In vain we write.

Bibliography

Nobody. Nothing.
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_text_book_becomes_its_chapters(end: str) -> None:
    front, toc, first, second = drafts("text_book", TEXT.replace("\n", end).encode(), "raw/river.txt")
    assert front.text == "THE RIVER OF BLOOD" and marked(toc, "toc") == toc.text.removeprefix("## ").replace("\n\n", " ")
    assert run_steps(toc)[0].text == ""
    assert (first.title, second.title) == ("CHAPTER I The heart", "CHAPTER II The vessels")
    assert first.text.split("\n\n") == [
        "## CHAPTER I The heart",
        f"{LONG} the body, as was well known to the old physicians.",
        "- first item",
        "- second item",
    ]
    assert run_steps(second)[0].text == "## CHAPTER II The vessels\n\nThey carry blood. In vain we write."


def test_form_feeds_are_pages_with_running_heads() -> None:
    page = "The River\n\n{}\n\nmany words of the page follow here and there\nand {} end.\n\n{}"
    text = "\f".join(
        page.format(f"Page of {word}.", word, number) for number, word in enumerate(("blood", "bone", "skin", "hair"))
    )
    (row,) = drafts("text_book", text.encode(), "raw/river.txt")
    assert row.title == "river, pages 1-4"
    assert marked(row, "running_head") == " ".join(f"The River {number}" for number in range(4))
    assert run_steps(row)[0].text.startswith(
        "Page of blood.\n\nmany words of the page follow here and there and blood end.\n\nPage of bone."
    )


@pytest.mark.parametrize("data", [b"", b" \n", b"\0\1"])
def test_a_text_book_that_is_none_is_an_error(data: bytes) -> None:
    with pytest.raises(InputError, match=r"raw/x\.txt"):
        read("text_book", data, "raw/x.txt")


def test_a_line_that_recurs_inside_pages_or_on_two_pages_only_is_text() -> None:
    pages = [["Head one", "a", "b", "Note", "c", "d", f"{number}."] for number in range(2)] + [["e", "f", "g"]]
    flags = running_heads(pages)
    assert [[line for line, flag in zip(page, found, strict=True) if flag] for page, found in zip(pages, flags, strict=True)] == [
        ["0."], ["1."], []
    ]  # fmt: skip


def test_chapter_headings_on_many_pages_are_no_running_heads() -> None:
    pages = [[f"Chapter {number}", f"words and {number} words.", "y" * number] for number in range(1, 6)]
    assert not any(flag for page in running_heads(pages) for flag in page)
    pages = [[f"Chapter 1 The heart {number}", "y" * number] for number in range(1, 6)]
    assert [page[0] for page in running_heads(pages)] == [False, True, True, True, True]


def test_a_table_of_numbers_is_no_table_of_contents() -> None:
    rows = [f"group {number} {number * 7}" for number in range(20)]
    assert page_kinds([["Table 3. Doses", *rows]]) == [""]
    assert page_kinds([["Contents", *rows], rows, ["Text again, which says something."]]) == ["toc", "toc", ""]
