"""The stages on a real Ray, on real formats: what each one writes is checked with plain pyarrow, transformers and loops."""

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import lxml.html
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs.report import report
from jobs.run import Run
from jobs.search import search
from jobs.study import check_room, study
from medschool import artifact, storage
from medschool.ablate.report import mlflow_metrics
from medschool.board import Board, printing
from medschool.corpus.admit import terms_of
from medschool.corpus.canaries import canary_documents
from medschool.corpus.parts import parts_of, read_part
from medschool.errors import InputError, PlanError, StageError
from medschool.ledger import LEDGER, parse_ledger
from medschool.plan import make_plan
from medschool.procedure import results_uri
from medschool.recipe import load
from medschool.stage import fingerprint_in, raw_listing
from medschool.track import read_journal

pytestmark = pytest.mark.usefixtures("ray_cluster")
LINES: list[str] = []
MARKS = ("so far", "and no further")
STAGES = ("model", "tokenizer", "exams", "instructions", "corpus", "tokens", "overlap", "withheld", "chats", "probes")
BOARD: Board


@pytest.fixture(scope="module", autouse=True)
def board(ray_cluster: None) -> Iterator[None]:
    """Every run of this file writes to one board; LINES holds what it said."""
    global BOARD
    with printing(LINES.append) as found:
        BOARD = found
        yield


def run_of(store: Path, *overrides: str) -> Run:
    return Run(load(store / "tiny.yaml", overrides), str(store), BOARD)


def said() -> list[str]:
    """What runs have said since the last call: our own marks come through behind it, the second one a poll of the board later."""
    for mark in MARKS:
        BOARD.put(mark)
        while mark not in LINES:
            time.sleep(0.02)
    lines, LINES[:] = [line for line in LINES if line not in MARKS], []
    return lines


@pytest.fixture(scope="module")
def tokenized(tiny_store: Path, board: None) -> Run:
    run = run_of(tiny_store)
    for kind in STAGES:
        run.make(kind)
    return run


def documents(made: artifact.Artifact, kind: str = "documents") -> pa.Table:
    return pa.concat_tables([pq.read_table(made.uri(file.path)) for file in made.files if file.path.startswith(f"{kind}/")])


def test_copies_and_unlicensed_papers_are_dropped_and_kept_with_their_reason(tokenized: Run) -> None:
    made = tokenized.artifact("corpus/papers")
    kept, dropped = documents(made), documents(made, "dropped")
    assert made.facts["read"] == 241 == kept.num_rows + dropped.num_rows
    assert made.facts["dropped"] == {"duplicate": 2, "licence": 1}
    assert Counter(dropped.column("step").to_pylist()) == {"duplicate": 2, "licence": 1}
    assert "publisher-copyright" in next(row["reason"] for row in dropped.to_pylist() if row["step"] == "licence")
    assert len(set(kept.column("text").to_pylist())) == kept.num_rows


