"""Reading a source part by part: compared with a plain loop, killed in the middle, fed with broken files. No Ray."""

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medschool.corpus import parts as parts_module
from medschool.corpus import pieces as pieces_module
from medschool.corpus.admit import QUARANTINE, admit, terms_of
from medschool.corpus.budget import check_budget
from medschool.corpus.clean import content_key
from medschool.corpus.finish import Finished, finish_part, hashes_of, repeats
from medschool.corpus.formats import FORMATS
from medschool.corpus.marks import Mark, marks_in
from medschool.corpus.parts import Part, parts_of, read_part
from medschool.errors import InputError, StageError, StorageError
from medschool.procedure import stages
from medschool.recipe import Recipe, load
from medschool.recipe.corpus import Clean
from medschool.rows import DOCUMENT_SCHEMA, DROPPED_SCHEMA, Document, Dropped

RECIPE = """\
name: parts
seed: 3
model: {uri: raw/models/none, dtype: fp32}
sources:
  papers: {files: [{uri: "raw/medline/*.xml.gz", format: medline}], licences: [nlm-medline]}
  general: {files: [{uri: "raw/prose/*.txt", format: prose, licence: cc0}], licences: [cc0]}
clean: {min_chars: 40}
tokens: {row_tokens: 64, heldout_tokens: 600, heldout_document_tokens: 64}
pretrain: {batch_rows: 2, length: {steps: 1}, optimizer: {lr: 1e-2, warmup_fraction: 0.1}}
variants: {base: {}, trained: {weights: {papers: 1}}}
cluster: {num_workers: 1, micro_batch_tokens: 256, checkpoint_every_steps: 4}
"""
ABSTRACT = "The dose was given to patient number {} of the ward, and the fever fell within a day."


def record(pmid: int, title: str, abstract: str, copyright: str = "") -> str:
    notice = f"<CopyrightInformation>{copyright}</CopyrightInformation>" if copyright else ""
    return (
        f"<PubmedArticle><MedlineCitation><PMID Version='1'>{pmid}</PMID><Article><ArticleTitle>{title}</ArticleTitle><Abstract>"
        f"<AbstractText>{abstract}</AbstractText>{notice}</Abstract><Language>eng</Language></Article></MedlineCitation></PubmedArticle>"
    )


def write_papers(store: Path, files: int = 3, each: int = 5) -> Recipe:
    """`files` files of `each` records; every file repeats the first record of the first, and has one that is not licensed."""
    folder = store / "raw" / "medline"
    folder.mkdir(parents=True)
    for number in range(files):
        texts = [ABSTRACT.format(0), *(ABSTRACT.format(100 * number + row) for row in range(1, each))]
        records = [record(100 * number + row, "A trial", text) for row, text in enumerate(texts)]
        records.append(
            record(100 * number + 99, "Owned", "Nobody may copy what stands in this short abstract.", "Copyright 2020 X.")
        )
        write_xml(folder / f"{number}.xml.gz", "".join(records))
    (store / "tiny.yaml").write_text(RECIPE)
    return load(store / "tiny.yaml")


def write_xml(path: Path, records: str) -> None:
    path.write_bytes(gzip.compress(f"<?xml version='1.0'?><PubmedArticleSet>{records}</PubmedArticleSet>".encode(), mtime=0))


def read(recipe: Recipe, store: Path, source: str = "papers") -> tuple[tuple[Part, ...], list[Mark]]:
    parts, terms = parts_of(recipe, source, str(store)), terms_of(recipe, source, str(store))
    done = marks_in(str(store / "work"))
    for part in parts:
        if part.number not in done:
            read_part(part, terms, str(store / "work"))
    return parts, list(marks_in(str(store / "work")).values())


def finish(store: Path, marks: list[Mark], out: str = "out") -> list[Finished]:
    copies = repeats(hashes_of(marks, str(store / "work")))
    return [finish_part(mark, rows, str(store / "work"), str(store / out)) for mark, rows in zip(marks, copies, strict=True)]


