"""The readers of bulk formats over streams: JSON lines, S2ORC, RedPajama, columns, archives. All texts here are invented."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool import storage
from medschool.corpus import archive, jsonlines
from medschool.corpus.formats import FORMATS
from medschool.corpus.s2orc import KINDS, Mark, insert, render
from medschool.corpus.spool import whole
from medschool.corpus.stated import licence_of, words_of, year_of
from medschool.corpus.steps import KINDS as STEP_KINDS
from medschool.corpus.steps import run_steps
from medschool.errors import InputError
from medschool.rows import Draft, Dropped, Span


class OneWay(io.RawIOBase):
    """A stream that cannot be seeked in, as what comes out of gzip; it counts what was read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces, self.rest, self.taken = pieces, b"", 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.rest = self.rest or next(self.pieces, b"")
        data, self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]
        buffer[: len(data)] = data
        self.taken += len(data)
        return len(data)


def one_way(data: bytes) -> io.BufferedReader:
    return io.BufferedReader(OneWay(iter([data])))


def read(name: str, data: bytes, uri: str = "raw/f") -> list[Draft | Dropped]:
    return list(FORMATS[name](one_way(data), uri, "papers"))


def drafts(name: str, data: bytes, uri: str = "raw/f") -> list[Draft]:
    return [row for row in read(name, data, uri) if isinstance(row, Draft)]


