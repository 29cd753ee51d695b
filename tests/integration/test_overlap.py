"""An exam item that stands in a paper: found, its rows never fed, told in the report, and what another exam costs.

One paper quotes an item of the exam, another one an item that only a later exam has.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import lxml.html
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import record, write_raw

from jobs.makers import course_of
from jobs.report import report
from jobs.run import Run
from jobs.study import study
from medschool import storage
from medschool.ablate.contamination import contamination
from medschool.board import printing
from medschool.exams.make import read_items
from medschool.plan import make_plan
from medschool.procedure import results_uri
from medschool.recipe import load
from medschool.tokens.stream import Feed, read_block

pytestmark = pytest.mark.usefixtures("ray_cluster")
STAGES = ("model", "tokenizer", "exams", "instructions", "corpus", "tokens", "overlap", "withheld", "chats")
ONE_VARIANT = (
    "variants={knowledge: {weights: {papers: 3, general: 1}}}", "gate=null", "probes=null", "serve=null", "search=null",
    "pretrain.length.steps=2", "cluster.num_workers=[1,2]", "cluster.cpus_per_worker=4", "budget=null",
)  # fmt: skip
"""Elastic, and its workers alone could fill the eight CPUs of the tests' Ray."""
ELSEWHERE = "exams.elsewhere={files: [{uri: raw/mmlu/elsewhere.jsonl, format: mmlu}]}"
LATER = "exams.later={files: [{uri: raw/mmlu/later.jsonl, format: mmlu}]}"


def question(text: str) -> str:
    options = {f"answer_{letter}": f"choice {letter}" for letter in "abcd"}
    return json.dumps({"question": text, **options, "correct_answer": "A", "topic": "tin medicine"}) + "\n"