def rows_in(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def plain_loop(recipe: Recipe, store: Path) -> tuple[list[Document], list[Dropped]]:
    """The same source, one record after the other, everything in memory."""
    terms, kept, aside, seen = terms_of(recipe, "papers", str(store)), [], [], set()
    for path in sorted((store / "raw" / "medline").iterdir()):
        with gzip.open(path) as stream:
            for row in FORMATS["medline"](stream, f"raw/medline/{path.name}", "papers"):  # type: ignore[arg-type]
                became = row if isinstance(row, Dropped) else admit(row, terms, None).row
                if isinstance(became, Document) and content_key(became) not in seen:
                    seen.add(content_key(became))
                    kept.append(became)
                else:
                    aside.append(became)
    return kept, aside


def test_parts_hold_what_a_plain_loop_keeps(tmp_path: Path) -> None:
    recipe = write_papers(tmp_path)
    parts, marks = read(recipe, tmp_path)
    finished = finish(tmp_path, marks)
    kept, aside = plain_loop(recipe, tmp_path)
    assert len(parts) == 3 and len(kept) == 13 and len(aside) == 5
    assert rows_in(tmp_path / "out" / "documents") == [vars(document) for document in kept]
    dropped = rows_in(tmp_path / "out" / "dropped")
    assert sorted(row["id"] for row in dropped) == sorted(row.id for row in aside)
    assert (
        Counter(row["step"] for row in dropped)
        == {"licence": 3, "duplicate": 2}
        == sum((part.aside for part in finished), Counter())
    )
    assert sum(part.documents for part in finished) == 13
    assert sum(part.chars for part in finished) == sum(len(document.text) for document in kept)
    assert sum((part.licences for part in finished), Counter()) == Counter(document.licence for document in kept)
    for part in finished:
        for file in part.files:
            assert (tmp_path / "out" / file.path).stat().st_size == file.size_bytes
    for folder, schema in (("documents", DOCUMENT_SCHEMA), ("dropped", DROPPED_SCHEMA), ("quarantine", DROPPED_SCHEMA)):
        assert pq.read_schema(tmp_path / "out" / folder / "00001.parquet").equals(schema)


def test_two_readings_give_the_same_bytes_and_small_row_groups_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_papers(tmp_path, files=2, each=20)
    digests = []
    for rows in (1000, 1000, 3):
        monkeypatch.setattr(pieces_module, "PIECE_ROWS", rows)
        finished = finish(tmp_path, read(recipe, tmp_path)[1], f"out{len(digests)}")
        digests.append([file.sha256 for part in finished for file in part.files])
        for path in (tmp_path / "work" / "read").rglob("*.json"):
            path.unlink()
    assert digests[0] == digests[1] != digests[2]
    assert rows_in(tmp_path / "out0" / "documents") == rows_in(tmp_path / "out2" / "documents")
    assert pq.ParquetFile(tmp_path / "out2" / "documents" / "00000.parquet").num_row_groups >= 20 // 3


def test_a_killed_reading_goes_on_where_it_was(tmp_path: Path) -> None:
    recipe = write_papers(tmp_path)
    parts, terms = parts_of(recipe, "papers", str(tmp_path)), terms_of(recipe, "papers", str(tmp_path))
    once = [file.sha256 for part in finish(tmp_path, read(recipe, tmp_path)[1], "whole") for file in part.files]
    for path in (tmp_path / "work" / "read").rglob("*.json"):
        path.unlink()
    for part in parts[:2]:
        read_part(part, terms, str(tmp_path / "work"))
    for part in parts[:2]:  # whoever read them again would find nothing
        Path(part.files[0].uri).rename(f"{part.files[0].uri}.away")
    done = marks_in(str(tmp_path / "work"))
    assert list(done) == [0, 1]
    read_part(parts[2], terms, str(tmp_path / "work"))
    again = finish(tmp_path, list(marks_in(str(tmp_path / "work")).values()), "again")
    assert [file.sha256 for part in again for file in part.files] == once


def test_a_mark_counts_only_while_its_files_are_whole(tmp_path: Path) -> None:
    recipe = write_papers(tmp_path, files=2)
    _, marks = read(recipe, tmp_path)
    cut = tmp_path / "work" / "read" / marks[1].folder / "documents.parquet"
    cut.write_bytes(cut.read_bytes()[:-1])
    assert list(marks_in(str(tmp_path / "work"))) == [0]
    assert not (tmp_path / "work" / "read" / "00001.json").exists()
    assert [mark.part for mark in read(recipe, tmp_path)[1]] == [0, 1]


def test_of_two_readers_of_one_part_one_counts_and_the_other_leaves_nothing(tmp_path: Path) -> None:
    recipe = write_papers(tmp_path, files=1)
    part, terms = parts_of(recipe, "papers", str(tmp_path))[0], terms_of(recipe, "papers", str(tmp_path))
    read_part(part, terms, str(tmp_path / "work"))
    before = marks_in(str(tmp_path / "work"))
    read_part(part, terms, str(tmp_path / "work"))
    assert marks_in(str(tmp_path / "work")) == before
    assert [path.name for path in (tmp_path / "work" / "read").iterdir() if path.is_dir() and any(path.iterdir())] == [
        before[0].folder
    ]


def test_a_work_folder_that_another_run_has_removed_is_said_in_words(tmp_path: Path) -> None:
    recipe = write_papers(tmp_path, files=1)
    _, marks = read(recipe, tmp_path)
    (tmp_path / "work" / "read" / marks[0].folder / "aside.parquet").unlink()
    with pytest.raises(StageError, match="another run has made the same corpus"):
        finish_part(marks[0], np.array([], dtype=np.int64), str(tmp_path / "work"), str(tmp_path / "out"))


def test_of_a_file_that_breaks_off_nothing_enters_and_its_neighbours_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "FEW_PARTS", 1)
    recipe = write_papers(tmp_path)
    broken = tmp_path / "raw" / "medline" / "1.xml.gz"
    with gzip.open(broken) as stream:
        text = stream.read()
    broken.write_bytes(gzip.compress(text[: text.rindex(b"<PubmedArticle>") + 30], mtime=0))  # after five good records
    parts, marks = read(recipe, tmp_path)
    finish(tmp_path, marks)
    assert len(parts) == 1 and marks[0].read == 12
    documents = rows_in(tmp_path / "out" / "documents")
    assert {row["uri"] for row in documents} == {"raw/medline/0.xml.gz", "raw/medline/2.xml.gz"} and len(documents) == 9
    (row,) = rows_in(tmp_path / "out" / "quarantine")
    assert row["step"] == "unreadable" and row["uri"] == "raw/medline/1.xml.gz" and row["id"].startswith(row["uri"])
    assert row["step"] in QUARANTINE and "XML" in row["reason"]
    assert "raw/medline/1.xml.gz" not in {row["uri"] for row in rows_in(tmp_path / "out" / "dropped")}
    check_budget(parts, marks, recipe.clean, "papers", "work")