def json_lines(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


# ---- raw streams ------------------------------------------------------------------------------------------------------------

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".tgz": gzip.compress,
    ".zst": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_packed_file_is_a_stream_of_what_was_packed(tmp_path: Path, suffix: str) -> None:
    data = bytes(range(256)) * 20_000
    path = tmp_path / f"a.xml{suffix}"
    half = len(data) // 2
    path.write_bytes(PACKERS[suffix](data[:half]) + PACKERS[suffix](data[half:]))  # two members, as `cat a.gz b.gz` makes
    with storage.open_raw(str(path), "raw/a") as stream:
        assert stream.read(10) == data[:10] and stream.read() == data[10:] and not stream.seekable()


def test_a_plain_file_can_be_seeked_in_and_a_missing_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(b"0123456789")
    with storage.open_raw(str(path), "raw/a") as stream:
        assert stream.seek(5) == 5 and stream.read() == b"56789"
    with pytest.raises(FileNotFoundError):
        storage.open_raw(str(tmp_path / "b.gz"), "raw/b").read()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_every_cut_and_every_changed_byte_of_a_packed_file_is_an_error_at_its_name(tmp_path: Path, suffix: str) -> None:
    data = b"One line of a paper and another one. " * 40
    packed = PACKERS[suffix](data)
    path = tmp_path / f"a{suffix}"
    for cut in range(1, len(packed)):
        path.write_bytes(packed[:cut])
        with storage.open_raw(str(path), "raw/a") as stream, pytest.raises(InputError, match=r"^raw/a: not a whole"):
            stream.read()
    noticed = 0
    for place in range(len(packed)):
        path.write_bytes(packed[:place] + bytes([packed[place] ^ 0x55]) + packed[place + 1 :])
        with storage.open_raw(str(path), "raw/a") as stream:
            try:
                assert stream.read() == data  # a changed name or time stamp in the header of gzip
            except InputError:
                noticed += 1
    assert noticed > 0.8 * len(packed)


def test_a_file_read_in_one_piece_has_a_limit() -> None:
    assert whole(io.BytesIO(b"12345"), "raw/a", 5) == b"12345"
    with pytest.raises(InputError, match="more than 4 bytes"):
        whole(io.BytesIO(b"12345"), "raw/a", 4)


# ---- JSON lines ---------------------------------------------------------------------------------------------------------------

BAD_LINES = {
    b'{"a": 1': "Expecting",
    b'{"a": "\xff"}': "utf-8",
    b'\xef\xbb\xbf{"a": 1}': "byte order mark",
    b'{"a": "\0"}': "NUL",
    b'{"a": NaN}': "NaN",
    b'{"a": -Infinity}': "Infinity",
    b'{"a": 1, "b": {"c": 1, "c": 2}}': "'c' twice",
    b"[" * 100_000: "recursion",
    b'{"a": ' + b"[" * 900_000 + b"]" * 900_000 + b"}": "recursion",
    b'{"a": "\\ud800"}': "half a character",
    b'{"\\ud800": 1}': "half a character",
    b"[1]": "not a JSON object",
    b"null": "not a JSON object",
    b'{"a": 1}{"a": 2}': "Extra data",
    b'{"a": ' + b"9" * 5000 + b"}": "digits",
    b"\x1f\x8b\x08": "utf-8",
}


@pytest.mark.parametrize("bad", BAD_LINES, ids=[str(number) for number in range(len(BAD_LINES))])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_bad_line_is_set_aside_with_its_number_and_the_next_one_goes_on(bad: bytes, end: bytes) -> None:
    rows = list(jsonlines.records(one_way(end.join([b'{"n": 1}', b"", bad, b'{"n": "\\ud83d\\ude00"}'])), "raw/f", "web"))
    first, dropped, last = rows
    assert isinstance(first, jsonlines.Record) and isinstance(last, jsonlines.Record) and isinstance(dropped, Dropped)
    assert (first.line, first.values, last.line, last.values) == (1, {"n": 1}, 4, {"n": "\U0001f600"})
    assert (dropped.id, dropped.step, dropped.uri) == ("raw/f:3", "malformed", "raw/f")
    assert BAD_LINES[bad].lower() in dropped.reason.lower() and dropped.reason.startswith("line 3: ")
    assert dropped.sample == bad.decode("utf-8", "replace")[:200]


def test_a_line_without_end_is_passed_over_in_pieces() -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"n": 1}\n{"text": "'
        for _ in range(40):
            yield b"x" * 2**20
        yield b'"}\n{"n": 3}'

    raw = OneWay(pieces())
    longest = 0
    rows = []
    for row in jsonlines.records(io.BufferedReader(raw), "raw/f", "web", line_bytes=2**20):
        rows.append(row)
        longest = max(longest, len(str(row)))
    assert raw.taken > 40 * 2**20 and longest < 1000
    assert [row.line if isinstance(row, jsonlines.Record) else row.reason for row in rows] == [
        1, f"line 2: longer than {2**20} bytes", 3
    ]  # fmt: skip


@pytest.mark.parametrize("rest", [b"", b"\n", b'\n{"n": 2}', b"xy", b'xy\n{"n": 2}'])
def test_a_line_of_just_the_longest_length_and_one_more(rest: bytes) -> None:
    line = b'{"n": "12345678"}'
    rows = list(jsonlines.records(one_way(line + rest), "raw/f", "web", line_bytes=len(line) + 1))
    fits = len((line + rest).split(b"\n")[0]) <= len(line) + (b"\n" not in rest)
    assert isinstance(rows[0], jsonlines.Record if fits else Dropped)
    assert len(rows) == 1 + rest.endswith(b"}")
    assert not rest.endswith(b"}") or rows[1] == jsonlines.Record(2, {"n": 2}, '{"n": 2}')


@given(st.lists(st.one_of(st.binary(max_size=30), st.just(b'{"text": "a"}'), st.just(b"{")), max_size=8))
def test_any_bytes_give_rows_for_every_line_that_is_not_blank(parts: list[bytes]) -> None:
    lines = [part.replace(b"\n", b"") for part in parts]
    try:
        rows = list(jsonlines.records(one_way(b"\n".join(lines)), "raw/f", "web"))
    except InputError:
        rows = []
    numbers = [row.line if isinstance(row, jsonlines.Record) else int(row.id.rpartition(":")[2]) for row in rows]
    assert numbers == [number for number, line in enumerate(lines, start=1) if line.strip()]


# ---- S2ORC --------------------------------------------------------------------------------------------------------------------


def paper(text: str | None, ids: dict[str, Any] | None = None, licence: Any = "CCBY", **annotations: Any) -> dict[str, Any]:
    found = {key: value if value is None or isinstance(value, str) else json.dumps(value) for key, value in annotations.items()}
    return {
        "corpusid": 11,
        "externalids": {"pubmed": "123", "pubmedcentral": "777", "doi": "10.1/x"} if ids is None else ids,
        "content": {"source": {"oainfo": {"license": licence}}, "text": text, "annotations": found},
    }


def at(text: str, *parts: str, **attributes: Any) -> list[dict[str, Any]]:
    extra = {"attributes": attributes} if attributes else {}
    return [{"start": text.index(part), "end": text.index(part) + len(part), **extra} for part in parts]


PAPER = "A Heart\nJ. Doe\nNowhere\nIt beats.\nMethods\nWe saw [1] it.\nTwice.\nSub\nMore.\nFig. 1 A heart.\n[1] Doe. Old."


def annotated() -> dict[str, Any]:
    header, sub = at(PAPER, "Methods", n="2"), at(PAPER, "Sub", n="2.1")
    return paper(
        PAPER, title=at(PAPER, "A Heart"), author=at(PAPER, "J. Doe"), authoraffiliation=at(PAPER, "Nowhere"),
        authorlastname=at(PAPER, "Doe"), abstract=at(PAPER, "It beats."), sectionheader=header + sub,
        paragraph=at(PAPER, "We saw [1] it.", "Twice.", "More."), bibref=at(PAPER, "[1]"), bibentry=at(PAPER, "[1] Doe. Old."),
        figure=at(PAPER, "Fig. 1 A heart."), table=None, formula="null", venue="[]",
    )  # fmt: skip


def test_an_s2orc_paper_becomes_headings_paragraphs_and_spans() -> None:
    (row,) = drafts("s2orc", json_lines(annotated()))
    blocks = ["J. Doe\nNowhere", "It beats.", "## Methods", "We saw [1] it.", "Twice.", "### Sub", "More.", "Fig. 1 A heart."]
    assert row.text.split("\n\n") == ["A Heart", *blocks, "[1] Doe. Old."]
    assert (row.id, row.title, row.licence, row.year, row.uri) == ("pmc:777", "A Heart", "cc-by", None, "raw/f")
    assert {(span.kind, row.text[span.start : span.end]) for span in row.spans} == {
        ("authors", "J. Doe"), ("authors", "Doe"), ("affiliations", "Nowhere"), ("citation", "[1]"), ("figure", "Fig. 1 A heart."),
        ("references", "[1] Doe. Old."),
    }  # fmt: skip
    kept, removed = run_steps(row)
    assert kept.text == "A Heart\n\nIt beats.\n\n## Methods\n\nWe saw it.\n\nTwice.\n\n### Sub\n\nMore."
    assert {step.step for step in removed} == {"authors", "references", "citation_mentions", "figures"}


def test_every_kind_of_span_belongs_to_a_corpus_step() -> None:
    assert set(KINDS.values()) <= set(STEP_KINDS)


def test_s2orc_offsets_count_characters_and_come_as_texts_out_of_range_and_overlapping() -> None:
    text = "\U0001f600\u00e4 [1] b"
    marks = [
        {"start": "3", "end": "6"},
        {"start": 3, "end": 999},
        {"start": -5, "end": 1},
        {"start": 6, "end": 6},
        {"start": 50, "end": 60},
    ]
    (row,) = drafts("s2orc", json_lines(paper(text, bibref=marks)))
    assert row.text == text
    assert [row.text[span.start : span.end] for span in row.spans] == ["\U0001f600", "[1]", "[1] b"]


def test_an_s2orc_header_is_one_line_and_splits_the_text_even_where_none_is() -> None:
    text = "One.Two\nlines Three."
    (row,) = drafts("s2orc", json_lines(paper(text, sectionheader=at(text, "Two\nlines"), paragraph=at(text, "One.", "Three."))))
    assert row.text == "One.\n\n## Two lines \n\nThree."


def test_an_s2orc_text_without_paragraphs_has_one_a_line() -> None:
    (row,) = drafts("s2orc", json_lines(paper("One.\nTwo.\n\n\nThree.")))
    assert row.text == "One.\n\nTwo.\n\n\nThree."


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ({"pubmedcentral": "PMC5", "pubmed": "1"}, "pmc:5"),
        ({"pubmedcentral": None, "pubmed": 12}, "pmid:12"),
        ({"pubmedcentral": "", "pubmed": None}, "corpusid:11"),
        ({}, "corpusid:11"),
    ],
)
def test_s2orc_ids(ids: dict[str, Any], expected: str) -> None:
    assert drafts("s2orc", json_lines(paper("Text.", ids)))[0].id == expected


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (paper("T.", bibref="[{"), "annotations.bibref cannot be read"),
        (paper("T.", bibref='[{"start": "x", "end": 2}]'), "annotations.bibref"),
        (paper("T.", bibref='[{"start": 0}]'), "annotations.bibref"),
        (paper("T.", bibref='[{"start": true, "end": 1}]'), "annotations.bibref"),
        (paper("T.", bibref='{"start": 0, "end": 1}'), "annotations.bibref"),
        (paper("T.", bibref="5"), "annotations.bibref"),
        (paper("T.", bibref="[" * 100_000), "annotations.bibref"),
        (paper("T.") | {"content": "T."}, "content is 'T.'"),
        (paper(5), "content.text is 5"),  # type: ignore[arg-type]
        ({"content": {"text": "T."}}, "without pubmedcentral"),
    ],
)
def test_a_malformed_s2orc_record_does_not_spoil_the_next_one(record: dict[str, Any], reason: str) -> None:
    dropped, row = read("s2orc", json_lines(record, paper("Next.")))
    assert isinstance(dropped, Dropped) and isinstance(row, Draft)
    assert dropped.step == "malformed" and reason in dropped.reason and dropped.reason.startswith("line 1: ")


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_an_s2orc_record_without_text_is_dropped(text: str | None) -> None:
    (row,) = read("s2orc", json_lines(paper(text)))
    assert isinstance(row, Dropped) and (row.id, row.step) == ("pmc:777", "no_text")


