"""A set made from the corpus, from raw files to rows, on a real Ray: nothing of a held-out document, a copy or an exam gets in."""

import gzip
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import PAPER_WORDS, record, words, write_raw

from jobs.run import Run
from medschool.artifact import Artifact
from medschool.board import printing
from medschool.recipe import load

pytestmark = pytest.mark.usefixtures("ray_cluster")
SETS = (
    'sources={papers: {files: [{uri: "raw/medline/*.xml.gz", format: medline}], licences: [nlm-medline]}}',
    "instructions={reading: {from_corpus: {source: papers, format: reading_comprehension, passage_words: 120}, licences: [nlm-medline]}}",
    "variants={tuned: {instructions: {reading: 1}}}",
    "near_duplicates={}",
    *(f"{section}=null" for section in ("gate", "probes", "serve", "search")),
)


def paper(draw: random.Random, number: int) -> str:
    first, second = (words(draw, PAPER_WORDS, 40) for _ in range(2))
    return f"{first} However, {second} We conclude that {draw.choice(PAPER_WORDS)} number {number} matters much."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    store = tmp_path_factory.mktemp("reading")
    recipe_path = write_raw(store, papers=40)
    draw = random.Random(4)
    texts = [paper(draw, number) for number in range(60)]
    records = [record(3000 + number, f"On matter number {number}", text) for number, text in enumerate(texts)]
    records += [
        record(4000 + number, f"On matter number {number}", texts[number].replace(" much.", ".")) for number in range(0, 60, 3)
    ]
    xml = f"<?xml version='1.0'?><PubmedArticleSet>{''.join(records)}</PubmedArticleSet>"
    (store / "raw" / "medline" / "9.xml.gz").write_bytes(gzip.compress(xml.encode(), mtime=0))
    with printing(lambda line: None) as board:
        run = Run(load(recipe_path, SETS), str(store), board)
        for kind in ("tokenizer", "exams", "corpus", "duplicates", "tokens", "instructions", "chats"):
            run.make(kind)
    return run


def rows(made: Artifact, folder: str) -> list[dict[str, Any]]:
    return pa.concat_tables(
        [pq.read_table(made.uri(file.path)) for file in made.files if file.path.startswith(folder)]
    ).to_pylist()


def test_copies_are_left_out_and_every_document_is_accounted_for(made: Run) -> None:
    papers, found = made.artifact("corpus/papers"), made.artifact("instructions/reading")
    copies = pq.read_table(made.artifact("duplicates").uri("removals.parquet")).filter(pa.compute.field("source") == "papers")
    removed = set(copies.column("id").to_pylist())
    talked = {row["document"] for row in rows(found, "conversations/")}
    assert len(removed) == 20 == found.facts["left_out"]["near_duplicate"] and not removed & talked
    asked = talked | {row["id"].rsplit(":", 2)[0] for row in rows(found, "dropped/")}
    assert len(asked) + sum(found.facts["left_out"].values()) == papers.facts["documents"]
    assert found.facts["kinds"]["reading/inference"] == 60 and set(found.facts["licences"]) == {"nlm-medline"}


def test_no_row_of_training_tells_of_a_held_out_document(made: Run) -> None:
    found, chats = made.artifact("instructions/reading"), made.artifact("chats/reading")
    held = set(pa.ipc.open_file(made.artifact("tokens/papers").uri("heldout.arrow")).read_all()["id"].to_pylist())
    of_document = {row["id"]: row["document"] for row in rows(found, "conversations/")}
    shards = [pa.ipc.open_file(chats.uri(file.path)).read_all() for file in chats.files if file.path.startswith("shards/")]
    trained = {id_ for shard in shards for ids in shard["doc_ids"].to_pylist() for id_ in ids if id_ in of_document}
    assert trained and held & set(of_document.values())
    assert not held & {of_document[id_] for id_ in trained}
    assert chats.facts["dropped"]["heldout"] == sum(document in held for document in of_document.values())