def test_a_file_that_the_store_fails_to_give_stops_the_reading(tmp_path: Path) -> None:
    recipe = write_papers(tmp_path)
    parts, terms = parts_of(recipe, "papers", str(tmp_path)), terms_of(recipe, "papers", str(tmp_path))
    Path(parts[1].files[0].uri).unlink()
    with pytest.raises(StorageError, match="was listed and is gone"):
        read_part(parts[1], terms, str(tmp_path / "work"))
    assert marks_in(str(tmp_path / "work")) == {}


def test_a_broken_record_is_quarantined_with_its_line_and_the_others_enter(tmp_path: Path) -> None:
    write_papers(tmp_path, files=1)
    lines = [json.dumps({"text": ABSTRACT.format(row), "meta": {}}) for row in range(4)]
    lines.insert(2, lines[0][:30])
    (tmp_path / "raw" / "general.jsonl").write_text("\n".join(lines) + "\n")
    files = "sources.general.files=[{uri: raw/general.jsonl, format: redpajama, licence: cc0, retrieved: 2026-11-22}]"
    recipe = load(tmp_path / "tiny.yaml", [files])
    parts, marks = read(recipe, tmp_path, "general")
    finish(tmp_path, marks)
    documents, (row,) = rows_in(tmp_path / "out" / "documents"), rows_in(tmp_path / "out" / "quarantine")
    assert [document["text"] for document in documents] == [ABSTRACT.format(row) for row in range(4)]
    assert {document["retrieved"] for document in documents} == {"2026-11-22"} and {
        document["licence"] for document in documents
    } == {"cc0"}
    assert row["step"] == "malformed" and row["uri"] == "raw/general.jsonl" and row["id"] == "raw/general.jsonl:3"
    assert marks[0].steps == {"malformed": 1} and marks[0].read == 5
    with pytest.raises(StageError, match=r"1 of 5 records are malformed.*raw/general\.jsonl:3: ") as raised:
        check_budget(parts, marks, recipe.clean, "general", "work")
    assert raised.value.where == "sources.general"