WORDS = st.text(alphabet="ab. \n", max_size=40)
SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)), max_size=6)


@given(WORDS, st.dictionaries(st.integers(0, 40), st.text(alphabet="#\n ", max_size=3), max_size=5), SPANS)
def test_insertions_move_spans_as_a_walk_over_every_character_does(
    text: str, added: dict[int, str], places: list[tuple[int, int]]
) -> None:
    added = {position: words for position, words in added.items() if position <= len(text)}
    spans = [Span("k", start, min(start + size, len(text))) for start, size in places if start < len(text)]
    walked: list[tuple[str, int | None]] = []
    for position in range(len(text) + 1):
        walked += [(character, None) for character in added.get(position, "")]
        walked += [(text[position], position)] if position < len(text) else []
    where = {old: new for new, (_, old) in enumerate(walked) if old is not None}
    got, moved = insert(text, added, spans)
    assert got == "".join(character for character, _ in walked)
    assert [(span.start, span.end) for span in moved] == [(where[span.start], where[span.end - 1] + 1) for span in spans]


@settings(max_examples=200)
@given(WORDS, st.fixed_dictionaries({key: SPANS for key in ("sectionheader", "paragraph", "title", "bibref")}))
def test_a_rendered_text_keeps_every_word_and_what_spans_mark(text: str, places: dict[str, list[tuple[int, int]]]) -> None:
    marks = {
        key: sorted(
            (Mark(start, min(start + size, len(text)), {}) for start, size in found if start < len(text)),
            key=lambda mark: (mark.start, mark.end),
        )
        for key, found in places.items()
    }
    got, spans = render(text, marks)
    assert [c for c in got if c not in "#\n "] == [c for c in text if c not in "#\n "]

    def words(part: str) -> str:
        return "".join(character for character in part if character not in "#\n ")

    wanted = sorted(words(text[mark.start : mark.end]) for mark in marks["bibref"])
    assert sorted(words(got[span.start : span.end]) for span in spans) == wanted
    for line in got.split("\n"):
        assert "## " not in line[1:]  # a heading begins its line
    blocks = got.split("\n\n")
    for mark in marks["sectionheader"][:1]:
        if text[mark.start : mark.end].strip():
            header = " ".join(text[mark.start : mark.end].split())
            assert any(
                block.strip().startswith("## ") and " ".join(block[block.index("## ") + 3 :].split()) == header
                for block in blocks
            )


