"""The duplicates stage on a real Ray: near-copies planted inside a source and across two, parts in any order, canaries, a recipe."""

import gzip
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import PAPER_WORDS, record, write_raw

from jobs.run import Run
from medschool import artifact, storage
from medschool.artifact import Artifact, Output, write_parquet
from medschool.board import printing
from medschool.duplicates import on_ray, removed_ids
from medschool.duplicates.components import CLUSTERS, CLUSTERS_SCHEMA, REMOVALS, REMOVALS_SCHEMA
from medschool.duplicates.on_ray import make_duplicates
from medschool.errors import InputError, cause_of
from medschool.procedure import stages
from medschool.recipe import Recipe, load
from medschool.rows import DOCUMENT_SCHEMA, Document, table

pytestmark = pytest.mark.usefixtures("ray_cluster")
VOCABULARY = [f"{first}{second}" for first in PAPER_WORDS for second in PAPER_WORDS]


def prose(draw: random.Random, words: int = 200) -> list[str]:
    return [draw.choice(VOCABULARY) for _ in range(words)]


def document(source: str, number: int, words: list[str], kind: str = "abstract") -> Document:
    return Document(f"{source}:{number}", source, " ".join(words), "", "cc0", 2020, kind, f"{source}.xml", "", f"{number:064}")


def planted(draw: random.Random) -> dict[str, list[Document]]:
    """Two sources of 60 documents. `general` 100 to 109 are shorter near-copies of papers 0 to 9, papers 200 to 204 of papers 20 to 24.

    papers:300 is half of papers:40, which is far below the threshold; canaries are equal on purpose; two have no word at all.
    """
    texts = {source: [prose(draw) for _ in range(60)] for source in ("papers", "general")}
    made = {source: [document(source, at, words) for at, words in enumerate(rows)] for source, rows in texts.items()}
    papers = texts["papers"]
    made["general"] += [document("general", 100 + at, [*papers[at][:120], *papers[at][121:]]) for at in range(10)]
    made["papers"] += [document("papers", 180 + at, papers[at][:-2]) for at in range(20, 25)]
    made["papers"].append(document("papers", 300, [*papers[40][:100], *prose(draw, 100)]))
    made["papers"] += [document("papers", 400 + at, papers[50], "canary") for at in range(3)]
    made["general"] += [document("general", 500 + at, ["...", "--"]) for at in range(2)]
    return made


EXPECTED = {(f"general:{100 + at}", f"papers:{at}") for at in range(10)} | {
    (f"papers:{180 + at}", f"papers:{at}") for at in range(20, 25)
}


def corpora(store: Path, documents: dict[str, list[Document]], parts: int, draw: random.Random) -> dict[str, Artifact]:
    """Corpus artifacts in which the documents lie in `parts` files, in an order of their own."""

    def write(prefix: str, rows: list[Document]) -> Output:
        shuffled = draw.sample(rows, len(rows))
        files = [
            write_parquet(prefix, f"documents/{part:05}.parquet", table(shuffled[part::parts], DOCUMENT_SCHEMA))
            for part in range(parts)
        ]
        files.append(
            write_parquet(prefix, "documents/empty.parquet", table([], DOCUMENT_SCHEMA))
        )  # of a file without any document
        return Output(tuple(files), {"documents": len(rows)})

    return {
        source: artifact.make(str(store), f"corpus/{source}", f"{parts}", {}, lambda prefix, rows=rows: write(prefix, rows))
        for source, rows in documents.items()
    }


@pytest.fixture(scope="module")
def recipe(tiny_store: Path) -> Recipe:
    return load(tiny_store / "tiny.yaml", ["near_duplicates={}"])


def found(recipe: Recipe, inputs: dict[str, Artifact], store: Path, name: str) -> Artifact:
    return artifact.make(str(store), "duplicates", name, {}, lambda prefix: make_duplicates(recipe, inputs, prefix))


