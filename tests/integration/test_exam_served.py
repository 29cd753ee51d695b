"""Exams through our own server against the same weights at hand: the same letters, log-probabilities and texts, item by item."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from exam_files import ITEMS, records
from scored_trials import recipe_with
from served import KEY, api, on_port
from tiny import write_model

from medschool import artifact
from medschool.evaluate import on_ray as stage
from medschool.evaluate.answer import write_answers
from medschool.evaluate.at_endpoint import Reader, is_refused, sit, way
from medschool.evaluate.endpoint import Endpoint
from medschool.evaluate.exams import score_as_harness
from medschool.evaluate.harness import harness_encoder
from medschool.evaluate.protocol import sitting
from medschool.exams.formats import EXAM_FORMATS
from medschool.exams.layout import RATIONALE_INSTRUCTIONS
from medschool.exams.make import make_exam, read_items
from medschool.instructions.template import ChatTemplate
from medschool.recipe.corpus import Files
from medschool.recipe.evaluation import Exam, Shots
from medschool.rows import ExamItem
from medschool.serve.paged import TransformersEngine
from medschool.serve.template import CheckpointText
from medschool.train.model import load_model

CONTEXT = 640
FILES = (Files(uri="raw/e", format="mmlu"),)


def read(form: str, worked: bool = False) -> list[ExamItem]:
    """Invented questions through the reader of their form."""
    rows = records(form, worked)
    lines = json.dumps(dict(enumerate(rows))) if form == "pubmedqa" else "\n".join(map(json.dumps, rows))
    found = EXAM_FORMATS["medmcqa_from_0" if form == "medmcqa" else form](lines.encode(), "file", "exam")
    return [row for row in found if isinstance(row, ExamItem)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with large weights, in which every token of the prompt changes what follows."""
    from transformers import AutoModelForCausalLM

    made = tmp_path_factory.mktemp("model")
    write_model(made)
    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    model.config.max_position_embeddings = CONTEXT
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(8 if weights.ndim > 1 else 1)
    model.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def endpoint(folder: Path) -> Iterator[Endpoint]:
    """The real engine and API over real HTTP, with two places and room for two more to wait."""
    text = CheckpointText(folder)
    engine = TransformersEngine(folder, text.end_ids, context_tokens=CONTEXT, places=2, dtype="fp32")
    try:
        with on_port(api(engine, text, context=CONTEXT, places=4)) as url, closing(Endpoint(f"{url}/v1", "echo", KEY)) as asked:
            asked.check()
            yield asked
    finally:
        engine.stop()


@pytest.mark.parametrize(("form", "shot_count"), [("mmlu", 1), ("medqa", 0), ("medmcqa", 1), ("pubmedqa", 0)])
def test_option_log_likelihoods_are_those_of_the_weights_at_hand(
    endpoint: Endpoint, folder: Path, tmp_path: Path, form: str, shot_count: int
) -> None:
    items, worked, encode = read(form), read(form, worked=True), harness_encoder(folder)
    assert len(items) == ITEMS
    spec = Exam(files=FILES, protocol="lm_eval", shots=Shots(files=FILES, count=shot_count) if shot_count else None)
    how = sitting(spec, items, worked)
    served = way(endpoint, spec, how, 16, Reader(encode, CONTEXT))
    rows = {row["id"]: row for row in sit(items, tmp_path / "e.jsonl", served, 3)}
    local = score_as_harness(load_model(folder, "fp32").eval(), encode, items, how, how.protocol("").hash).to_pylist()
    whole = [row for row in local if not row["cut_tokens"] and not rows[row["id"]]["cut_tokens"]]
    assert len(whole) >= 4, "of cut items two tokens more are lost behind an endpoint"
    for row in whole:
        mine = rows[row["id"]]
        assert mine["log_probs"] == pytest.approx(row["log_probs"], abs=1e-3)
        assert {key: mine[key] for key in ("chosen", "chosen_norm", "correct", "protocol")} == {
            key: row[key] for key in ("chosen", "chosen_norm", "correct", "protocol")
        }
    assert not any(map(is_refused, rows.values()))
    assert len({tuple(row["log_probs"]) for row in whole}) == len(whole)