# ---- RedPajama ----------------------------------------------------------------------------------------------------------------


def test_redpajama_version_1_with_meta_as_object_and_as_text() -> None:
    meta = {"source": "cc/2099", "url": "https://e.org", "language": "en", "timestamp": "2023-01-01"}
    page = {"text": "A page.\nOf lines.", "red_pajama_subset": "common_crawl"}
    rows = drafts("redpajama", json_lines(page | {"meta": meta}, page | {"meta": json.dumps(meta)}, page | {"meta": str(meta)}))
    assert [(row.id, row.text, row.language, row.year, row.article_type, row.licence) for row in rows] == [
        (f"raw/f:{line}", "A page.\nOf lines.", "en", None, "common_crawl", "unstated") for line in (1, 2, 3)
    ]


def test_redpajama_states_ids_titles_years_and_licences_where_it_has_them() -> None:
    arxiv = {"text": "T.", "meta": {"arxiv_id": "9912.1", "yymm": "9912"}, "red_pajama_subset": "arxiv"}
    book = {"text": "T.", "meta": {"short_book_title": "A  Tale", "publication_date": 1922}, "red_pajama_subset": "book"}
    code = {"text": "T.", "meta": {"license": "MIT", "language": [{"name": "C"}]}, "red_pajama_subset": "github"}
    page = {"raw_content": "T.", "doc_id": "2099/en.gz/7", "title": "P", "language": "de", "quality_signals": "{}"}
    rows = drafts("redpajama", json_lines(arxiv, book, code, page))
    assert [(row.id, row.title, row.year, row.licence, row.language, row.article_type) for row in rows] == [
        ("9912.1", "", 1999, "unstated", "", "arxiv"),
        ("raw/f:2", "A Tale", 1922, "unstated", "", "book"),
        ("raw/f:3", "", None, "mit", "", "github"),
        ("2099/en.gz/7", "P", None, "unstated", "de", "web"),
    ]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"meta": {}}, "without text"),
        ({"text": None}, "without text"),
        ({"text": 5}, "the text is 5"),
        ({"text": "T.", "meta": [1]}, "meta is [1]"),
        ({"text": "T.", "meta": "{'a': print()}"}, "meta cannot be read (malformed node"),
        ({"text": "T.", "meta": "{'a'"}, "meta cannot be read"),
        ({"text": "T.", "meta": "{'a': " + "[" * 50_000}, "meta cannot be read"),
        ({"text": "T.", "meta": "words"}, "Expecting value"),
    ],
)
def test_a_malformed_redpajama_record_does_not_spoil_the_next_one(record: dict[str, Any], reason: str) -> None:
    dropped, row = read("redpajama", json_lines(record, {"text": "Next."}))
    assert isinstance(dropped, Dropped) and isinstance(row, Draft)
    assert dropped.step == "malformed" and reason in dropped.reason