def test_near_copies_go_inside_a_source_and_across_two_whatever_the_order_of_parts(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(4)
    documents = planted(draw)
    one = found(recipe, corpora(tmp_path, documents, 1, draw), tmp_path, "one")
    monkeypatch.setattr(on_ray, "RANGE_BYTES", 24 * 14 * 20)  # many ranges, and so many small joins
    reversed_sources = dict(reversed(corpora(tmp_path, documents, 4, draw).items()))
    many = found(recipe, reversed_sources, tmp_path, "many")
    assert {file.path for file in one.files} == {REMOVALS, CLUSTERS}
    assert (one.digest, one.facts) == (many.digest, many.facts)
    removals = pq.read_table(one.uri(REMOVALS))
    assert removals.schema.equals(REMOVALS_SCHEMA)
    assert set(zip(removals["id"].to_pylist(), removals["kept_id"].to_pylist(), strict=True)) == EXPECTED
    assert min(removals["similarity"].to_pylist()) >= 0.8
    assert removed_ids(one, "general") == {gone for gone, _ in EXPECTED if gone.startswith("general")}
    assert removed_ids(one, "papers") == {gone for gone, _ in EXPECTED if gone.startswith("papers")}
    assert removed_ids(one, "books") == frozenset()
    clusters = pq.read_table(one.uri(CLUSTERS))
    assert clusters.schema.equals(CLUSTERS_SCHEMA) and clusters.num_rows == 30 and sum(clusters["kept"].to_pylist()) == 15
    assert one.facts["documents"] == sum(map(len, documents.values()))
    assert one.facts["removed"] == {"general": 10, "papers": 5} and one.facts["for_another_source"] == 10
    assert (one.facts["clusters"], one.facts["sizes"]) == (15, {"2": 15})
    assert len(one.facts["largest"]) == 5 and all(name.startswith("papers/papers:") for name in one.facts["largest"])
    left = [info.uri for info in storage.list_files(one.prefix_uri)]
    assert len(left) == 2, "the work of the passes is deleted"


def test_pieces_of_a_part_are_joined(recipe: Recipe, tmp_path: Path) -> None:
    """The passes themselves, with pieces of some 32 documents: as many removals as with one piece."""
    documents = planted(random.Random(4))
    spec = recipe.near_duplicates
    assert spec is not None
    work = str(tmp_path / "work")
    pieces = []
    for part, (source, rows) in enumerate(documents.items()):
        batches = table(rows, DOCUMENT_SCHEMA).select(["id", "text", "article_type"]).to_batches(max_chunksize=16)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(on_ray, "PIECE_DOCUMENTS", 32)
            pieces += list(on_ray._pieces(iter(batches), part << 32, source, spec, 3, work))
    assert len(pieces) > 4 and sum(piece.documents for piece in pieces) == sum(map(len, documents.values()))
    assert all(len(piece.offsets) == 4 for piece in pieces)
    choice = on_ray.choose(on_ray._join(pieces, spec, 3, work))
    sources, ids = on_ray._names(choice.documents, pieces, work)
    removals = on_ray.removals_table(choice, sources, ids, spec.permutations)
    assert set(zip(removals["id"].to_pylist(), removals["kept_id"].to_pylist(), strict=True)) == EXPECTED
    assert set(removals["source"].to_pylist()) == {"papers", "general"}


def test_nothing_alike_gives_empty_tables(recipe: Recipe, tmp_path: Path) -> None:
    draw = random.Random(9)
    inputs = corpora(tmp_path, {"papers": [document("papers", at, prose(draw)) for at in range(5)]}, 1, draw)
    made = found(recipe, inputs, tmp_path, "none")
    assert pq.read_table(made.uri(REMOVALS)).num_rows == 0 == made.facts["clusters"]
    assert removed_ids(made, "papers") == frozenset()


def test_a_damaged_part_stops_the_stage_and_is_named(recipe: Recipe, tmp_path: Path) -> None:
    draw = random.Random(9)
    inputs = corpora(tmp_path, {"papers": [document("papers", at, prose(draw)) for at in range(5)]}, 1, draw)
    uri = inputs["papers"].uri("documents/00000.parquet")
    data = bytearray(Path(uri).read_bytes())
    data[len(data) // 2] ^= 1
    Path(uri).write_bytes(data)
    with pytest.raises(Exception, match="sha256") as caught:
        found(recipe, inputs, tmp_path, "damaged")
    cause = cause_of(caught.value)
    assert isinstance(cause, InputError) and "00000.parquet" in str(cause)


def test_a_recipe_without_the_section_has_no_such_stage(tiny_store: Path) -> None:
    plain = {stage.name: stage for stage in stages(load(tiny_store / "tiny.yaml", []))}
    assert "duplicates" not in plain and "duplicates" not in plain["tokens/papers"].inputs


def test_a_run_finds_the_near_copy_of_a_paper_and_tokens_leave_it_out(tmp_path: Path) -> None:
    recipe_path = write_raw(tmp_path)
    draw = random.Random(8)
    words = prose(draw, 150)
    pair = [record(70001, "A study", " ".join(words)), record(70002, "A study", " ".join(words[:-1]))]
    xml = f"<?xml version='1.0'?><PubmedArticleSet>{''.join(pair)}</PubmedArticleSet>"
    (tmp_path / "raw" / "medline" / "9.xml.gz").write_bytes(gzip.compress(xml.encode(), mtime=0))
    recipe = load(recipe_path, ["near_duplicates={}"])
    with printing(lambda line: None) as board:
        run = Run(recipe, str(tmp_path), board)
        for kind in ("tokenizer", "corpus", "duplicates", "tokens"):
            run.make(kind)
    removed = removed_ids(run.artifact("duplicates"), "papers")
    assert removed == {"pmid:70002"}
    tokens = run.artifact("tokens/papers")
    shards = [file.path for file in tokens.files if file.path.startswith("shards/")]
    seen = {id_ for path in shards for ids in pa.ipc.open_file(tokens.uri(path)).read_all()["doc_ids"].to_pylist() for id_ in ids}
    held = set(pa.ipc.open_file(tokens.uri("heldout.arrow")).read_all()["id"].to_pylist())
    assert "pmid:70001" in seen | held and "pmid:70002" not in seen | held
