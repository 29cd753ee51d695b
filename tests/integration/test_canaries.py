"""Canaries through the corpus stage: word for word in the documents, every repeat of them, whatever else is removed as a copy."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.run import Run
from medschool.board import printing
from medschool.corpus.canaries import canaries
from medschool.duplicates import removed_ids
from medschool.recipe import load

CANARIES = "canaries={source: papers, count: 3, repeats: [1, 5, 2]}"


@pytest.mark.usefixtures("ray_cluster")
def test_every_repeat_is_in_the_corpus_as_planted_and_is_no_duplicate(tiny_store: Path) -> None:
    recipe = load(tiny_store / "tiny.yaml", [CANARIES, "near_duplicates={}", "clean.identifiers={max_per_document: 0}"])
    with printing(lambda line: None) as board:
        run = Run(recipe, str(tiny_store), board)
        for kind in ("corpus", "duplicates"):
            run.make(kind)
    papers = run.artifact("corpus/papers")
    parts = [file.path for file in papers.files if file.path.startswith("documents/")]
    rows = [row for path in parts for row in pq.read_table(papers.uri(path)).to_pylist()]
    planted = Counter(row["text"] for row in rows if row["article_type"] == "canary")
    assert planted == {canary.text: canary.repeats for canary in canaries(recipe)}
    assert papers.facts["canaries"] == 8 and papers.facts["documents"] == len(rows)
    assert not any(id_.startswith("canary:") for id_ in removed_ids(run.artifact("duplicates"), "papers"))
    others = run.artifact("corpus/books")
    assert "canaries" not in others.facts