def quoted(text: str, options: tuple[str, ...]) -> str:
    return f"The students of this cohort were asked the following. {text} They chose among {', '.join(options)}. Few knew."


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tiny store with two more papers and two more exams, of which one has nothing to do with any text."""
    folder = tmp_path_factory.mktemp("overlap")
    write_raw(folder)
    mmlu = folder / "raw" / "mmlu"
    asked = "Which of the tin organs of a clockwork gardener is oiled first when the winter comes?"
    (mmlu / "later.jsonl").write_text(question(asked))
    (mmlu / "elsewhere.jsonl").write_text(question("Which of the nine moons of a paper planet has a harbour for whales?"))
    first = json.loads((mmlu / "mmlu.jsonl").read_text().split("\n")[4])
    texts = [
        quoted(first["question"], tuple(first[f"answer_{letter}"] for letter in "abcd")),
        quoted(asked, tuple(f"choice {letter}" for letter in "abcd")),
    ]
    records = "".join(record(number, "A quiz", text) for number, text in enumerate(texts, 70_000))
    xml = f"<?xml version='1.0'?><PubmedArticleSet>{records}</PubmedArticleSet>"
    (folder / "raw" / "medline" / "2.xml.gz").write_bytes(gzip.compress(xml.encode(), mtime=0))
    yield folder


def made(store: Path, *overrides: str) -> Run:
    with printing(lambda line: None) as board:
        run = Run(load(store / "tiny.yaml", [*ONE_VARIANT, *overrides]), str(store), board)
        for kind in STAGES:
            run.make(kind)
    return run


@pytest.fixture(scope="module")
def run(store: Path, ray_cluster: None) -> Run:
    return made(store)


def test_the_item_is_found_with_its_document_and_its_rows(run: Run) -> None:
    overlap, withheld = run.artifact("overlap/papers"), run.artifact("withheld/papers")
    (found,) = pq.read_table(overlap.uri("overlap.parquet")).to_pylist()
    quoted_item = next(item for item in read_items(run.artifact("exams/clinical")) if item.id == found["item"])
    assert (found["id"], found["exam"], found["share"]) == ("pmid:70000", "clinical", 1.0)
    assert quoted_item.id.endswith(":5")
    assert overlap.facts == {
        "checked": run.artifact("corpus/papers").facts["documents"], "documents": 1,
        "exams": {"clinical": {"items": 48, "found": 1, "documents": 1}},
    }  # fmt: skip
    assert run.artifact("overlap/general").facts["documents"] == 0 == run.artifact("withheld/general").facts["rows"]
    tokens = run.artifact("tokens/papers")
    shards = sorted(file.path for file in tokens.files if file.path.startswith("shards/"))
    expected = [
        {"shard": shard, "row": row}
        for shard, path in enumerate(shards)
        for row, ids in enumerate(pa.ipc.open_file(tokens.uri(path)).read_all().column("doc_ids").to_pylist())
        if "pmid:70000" in ids
    ]
    assert pq.read_table(withheld.uri("rows.parquet")).to_pylist() == expected and expected
    assert withheld.facts == {
        "documents": 1, "rows": len(expected), "exams": {"clinical": {"documents": 1, "rows": len(expected)}},
    }  # fmt: skip


def test_no_batch_of_an_epoch_holds_it(run: Run) -> None:
    stage = run.stages["pretrain/knowledge"]
    inputs = {role: run.artifact(name) for role, name in stage.inputs.items()}
    course, rows = course_of(run, stage, inputs, "", "")
    order = course.order
    uris = {name: tuple(artifact.uri(path) for path, _ in index.shards) for name, (artifact, index) in rows.items()}
    feed = Feed(order, uris, rows["papers"][1].row_tokens, rows["papers"][1].dtype)
    batches = -(-order.epoch_rows["papers"] // order.mixture.rows_in(0)["papers"])
    fed = [row for batch in range(batches) for rank in range(2) for row in read_block(feed, batch, rank, 2).to_pylist()]
    papers = [row for row in fed if row["source"] == "papers"]
    kept_out = run.artifact("withheld/papers").facts["rows"]
    assert len({(row["shard"], row["row"]) for row in papers}) == rows["papers"][1].rows - kept_out
    seen = {id_ for row in papers for id_ in row["doc_ids"]}
    assert "pmid:70000" not in seen and "pmid:70001" in seen


def test_the_report_and_the_results_tell_it_and_plan_and_training_agree(run: Run) -> None:
    with printing(lambda line: None) as board:
        run.board = board
        study(run)
        run.make("verdict")
        report(run)
    folder = results_uri(run.store_uri, run.recipe)
    results = json.loads(storage.read_bytes(storage.join(folder, "results.json")))
    rows = run.artifact("withheld/papers").facts["rows"]
    counts = {"exam": "clinical", "items": 48}
    assert results["contamination"] == [
        counts | {"source": "general", "found": 0, "documents": 0, "rows": 0},
        counts | {"source": "papers", "found": 1, "documents": 1, "rows": rows},
    ]
    page = lxml.html.fromstring(storage.read_bytes(storage.join(folder, "report.html")))
    table = next(table for table in page.iter("table") if "Exam items found" in table.find("caption").text_content())
    cells = [[cell.text_content() for cell in row] for row in table.find("tbody").iter("tr")]
    assert cells == [["clinical", "general", "48", "0", "0", "0"], ["clinical", "papers", "48", "1", "1", str(rows)]]
    (course,) = make_plan(run.recipe, run.store_uri).courses
    trained = run.artifact("pretrain/knowledge").facts
    assert course.tokens == trained["tokens"]
    assert trained["cost"]["workers"] == 1, "an elastic training leaves the feed its CPUs"


def test_another_exam_rebuilds_no_text_and_where_nothing_overlaps_trains_nothing(run: Run, store: Path) -> None:
    trained = run.artifact("pretrain/knowledge")
    again = made(store, ELSEWHERE)
    remade = {name for name in again.made if not name.startswith("exams/")}
    assert remade == {"overlap/papers", "overlap/general", *_instructions(again)}
    assert again.artifact("withheld/papers").manifest_uri == run.artifact("withheld/papers").manifest_uri
    assert again.artifact("overlap/papers").facts["exams"]["elsewhere"] == {"items": 1, "found": 0, "documents": 0}
    told = contamination(
        *({name: again.artifact(f"{kind}/{name}") for name in ("papers", "general")} for kind in ("overlap", "withheld")),
        {},
    )
    assert [entry["rows"] for entry in told if entry["exam"] == "elsewhere"] == [0, 0]
    found = again.find("pretrain/knowledge")
    assert found is not None and found.manifest_uri == trained.manifest_uri


def test_an_exam_that_overlaps_rebuilds_no_text_and_trains_again(run: Run, store: Path) -> None:
    again = made(store, LATER)
    assert not any(name.startswith(("corpus/", "tokens/", "chats/")) for name in again.made)
    assert again.artifact("withheld/papers").digest != run.artifact("withheld/papers").digest
    assert again.artifact("withheld/general").digest == run.artifact("withheld/general").digest
    assert again.artifact("overlap/papers").facts["exams"]["later"] == {"items": 1, "found": 1, "documents": 1}
    assert again.find("pretrain/knowledge") is None
    assert again.artifact("withheld/papers").facts["rows"] > run.artifact("withheld/papers").facts["rows"]


def _instructions(run: Run) -> set[str]:
    """They read the exams too: made again, with the same content, so that the rows made from them are not."""
    return {name for name in run.stages if name.startswith("instructions/")}