# ---- the budget ---------------------------------------------------------------------------------------------------------------


def bad(number: int, step: str = "malformed") -> Dropped:
    return Dropped(f"raw/a.xml:{number}", "papers", step, f"reason {number}", "", "raw/a.xml")


def mark(**changes: object) -> Mark:
    empty = Mark(0, "00000-x", {}, 10_000, 9_000, {}, {}, (), (), (), {})
    return replace(empty, **changes)  # type: ignore[arg-type]


def budget(marks: list[Mark], **asked: object) -> None:
    file = parts_module.RawFile("/s/raw/a.xml", "raw/a.xml", "medline", None, None, 1, 0)
    parts = [Part(number, "papers", (file,) * 20) for number in range(len(marks))]
    check_budget(parts, marks, Clean(min_chars=1, **asked), "papers", "s3://b/work")  # type: ignore[arg-type]


def test_malformed_records_are_allowed_up_to_their_share(tmp_path: Path) -> None:
    budget([mark(steps={"malformed": 5}, first_malformed=(bad(1),)), mark(steps={"malformed": 15})])
    with pytest.raises(StageError, match=r"21 of 20000 records are malformed.*0\.001") as raised:
        budget([mark(steps={"malformed": 21}, first_malformed=(bad(1), bad(2), bad(3))), mark(steps={"malformed": 0})])
    assert "raw/a.xml:1: reason 1; raw/a.xml:2: reason 2; raw/a.xml:3: reason 3" in raised.value.problem
    assert "aside.parquet" in raised.value.remedy and raised.value.where == "sources.papers"
    budget([mark(steps={"malformed": 21})], bad_files={"max_share": 0.01})


def test_unreadable_files_are_allowed_up_to_their_number() -> None:
    def unreadable(count: int) -> Mark:
        return mark(unreadable=tuple(bad(n, "unreadable") for n in range(count)), failed_entries=(0,) * count)

    budget([unreadable(5), unreadable(5)])
    with pytest.raises(StageError, match=r"11 of 40 files could not be read.*reason 0; .*reason 2"):
        budget([unreadable(5), unreadable(6)])
    with pytest.raises(StageError, match="1 of 20 files"):
        budget([unreadable(1)], bad_files={"max_files": 0})
    with pytest.raises(StageError, match="not one of its 20 files could be read as medline") as raised:
        budget([unreadable(20)], bad_files={"max_files": 100})
    assert raised.value.where == "sources.papers.files[0]"


def test_a_source_full_of_people_stops_the_stage() -> None:
    asked = {"max_per_document": 0, "max_quarantined_share": 0.01}
    budget([mark(documents=9_900, steps={"identifiers": 100}, found={"phone": 100})], identifiers=asked)
    with pytest.raises(StageError, match=r"101 of 10000 documents hold identifiers of people .*phone 120"):
        budget([mark(documents=9_899, steps={"identifiers": 101}, found={"phone": 120})], identifiers=asked)