@pytest.mark.parametrize("tokens", [None, 24])
def test_answers_in_words_are_those_of_the_weights_at_hand(
    endpoint: Endpoint, folder: Path, tmp_path: Path, tokens: int | None
) -> None:
    items = read("mmlu")[:4]
    changes: dict[str, Any] = {"protocol": "chain_of_thought", "thought_tokens": tokens} if tokens else {}
    spec = Exam(files=FILES, **changes)
    rows = sit(items, tmp_path / "e.jsonl", way(endpoint, spec, sitting(spec, items, ()), 12, None), 4)
    instruction = {"instruction": RATIONALE_INSTRUCTIONS[0]} if tokens else {}
    local = write_answers(load_model(folder, "fp32").eval(), ChatTemplate(folder), items, tokens or 12, **instruction).to_pylist()
    assert [row["text"] for row in rows] == [row["text"] for row in local] and any(row["text"] for row in rows)
    assert [(row["chosen"], row["problem"]) for row in rows] == [(row["chosen"], row["problem"]) for row in local]


# ---- the stage ----------------------------------------------------------------------------------------------------------------


def test_a_chain_of_thought_makes_the_exam_s_scores_and_keeps_its_texts(folder: Path, tmp_path: Path) -> None:
    exam = {"files": [{"uri": "raw/exam/*", "format": "mmlu"}]}
    thought = exam | {"protocol": "chain_of_thought", "thought_tokens": 20, "items": 5}
    recipe = recipe_with(exams={"clinical": exam | {"generated_items": 2}, "thought": thought})
    (tmp_path / "raw" / "exam").mkdir(parents=True)
    (tmp_path / "raw" / "exam" / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records("mmlu", False)))
    store = str(tmp_path)
    exams = {name: made(store, f"exams/{name}", partial(make_exam, recipe, name, store)) for name in recipe.exams}
    model = made(store, "model", lambda prefix: artifact.Output(artifact.upload_folder(prefix, folder, "export")))
    examined = stage.Examined({}, exams, None)
    scorer = stage._Scorer(model, "fp32", recipe.evaluate.answer_tokens, "model", stage._sittings(recipe, examined))
    tables = stage._tables(
        recipe, examined, [scorer({"table": name, "items": items}) for name, items in stage._tasks(recipe, examined)]
    )
    scores = {name: [row for row in tables["answers"].to_pylist() if row["exam"] == name] for name in exams}
    texts = {name: [row for row in tables["written"].to_pylist() if row["exam"] == name] for name in exams}
    assert [len(scores[name]) for name in exams] == [ITEMS, 5] and [len(texts[name]) for name in exams] == [2, 5]
    assert all(len(row["log_probs"]) == 4 for row in scores["clinical"]) and all(
        row["log_probs"] == [] for row in scores["thought"]
    )
    shared = ("id", "chosen", "correct", "protocol")
    assert [[row[key] for key in shared] for row in scores["thought"]] == [
        [row[key] for key in shared] for row in texts["thought"]
    ]
    keys = {item.id: item.answer for item in read_items(exams["thought"])}
    assert all(row["answer"] == keys[row["id"]] for row in scores["thought"])
    assert len({row["protocol"] for name in exams for row in (*scores[name], *texts[name])}) == 3
    local = write_answers(
        load_model(folder, "fp32").eval(),
        ChatTemplate(folder),
        read_items(exams["thought"])[:5],
        20,
        "",
        RATIONALE_INSTRUCTIONS[0],
    )
    assert {row["id"]: row["text"] for row in texts["thought"]} == dict(
        zip(local.column("id").to_pylist(), local.column("text").to_pylist(), strict=True)
    )


def made(store: str, name: str, do: Callable[[str], artifact.Output]) -> artifact.Artifact:
    return artifact.make(store, name, "f" * 16, {}, do)