@pytest.mark.parametrize("name", ["s2orc", "redpajama"])
@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_json_lines_without_a_line_are_an_error(name: str, data: bytes) -> None:
    with pytest.raises(InputError, match="raw/f: the file is empty"):
        read(name, data)


# ---- what records state -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "group"),
    [
        ("", "unstated"), ("CCBY", "cc-by"), ("CCBYNCND", "cc-by-nc-nd"), ("CC BY-SA", "cc-by-sa"), ("ccbyncsa", "cc-by-nc-sa"),
        ("cc-by-4.0", "cc-by"), ("https://creativecommons.org/licenses/by-nc/4.0/", "cc-by-nc"), ("CC0", "cc0"), ("MIT", "mit"),
        ("nlm-medline", "nlm-medline"), ("all rights reserved", "other"),
    ],
)  # fmt: skip
def test_stated_licences(words: str, group: str) -> None:
    assert licence_of(words) == group


def test_stated_words_and_years() -> None:
    assert words_of({"a": None, "b": True, "c": " x \n y "}, "a", "b", "c") == "x y"
    assert words_of({"a": 0}, "a") == "0" and words_of({"a": [1]}, "a", "z") == ""
    assert [year_of(words) for words in ("2020-01-31", "May 1922", "12020", "", "99")] == [2020, 1922, None, None, None]


# ---- columns ------------------------------------------------------------------------------------------------------------------


def as_parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def as_stream(table: pa.Table, rows: int = 2) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return sink.getvalue()


COLUMNS: dict[str, Callable[[pa.Table], bytes]] = {"parquet": as_parquet, "datasets": as_stream}
ROWS = pa.table(
    {
        "other": [1, 2, 3],
        "text": ["First.", None, "Third."],
        "id": [7, 8, None],
        "title": ["A  title", None, None],
        "license": ["CC BY", None, None],
        "year": ["2001-02-03", None, None],
        "article_type": ["abstract", None, None],
        "language": ["en", None, None],
    }
)


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_columns_become_drafts(name: str, kind: pa.DataType) -> None:
    table = ROWS.set_column(1, "text", ROWS.column("text").cast(pa.string()).cast(kind))
    first, empty, third = read(name, COLUMNS[name](table), "raw/x.ext")
    assert first == Draft("7", "papers", "First.", "A title", "cc-by", 2001, "abstract", "raw/x.ext", (), "en")
    assert isinstance(empty, Dropped) and (empty.id, empty.step) == ("8", "no_text")
    assert third == Draft("raw/x:0000002", "papers", "Third.", "", "unstated", None, "text", "raw/x.ext")