# ---- what enters the fingerprint ----------------------------------------------------------------------------------------------


def sections(store: Path, *overrides: str) -> dict[str, object]:
    stage = next(stage for stage in stages(load(store / "tiny.yaml", overrides)) if stage.name == "corpus/papers")
    return {"sections": stage.sections, "raw": stage.raw}


def test_what_decides_the_documents_decides_the_fingerprint_and_a_budget_does_not(tmp_path: Path) -> None:
    write_papers(tmp_path)
    base = sections(tmp_path)
    for same in (
        "clean.bad_files={max_share: 0.5, max_files: 3}",
        "sources.papers.expected_tokens=7",
        "canaries={source: general, count: 3}",
        "near_duplicates={similarity: 0.7}",
    ):
        assert sections(tmp_path, same) == base, same
    for other in (
        "clean.off=[urls]",
        "clean.languages=[en]",
        "clean.quality=[c4]",
        "clean.identifiers={max_per_document: 2}",
        "sources.papers.retracted=raw/retracted.csv",
        "canaries={source: papers, count: 3}",
        "sources.papers.files=[{uri: raw/medline/*.xml.gz, format: medline, retrieved: 2026-11-22}]",
    ):
        assert sections(tmp_path, other) != base, other
    assert "raw/retracted.csv" in sections(tmp_path, "sources.papers.retracted=raw/retracted.csv")["raw"]  # type: ignore[operator]
    scan = "clean.identifiers={{max_per_document: 2, max_quarantined_share: {}}}"
    assert sections(tmp_path, scan.format(0.5)) == sections(tmp_path, scan.format(0.1))
    assert sections(tmp_path, "clean.languages=[en, de]") == sections(tmp_path, "clean.languages=[de, en]")


# ---- pure functions -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=6))
def test_the_first_of_equal_contents_stays(contents: list[list[int]]) -> None:
    seen: set[int] = set()
    expected = []
    for part in contents:
        rows = []
        for row, content in enumerate(part):
            if content in seen:
                rows.append(row)
            seen.add(content)
        expected.append(rows)
    found = repeats([np.array(part, dtype=np.uint64) for part in contents])
    assert [rows.tolist() for rows in found] == expected


@given(st.lists(st.integers(0, 400), min_size=1, max_size=60), st.integers(1, 5))
def test_parts_keep_every_file_in_order_and_no_more_than_fits(sizes: list[int], few: int) -> None:
    files = [parts_module.RawFile(f"/{n}", str(n), "medline", None, None, size, 0) for n, size in enumerate(sizes)]
    limit = min(1000, sum(sizes) // few)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_module, "PART_BYTES", 1000)
        patch.setattr(parts_module, "FEW_PARTS", few)
        groups = list(parts_module._groups(files))
    assert [file for group in groups for file in group] == files
    for group, following in zip(groups, [*groups[1:], None], strict=True):
        size = sum(file.size_bytes for file in group)
        assert size <= limit or len(group) == 1
        assert following is None or size + following[0].size_bytes > limit


def test_an_unknown_format_is_named_before_anything_is_read(tmp_path: Path) -> None:
    recipe = write_papers(tmp_path)
    wrong = load(tmp_path / "tiny.yaml", ["sources.papers.files=[{uri: raw/medline/*.gz, format: medlin}]"])
    with pytest.raises(InputError, match="medlin"):
        parts_of(wrong, "papers", str(tmp_path))
    assert parts_of(recipe, "papers", str(tmp_path))


def test_marks_are_plain_json(tmp_path: Path) -> None:
    recipe = write_papers(tmp_path, files=1)
    _, marks = read(recipe, tmp_path)
    raw = json.loads((tmp_path / "work" / "read" / "00000.json").read_text())
    assert raw["read"] == 6 == marks[0].read and raw["sizes"].keys() == {"documents.parquet", "aside.parquet", "hashes.bin"}
