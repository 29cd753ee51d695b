"""The exported corpus, read back by the `datasets` library."""

from pathlib import Path

import pytest

from medschool.artifact import Artifact, write_parquet
from medschool.corpus.export import export_corpus
from medschool.errors import InputError, StageError
from medschool.rows import DOCUMENT_SCHEMA, Document, table


def made(folder: Path, source: str, documents: int, said: int | None = None) -> Artifact:
    rows = [
        Document(f"{source}:{number}", source, f"Text {number} of {source}.", "T", "cc-by", 2001, "abstract", "raw/x", "", "ab")
        for number in range(documents)
    ]
    halves = (rows[: documents // 2], rows[documents // 2 :])
    files = [
        write_parquet(str(folder), f"documents/{part:05}.parquet", table(half, DOCUMENT_SCHEMA))
        for part, half in enumerate(halves)
    ]
    facts = {"documents": documents if said is None else said, "dropped": {"licence": 3}}
    return Artifact(f"corpus/{source}", "f", "manifest", str(folder), tuple(files), facts, {}, 0.0)


def test_datasets_reads_every_document_but_the_near_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    sources = {name: made(tmp_path / name, name, 7) for name in ("papers", "books")}
    out, lines = tmp_path / "out", []
    found = export_corpus("test", sources, {"papers": frozenset({"papers:2", "papers:5"})}, out, lines.append)
    papers = datasets.load_dataset(str(out), "papers", split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(papers["id"]) == [f"papers:{number}" for number in (0, 1, 3, 4, 6)]
    assert set(papers["licence"]) == {"cc-by"} and papers.column_names == DOCUMENT_SCHEMA.names
    books = datasets.load_dataset(str(out), "books", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(books) == 7
    assert (found["papers"].near_duplicates, found["papers"].licences) == (2, {"cc-by": 5})
    card = (out / "README.md").read_text()
    assert "| papers | 5 |" in card and "| papers | licence | 3 |" in card and "Not for clinical use" in card
    assert lines[0].startswith("papers: 5 documents")


def test_an_existing_folder_is_left_alone_unless_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_corpus("test", {"papers": made(tmp_path / "papers", "papers", 4)}, {}, tmp_path / "out", print)
    assert (tmp_path / "out" / "README.md").is_file()
    with pytest.raises(InputError, match="there already"):
        export_corpus("test", {}, {}, tmp_path / "out", print)


def test_a_corpus_that_lost_rows_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="holds 4 documents, its manifest says 5"):
        export_corpus("test", {"papers": made(tmp_path / "papers", "papers", 4, said=5)}, {}, tmp_path / "out", print)
    assert [path.name for path in tmp_path.iterdir()] == ["papers"]