def test_every_token_of_every_document_is_in_the_shards_once(tokenized: Run) -> None:
    made = tokenized.artifact("tokens/papers")
    tokenizer = AutoTokenizer.from_pretrained(Path(tokenized.store_uri) / "raw" / "models" / "tiny")
    held = pa.ipc.open_file(made.uri("heldout.arrow")).read_all()
    expected: Counter[int] = Counter()
    for row in documents(tokenized.artifact("corpus/papers")).to_pylist():
        if row["id"] not in held.column("id").to_pylist():
            expected.update([*tokenizer(row["text"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])
    shards = [pa.ipc.open_file(made.uri(file.path)).read_all() for file in made.files if file.path.startswith("shards/")]
    found = Counter(token for shard in shards for tokens in shard.column("tokens").to_pylist() for token in tokens)
    assert sum((expected - found).values()) == made.facts["tail_tokens"] and not found - expected
    assert len(shards) > 1 and sum(shard.num_rows for shard in shards) == made.facts["rows"]
    seen = {id_ for shard in shards for ids in shard.column("doc_ids").to_pylist() for id_ in ids}
    assert not seen & set(held.column("id").to_pylist())


def test_a_second_run_makes_the_same_bytes(tokenized: Run, tmp_path: Path) -> None:
    from tiny import write_raw

    write_raw(tmp_path)
    again = run_of(tmp_path)
    for kind in STAGES:
        again.make(kind)
    same = (
        "corpus/papers",
        "corpus/books",
        "tokens/papers",
        "tokens/books",
        "tokens/general",
        "instructions/questions",
        "probes",
    )
    for name in (*same, "instructions/graph", "chats/questions", "chats/graph", "exams/clinical"):
        assert again.artifact(name).digest == tokenized.artifact(name).digest, name


def test_what_is_finished_is_not_made_again(tokenized: Run) -> None:
    said()
    again = run_of(Path(tokenized.store_uri))
    again.make("corpus")
    assert "".join(said()).count("cached") == 3 and not again.made


def test_a_stage_before_its_inputs_says_which_to_run(tiny_store: Path) -> None:
    with pytest.raises(StageError, match=r"--job corpus") as raised:
        run_of(tiny_store, "clean.min_chars=41").make("tokens")
    assert raised.value.where == "corpus/books"


def test_a_corpus_that_is_empty_after_filtering_says_why(tiny_store: Path) -> None:
    run = run_of(tiny_store, "sources.papers.licences=[cc-by]")
    with pytest.raises(StageError, match=r"no document of 241 is left.*'licence': 241"):
        run.make("corpus")


def test_a_corrupt_file_is_quarantined_and_past_the_budget_it_is_named_and_nothing_is_finished(tmp_path: Path) -> None:
    from tiny import write_raw

    write_raw(tmp_path)
    broken = tmp_path / "raw" / "medline" / "1.xml.gz"
    broken.write_bytes(broken.read_bytes()[:-40])
    run = run_of(tmp_path, "clean.bad_files={max_files: 0}")
    with pytest.raises(StageError, match=r"1 of 2 files could not be read.*raw/medline/1\.xml\.gz: .*gzip") as raised:
        run.make_one("corpus/papers")
    assert raised.value.where == "sources.papers" and raised.value.remedy
    assert not list((tmp_path / "artifacts" / "corpus" / "papers").rglob("manifest.json"))
    lenient = run_of(tmp_path)
    lenient.make_one("corpus/papers")
    made = lenient.artifact("corpus/papers")
    (row,) = documents(made, "quarantine").to_pylist()
    assert row["step"] == "unreadable" and row["uri"] == "raw/medline/1.xml.gz" and made.facts["quarantined"] == {"unreadable": 1}
    assert set(documents(made).column("uri").to_pylist()) == {"raw/medline/0.xml.gz"} and made.facts["read"] == 121


def test_what_a_killed_run_has_read_is_not_read_again(tmp_path: Path) -> None:
    from tiny import write_raw

    write_raw(tmp_path)
    run = run_of(tmp_path)
    stage = run.stages["corpus/papers"]
    fingerprint = fingerprint_in(stage, {}, raw_listing(stage, str(tmp_path)))
    work = Path(artifact.stage_uri(str(tmp_path), "corpus/papers", fingerprint)) / "work"
    parts, terms = parts_of(run.recipe, "papers", str(tmp_path)), terms_of(run.recipe, "papers", str(tmp_path))
    strict = replace(terms, rules=replace(terms.rules, min_chars=10_000))  # leaves a trace: nothing of part 0 passes
    read_part(parts[0], strict, str(work))
    run.make_one("corpus/papers")
    made = run.artifact("corpus/papers")
    assert len(parts) == 2 and set(documents(made).column("uri").to_pylist()) == {"raw/medline/1.xml.gz"}
    assert made.facts["dropped"]["too_short"] == 121 - made.facts["dropped"].get("licence", 0) and made.facts["read"] == 241
    assert not [path for path in work.rglob("*") if path.is_file()]


def test_a_retracted_paper_goes_and_canaries_come_and_the_funnel_tells_it(tmp_path: Path) -> None:
    from tiny import write_raw

    write_raw(tmp_path)
    (tmp_path / "raw" / "retracted.csv").write_text("id,why\npmid:1003,withdrawn by its authors\n")
    asked = ("sources.papers.retracted=raw/retracted.csv", "canaries={source: papers, count: 2, repeats: [1, 3]}")
    run = run_of(tmp_path, *asked, "clean.identifiers={max_per_document: 0}")
    run.make_one("corpus/papers")
    made = run.artifact("corpus/papers")
    kept, planted = documents(made).to_pylist(), canary_documents(run.recipe, "papers")
    assert [row["text"] for row in kept if row["article_type"] == "canary"] == [document.text for document in planted]
    assert made.facts["dropped"] == {"duplicate": 2, "licence": 1, "retracted": 1} and made.facts["canaries"] == 4 == len(planted)
    assert made.facts["read"] == 241 and made.facts["documents"] == len(kept) == 241 - 4 + len(planted)
    assert "pmid:1003" not in {row["id"] for row in kept}
    funnel = pq.read_table(made.uri("funnel.parquet")).to_pylist()
    lost = {row["stage"]: row["documents_dropped"] for row in funnel if row["documents_dropped"]}
    assert lost == made.facts["dropped"]
    page = lxml.html.parse(made.uri("funnel.html")).getroot().text_content()
    assert "retracted" in page and "241" in page


def test_conversations_that_hold_an_exam_item_are_removed_and_counted(tokenized: Run) -> None:
    exam, made = tokenized.artifact("exams/clinical"), tokenized.artifact("instructions/questions")
    assert exam.facts["items"] == 48 and exam.facts["dropped"] == {"malformed": 2, "unlabelled": 0, "duplicate": 1}
    assert made.facts["overlap"] == {"exam_items": 48, "checked": 82, "removed": 2}
    assert made.facts["exams"] == {"clinical": {"items": 48, "found": 1, "documents": 2}}
    dropped = [row for row in documents(made, "dropped").to_pylist() if row["step"] == "exam"]
    assert len(dropped) == 2 and all("of exam item anatomy:4" in row["reason"] for row in dropped)
    held = pq.read_table(made.uri("exam_items.parquet")).to_pylist()
    assert {(row["id"], row["exam"], row["item"]) for row in held} == {(row["id"], "clinical", "anatomy:4") for row in dropped}
    stems = {item["question"] for item in pq.read_table(exam.uri("items.parquet")).to_pylist()}
    for row in documents(made, "conversations").to_pylist():
        assert not any(stem in message["content"] for stem in stems for message in row["messages"])
    assert made.facts["conversations"] == 80 == documents(made, "conversations").num_rows


def test_a_sample_is_drawn_once_and_a_wrong_subject_is_named(tokenized: Run, tiny_store: Path) -> None:
    made = tokenized.artifact("instructions/graph")
    assert made.facts["conversations"] == 60 < made.facts["made"]
    with pytest.raises(InputError, match="no conversation has the subject virologie") as raised:
        run_of(tiny_store, "instructions.questions.subjects=[virologie]").make("instructions")
    assert "virology" in raised.value.remedy


def test_rows_of_conversations_train_the_answers_alone(tokenized: Run) -> None:
    made = tokenized.artifact("chats/questions")
    tokenizer = AutoTokenizer.from_pretrained(Path(tokenized.store_uri) / "raw" / "models" / "tiny")
    answers = {
        row["id"]: row["messages"][-1]["content"]
        for row in documents(tokenized.artifact("instructions/questions"), "conversations").to_pylist()
    }
    found = {}
    for file in made.files:
        if file.path.startswith("shards/"):
            for row in pa.ipc.open_file(made.uri(file.path)).read_all().to_pylist():
                end = 0
                for id_, length in zip(row["doc_ids"], row["doc_lengths"], strict=True):
                    tokens, trained = (row[name][end : end + length] for name in ("tokens", "trained"))
                    end += length
                    spoken = [token for token, is_trained in zip(tokens, trained, strict=True) if is_trained]
                    assert bool(id_) == bool(spoken)
                    if id_:
                        found[id_] = tokenizer.decode(spoken, clean_up_tokenization_spaces=False)
    assert found == {id_: answer + "<|im_end|>" for id_, answer in answers.items()}


def test_no_conversation_is_made_from_a_held_out_document(tokenized: Run) -> None:
    held = set(pa.ipc.open_file(tokenized.artifact("tokens/books").uri("heldout.arrow")).read_all().column("id").to_pylist())
    made, source = tokenized.artifact("chats/graph"), tokenized.artifact("instructions/graph")
    about = {row["id"]: row["document"] for row in documents(source, "conversations").to_pylist()}
    left_out = {id_ for id_, document in about.items() if document in held}
    assert held and left_out and made.facts["dropped"]["heldout"] == len(left_out)
    shards = [pa.ipc.open_file(made.uri(file.path)).read_all() for file in made.files if file.path.startswith("shards/")]
    trained = {id_ for shard in shards for ids in shard.column("doc_ids").to_pylist() for id_ in ids if id_}
    assert trained == set(about) - left_out
    assert {row["id"] for row in documents(made, "dropped").to_pylist() if row["step"] == "heldout"} == left_out


def test_probes_ask_about_rows_that_are_trained_on_and_twins_about_none(tokenized: Run) -> None:
    rows = pq.read_table(tokenized.artifact("probes").uri("probes.parquet")).to_pylist()
    held = {
        id_
        for name in ("books", "papers")
        for id_ in pa.ipc.open_file(tokenized.artifact(f"tokens/{name}").uri("heldout.arrow")).read_all().column("id").to_pylist()
    }
    kinds = {row["kind"] for row in rows}
    assert kinds and all({row["seed"] is None for row in rows if row["kind"] == kind} == {True, False} for kind in kinds)
    for row in rows:
        assert (row["document"] in held) == (row["seed"] is None)
        assert len(set(row["candidates"])) == 4 and 0 <= row["answer"] < 4


def test_a_study_trains_each_variant_once_and_shares_what_is_the_same(tokenized: Run) -> None:
    said()
    study(tokenized)
    tokenized.make("verdict")
    text = "\n".join(said())
    assert "study: 4 of 4 trials to run, 1 at once" in text and "step 12/12" in text and "step 6/6" in text
    assert re.search(r"pretrain/instructed +cached", text)
    shared = [tokenized.artifact(f"pretrain/{name}").manifest_uri for name in ("knowledge", "instructed")]
    assert shared[0] == shared[1]
    made = tokenized.artifact("pretrain/knowledge")
    assert made.facts["tokens"] == 12 * 20 * 64 and made.facts["loss_last"] < made.facts["loss_first"]
    assert made.facts["rows"] == {"books": 180, "general": 12, "papers": 48}
    tuned = tokenized.artifact("instruct/instructed")
    assert tuned.facts["tokens"] == 6 * 8 * 256 and 0 < tuned.facts["targets"] < tuned.facts["tokens"] / 4
    assert tuned.facts["loss_last"] < tuned.facts["loss_first"]
    gate = tokenized.artifact("verdict").facts["gate"]
    assert gate["passed"] and gate["winner"] == "knowledge", gate["reason"]
    leftovers = [path for path in Path(made.manifest_uri).parent.iterdir() if path.name in ("state", "ray_train")]
    assert leftovers == []
    again = run_of(Path(tokenized.store_uri))
    study(again)
    assert not again.made and "study:" not in "".join(said())


def test_what_the_plan_calls_shared_is_trained_once_and_costs_what_it_says(tokenized: Run) -> None:
    plan = make_plan(tokenized.recipe, tokenized.store_uri)
    trained = {"pretrain": 0, "instruct": 0}
    for course in plan.courses:
        kind, made = course.stage.split("/")[0], tokenized.artifact(course.stage)
        steps = [point["step"] for point in read_journal(storage.read_bytes(made.uri("metrics.jsonl")))]
        ledger = parse_ledger(storage.read_bytes(made.uri(LEDGER)), course.stage)
        assert steps == list(range(1, (course.steps or 0) + 1)) and made.facts["tokens"] == course.tokens
        assert sum(ledger.rows.values()) == len(steps) * (20 if kind == "pretrain" else 8)
        assert made.manifest_uri == tokenized.artifact(course.shared_with or course.stage).manifest_uri
        trained[kind] += 0 if course.shared_with else len(steps)
    assert [course.shared_with for course in plan.courses] == [None, None, "pretrain/knowledge", None]
    assert trained == {kind: plan.as_json()["totals"][kind]["steps"] for kind in trained} == {"pretrain": 24, "instruct": 6}
    attempts = [path for kind in trained for path in Path(tokenized.store_uri, "artifacts", kind).glob("*/*/metrics.jsonl")]
    assert len(attempts) == 3  # nothing was trained beside what the plan says
    cost = tokenized.artifact("pretrain/knowledge").facts["cost"]
    held = sum(cost["worker_seconds"].values())
    assert (cost["workers"], cost["groups"], cost["lost_worker_seconds"]) == (2, 1, 0.0)
    assert 0 < cost["idle_worker_seconds"] < held < 2 * tokenized.artifact("pretrain/knowledge").seconds
    assert not list(Path(tokenized.store_uri, "artifacts", "pretrain").glob("*/groups/*"))


def test_table_page_and_json_say_the_same(tokenized: Run) -> None:
    report(tokenized)
    folder = Path(results_uri(tokenized.store_uri, tokenized.recipe))
    results = json.loads((folder / "results.json").read_text())
    page = lxml.html.parse(folder / "report.html").getroot()
    assert json.loads(page.get_element_by_id("results").text) == results
    text, shown = "\n".join(said()), page.text_content()
    for trial in results["trials"]:
        losses = pq.read_table(tokenized.artifact(f"evaluate/{trial['name']}").uri("losses.parquet")).to_pandas()
        for source, found in trial["perplexity"].items():
            of_source = losses[losses["source"] == source]
            value = np.exp(of_source["nll_nats"].sum() / of_source["targets"].sum())
            assert found["value"] == pytest.approx(value) and f"{value:.2f}" in text and f"{value:.2f}" in shown
        answers = pq.read_table(tokenized.artifact(f"evaluate/{trial['name']}").uri("answers.parquet")).to_pandas()
        found = trial["exams"]["clinical"]
        assert (found["items"], found["correct"]) == (30, int((answers["chosen"] == answers["answer"]).sum()))
        share = f"{100 * found['correct'] / 30:.1f}%"
        assert share in text and share in shown
        assert mlflow_metrics(results, trial["name"])["accuracy_clinical"] == found["accuracy"]
    seconds = f"{results['cost']['total']['worker_seconds']:,.0f}"
    assert results["cost"]["total"]["lost"] == 0 and seconds in text and seconds in shown
    assert seconds in (folder / "report.md").read_text()


@pytest.mark.long
def test_a_failing_trial_is_named_and_does_not_hold_the_rest(tokenized: Run, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(tokenized.store_uri, store, ignore=shutil.ignore_patterns("pretrain", "instruct", "evaluate", "verdict"))
    broken = next((store / "artifacts" / "tokens" / "general").rglob("00000.arrow"))
    broken.write_bytes(broken.read_bytes()[:100])
    plain = ("probes=null", "gate=null", "serve=null", "search=null", "cluster.max_failures=0", "cluster.num_workers=1")
    variants = "control: {weights: {general: 1}}, base: {}"
    run = run_of(store, f"variants={{{variants}}}", *plain)
    with pytest.raises(InputError, match="not a whole shard"):
        study(run)
    assert [run.find(f"evaluate/{name}") is not None for name in ("control", "base")] == [False, True]


def test_a_search_finds_the_learning_rate_that_learns_and_goes_on_where_it_was(tokenized: Run, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(tokenized.store_uri, store, ignore=shutil.ignore_patterns("pretrain", "instruct", "evaluate", "verdict"))
    run = run_of(store, "cluster.num_workers=1")
    search(run)
    folder = Path(results_uri(run.store_uri, run.recipe))
    found = json.loads((folder / "search.json").read_text())
    assert [trial["values"] for trial in found["trials"]] == [{"pretrain.optimizer.lr": lr} for lr in (1e-2, 1e-5)]
    assert found["best"] == {"pretrain.optimizer.lr": 1e-2}
    assert [trial["steps"] == 12 for trial in found["trials"]] == [not trial["stopped"] for trial in found["trials"]]
    assert found["trials"][1]["stopped"]  # it learns nothing, and was reported last
    best = load(folder / "best.yaml")
    assert best.pretrain.optimizer.lr == 1e-2 and best.search is None and best.variants == run.recipe.variants
    said()
    search(run_of(store, "cluster.num_workers=1"))
    assert "step " not in "".join(said()) and json.loads((folder / "search.json").read_text()) == found


def test_the_export_loads_in_plain_transformers_and_scores_the_same(tokenized: Run, tmp_path: Path) -> None:
    import torch

    made = tokenized.artifact("pretrain/knowledge")
    folder = artifact.fetch_files(made, tmp_path, "export/")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert "not for clinical use" in (folder / "README.md").read_text().lower()
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False).startswith("<|im_start|>user")
    held = pa.ipc.open_file(tokenized.artifact("tokens/papers").uri("heldout.arrow")).read_all().to_pylist()
    losses = pq.read_table(tokenized.artifact("evaluate/knowledge").uri("losses.parquet")).to_pylist()
    by_id = {row["id"]: row["nll_nats"] for row in losses if row["source"] == "papers"}
    assert by_id.keys() == {row["id"] for row in held}
    for row in held:
        ids = torch.tensor([row["tokens"]])
        with torch.inference_mode():
            expected = model(ids, labels=ids).loss.double() * (ids.shape[1] - 1)
        assert by_id[row["id"]] == pytest.approx(float(expected), rel=1e-4)


def test_ray_data_without_logical_cpus_is_refused_before_it_hangs(tokenized: Run) -> None:
    wide = "cluster.num_workers=7"
    for refuse in (check_room, study):  # before the first stage of a whole run, and by the study itself
        with pytest.raises(PlanError, match=r"need 9 logical CPUs.*the cluster has at most 8"):
            refuse(run_of(Path(tokenized.store_uri), wide, "pretrain.optimizer.lr=2e-2"))
    check_room(run_of(Path(tokenized.store_uri), wide))  # its trials are finished


def test_workers_and_driver_have_the_standard_library_s_platform() -> None:
    import platform

    import ray

    @ray.remote
    def system() -> tuple[str, str]:
        import platform as inside

        return inside.system(), str(inside.__file__)

    found, where = ray.get(system.remote())
    assert found == platform.system() and where == platform.__file__ and "medschool" not in where
    assert not (Path(__file__).parents[2] / "platform" / "__init__.py").exists()


def test_no_row_is_fed_twice_in_an_epoch(tokenized: Run) -> None:
    from medschool.plan import read_index
    from medschool.procedure import resolve_all
    from medschool.tokens.order import Order

    resolved = resolve_all(tokenized.recipe, tokenized.store_uri)
    index = read_index(resolved["tokens/books"])
    assert index is not None
    order = Order({"books": 1}, 10, {"books": index.shard_rows}, 1)
    rows = [(ref.shard, ref.row) for batch in range(index.rows // 10) for ref in order.batch(batch)]
    assert len(set(rows)) == len(rows) == index.rows // 10 * 10
    assert np.all(np.array(index.shard_rows) > 0)