def test_a_seekable_parquet_file_is_read_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(as_parquet(pa.table({"text": [f"Row {number}." for number in range(5000)]}), row_group_size=1000))
    with storage.open_raw(str(path), "raw/a.parquet") as stream:
        rows = list(FORMATS["parquet"](stream, "raw/a.parquet", "web"))
    assert [row.text for row in rows if isinstance(row, Draft)] == [f"Row {number}." for number in range(5000)]


def test_a_dataset_saved_to_disk_is_read_from_its_arrow_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": ["One.", "Two.", "Three."], "id": ["a", "b", "c"]}).save_to_disk(
        str(tmp_path / "d"), num_shards=2
    )
    found = storage.list_files(str(tmp_path / "d" / "*.arrow"))
    assert len(found) == 2
    rows = [row for info in found for row in drafts("datasets", Path(info.uri).read_bytes())]
    assert [(row.id, row.text) for row in rows] == [("a", "One."), ("b", "Two."), ("c", "Three.")]


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (pa.table({"body": ["a"]}), "no column `text`, but body"),
        (pa.table({"text": [1]}), "holds int64, not texts"),
        (pa.table([["a"], ["b"]], names=["text", "text"]), "two columns `text`"),
    ],
)
def test_columns_that_do_not_fit_are_an_error(name: str, table: pa.Table, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        read(name, COLUMNS[name](table))


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_cut_short_anywhere_are_an_error(name: str) -> None:
    data = COLUMNS[name](pa.table({"text": [f"Row {number} of a table." for number in range(20)]}))
    for cut in range(0, len(data), 7):
        with pytest.raises(InputError, match=r"^raw/f: "):
            read(name, data[:cut])


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_with_damaged_bytes_give_rows_or_an_error_and_nothing_else(name: str) -> None:
    data = COLUMNS[name](pa.table({"text": [f"Row {number} of a table." for number in range(20)]}))
    errors = 0
    for place in range(0, len(data), 3):
        try:
            read(name, data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        except InputError:
            errors += 1
    assert errors > 20


def test_a_row_of_parquet_that_is_not_utf8_is_set_aside() -> None:
    data = as_parquet(
        pa.table({"text": ["good", "baXd", "fine"]}), use_dictionary=False, write_statistics=False, compression="none"
    )
    assert data.count(b"baXd") == 1
    first, dropped, last = read("parquet", data.replace(b"baXd", b"ba\xffd"))
    assert isinstance(first, Draft) and isinstance(last, Draft) and isinstance(dropped, Dropped)
    assert dropped.step == "malformed" and dropped.reason.startswith("row 1: ")


# ---- archives -----------------------------------------------------------------------------------------------------------------

OBO = b'format-version: 1.2\n\n[Term]\nid: HP:1\nname: One\ndef: "It is one." []\n'


def package(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return sink.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_a_reader_runs_over_every_member_of_its_kind() -> None:
    lines = json_lines({"text": "One."}, {"text": "Two."})
    long_name = "a/" + "b" * 150 + "/c.JSONL"
    data = package(
        special("a", tarfile.DIRTYPE), ("a/x.jsonl", lines), ("a/fig.jpg", b"\xff"), ("LICENSE", b""), (long_name, lines[:16])
    )
    rows = read("redpajama", data, "raw/p.tar")
    assert [(row.text, row.uri) for row in rows if isinstance(row, Draft)] == [
        ("One.", "raw/p.tar!a/x.jsonl"), ("Two.", "raw/p.tar!a/x.jsonl"), ("One.", f"raw/p.tar!{long_name}")
    ]  # fmt: skip
    (others,) = [row for row in rows if isinstance(row, Dropped)]
    assert (others.step, others.reason) == ("other_files", "2 members of other kinds: .jpg 1, no suffix 1")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.zst"])
def test_archives_come_packed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    data = package(("one.obo", OBO))
    path.write_bytes(PACKERS.get(path.suffix, bytes)(data))
    with storage.open_raw(str(path), f"raw/p{suffix}") as stream:
        (row,) = FORMATS["hpo"](stream, f"raw/p{suffix}", "books")
    assert isinstance(row, Draft) and (row.id, row.uri) == ("HP:1", f"raw/p{suffix}!one.obo")


def test_members_that_lead_out_or_are_no_files_are_set_aside() -> None:
    rows = read(
        "hpo",
        package(
            ("/etc/x.obo", OBO), ("a/../../x.obo", OBO), special("s.obo", tarfile.SYMTYPE, "/etc/passwd"),
            special("h.obo", tarfile.LNKTYPE, "one.obo"), special("d.obo", tarfile.CHRTYPE), special("f.obo", tarfile.FIFOTYPE),
            ("one.obo", OBO), ("one.obo", OBO),
        ),
        "raw/p.tar",
    )  # fmt: skip
    assert [(row.id, row.step) for row in rows if isinstance(row, Dropped)] == [
        (f"raw/p.tar!{name}", "malformed")
        for name in ("/etc/x.obo", "a/../../x.obo", "s.obo", "h.obo", "d.obo", "f.obo", "one.obo")
    ]
    assert [row.id for row in rows if isinstance(row, Draft)] == ["HP:1"]


def test_a_member_that_cannot_be_read_is_one_malformed_record() -> None:
    rows = read("hpo", package(("bad.obo", b"hello"), ("good.obo", OBO)), "raw/p.tar")
    assert isinstance(rows[0], Dropped) and isinstance(rows[1], Draft)
    assert (rows[0].id, rows[0].step, rows[0].uri) == ("raw/p.tar!bad.obo:1", "malformed", "raw/p.tar!bad.obo")


def test_seekable_formats_are_read_out_of_an_archive() -> None:
    rows = drafts("parquet", package(("a/x.parquet", as_parquet(pa.table({"text": ["One."]})))), "raw/p.tar")
    assert [(row.id, row.text) for row in rows] == [("raw/p.tar!a/x:0000000", "One.")]


def test_an_archive_cut_short_anywhere_is_an_error() -> None:
    data = package(*[(f"{number}.obo", OBO) for number in range(4)])
    marked = len(data.rstrip(b"\0")) // 512 * 512 + 512
    for cut in range(0, marked + 1, 64):
        with pytest.raises(InputError, match=r"^raw/p\.tar: not a whole tar archive"):
            read("hpo", data[:cut], "raw/p.tar")
    assert len(read("hpo", data[: marked + 512], "raw/p.tar")) == 4


def test_a_damaged_header_is_not_taken_for_the_end() -> None:
    data = package(("1.obo", OBO), ("2.obo", OBO))
    second = data.index(b"2.obo")
    with pytest.raises(InputError, match="not a whole tar archive"):
        read("hpo", data[: second + 10] + b"\xff" + data[second + 11 :], "raw/p.tar")


def test_damage_of_the_packing_is_damage_of_the_archive_not_of_a_member(tmp_path: Path) -> None:
    path = tmp_path / "p.tar.gz"
    packed = gzip.compress(package(*[(f"{number}.obo", OBO * 50) for number in range(100)]), 0)
    for cut in (len(packed) // 2, len(packed) - 4):
        path.write_bytes(packed[:cut])
        with (
            storage.open_raw(str(path), "raw/p.tar.gz") as stream,
            pytest.raises(InputError, match=r"^raw/p\.tar\.gz: not a whole gzip file"),
        ):
            list(FORMATS["hpo"](stream, "raw/p.tar.gz", "books"))


def test_a_long_extension_header_is_refused_before_it_is_read() -> None:
    header = special("x", tarfile.GNUTYPE_LONGNAME)
    header.size = archive.HEADER_BYTES + 1
    raw = OneWay(iter([header.tobuf(tarfile.GNU_FORMAT), *[b"\0" * 2**20] * 50]))
    with pytest.raises(InputError, match="extension header"):
        list(FORMATS["hpo"](io.BufferedReader(raw), "raw/p.tar", "books"))
    assert raw.taken < 2 * 2**20


def test_an_archive_without_a_member_of_the_format_is_an_error() -> None:
    with pytest.raises(InputError, match=r"holds no file that ends in \.obo"):
        read("hpo", package(("a.txt", b"")), "raw/p.tar")
    with pytest.raises(InputError, match="not a whole tar archive"):
        read("hpo", b"", "raw/p.tar")
