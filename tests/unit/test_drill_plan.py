"""What a drill plans and how it judges: starts, kills between checkpoints, and that every difference is a FAIL."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from medschool import storage
from medschool.cluster.drill import Outcome, Trained, judge, kill_steps, recoveries, world_sizes_of
from medschool.cluster.invented import ROW_TOKENS, VOCABULARY, invented_rows, tiny_model
from medschool.cluster.kill import Kill
from medschool.cluster.slice import tiny_slice
from medschool.cluster.strike import Said
from medschool.commands.drill import parse_sizes
from medschool.errors import PlanError, RecipeError
from medschool.recipe import load
from medschool.tokens.shards import tokens_of
from medschool.tokens.stream import feed_of, read_block
from medschool.train.course import Course

RECIPE = load(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")
CALM = Trained({1: 2.0, 2: 1.0}, 4.0, "aa", b"{}", 5.0)
KILLS = [Kill(1, 2, 100.0)]
SAID = [Said("step 1/2  loss 2.0", 99.9), Said("resuming at step 0 from x", 101.0), Said("step 1/2  loss 2.0", 108.5)]


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    store = str(tmp_path_factory.mktemp("store"))
    return tiny_slice(RECIPE, store, f"{store}/drills/x", 2)[0]


def judged(course: Course, sizes: tuple[int, ...] = (2, 2), **changed: Any) -> Outcome:
    return judge(course, CALM, dataclasses.replace(CALM, wall_s=8.0, **changed), sizes, KILLS, SAID)


def test_equal_runs_pass_and_the_figures_are_those_of_the_kill(course: Course) -> None:
    found = judged(course)
    assert (found.result, found.reasons, found.lost_steps, found.recovery_s, found.goodput) == ("PASS", (), 1, 8.5, 0.5)
    assert found.kills[0].resumed_step == 0 and found.lines()[0].startswith("PASS") and found.as_json()["result"] == "PASS"


@pytest.mark.parametrize(
    ("sizes", "changed", "reason"),
    [
        ((2, 2), {"sha256": "bb"}, "the weights differ"),
        ((2, 2), {"losses": {1: 2.0, 2: 1.0 + 1e-9}}, "a loss differs by 1.0e-09 before the number of workers changed"),
        ((2, 1), {"losses": {1: 2.0, 2: 1.0002}}, "a loss differs by 2.0e-04"),
        ((2, 1), {"losses": {1: 2.0}}, "a loss differs by inf"),
        ((2, 1), {"losses": {1: 2.0, 2: math.nan}}, "a loss differs by inf"),
        ((2, 1), {"ledger": b"{ }"}, "the ledgers differ"),
        ((2, 1, 2), {}, "1 of 2 kills"),
    ],
)
def test_every_difference_is_a_fail(course: Course, sizes: tuple[int, ...], changed: dict[str, Any], reason: str) -> None:
    found = judged(course, sizes, **changed)
    assert found.result == "FAIL" and any(reason in told for told in found.reasons)
    assert any(reason in line for line in found.lines())


def test_another_number_of_workers_may_round_otherwise(course: Course) -> None:
    assert judged(course, (2, 1), sha256="bb", losses={1: 2.0, 2: 1.00005}).result == "PASS"


def test_until_it_changes_nothing_may_differ(course: Course) -> None:
    later = [*SAID[:2], Said("step 2/2  loss 1.0", 108.5)]
    differs = dataclasses.replace(CALM, losses={1: 2.00001, 2: 1.0})
    found = judge(course, CALM, differs, (2, 1), [Kill(2, 2, 100.0)], later)
    assert found.result == "FAIL" and "before the number of workers changed" in found.reasons[0]


def test_a_kill_that_nothing_came_after_was_not_survived() -> None:
    assert recoveries(KILLS, SAID[:2], (2, 2)) == ()


@pytest.mark.parametrize(("kills", "steps"), [(1, 6), (1, 24), (2, 24), (3, 24), (5, 100), (9, 1000)])
def test_every_kill_comes_after_a_checkpoint_of_its_own_start(kills: int, steps: int) -> None:
    every, stops = kill_steps(steps, kills)
    assert len(stops) == kills and sorted(set(stops)) == list(stops) and stops[-1] < steps
    resumed = 0
    for stop in stops:
        assert stop % every and stop // every * every > resumed - every  # something is lost, and training has moved on
        resumed = stop // every * every
        assert resumed > 0


def test_too_few_steps_are_refused_with_the_number_that_would_do() -> None:
    with pytest.raises(PlanError, match="9 steps are too few for 2 kills") as refused:
        kill_steps(9, 2)
    assert "train at least 10" in refused.value.remedy
    kill_steps(10, 2)


def test_there_are_as_many_starts_as_kills_and_one() -> None:
    assert world_sizes_of([2], 2) == (2, 2, 2)
    assert world_sizes_of([2, 1, 2], 1) == (2, 1, 2)
    assert world_sizes_of([2, 1], 3) == (2, 1, 1, 1)


def test_world_sizes_are_read() -> None:
    assert parse_sizes("2,1,2", RECIPE) == [2, 1, 2] and parse_sizes("", RECIPE) == [RECIPE.cluster.most_workers]
    for text in ("2,x", "0,1", ",", "2;1"):
        with pytest.raises(RecipeError, match="cannot read"):
            parse_sizes(text, RECIPE)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_tiny_model_is_of_the_recipe_s_architecture(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoConfig

    large = AutoConfig.for_model(architecture).to_dict()
    assert large["hidden_size"] >= 2048
    made = tiny_model(RECIPE, str(tmp_path), large)
    config = json.loads(storage.read_bytes(made.uri("config.json")))
    assert (config["model_type"], config["hidden_size"], config["num_hidden_layers"]) == (architecture, 64, 2)
    assert sum(file.size_bytes for file in made.files if file.path.endswith(".safetensors")) < 2**20
    assert {"tokenizer.json", "tokenizer_config.json"} <= {file.path for file in made.files}


def test_invented_rows_are_rows_like_any(tmp_path: Path, course: Course) -> None:
    rows = invented_rows(RECIPE, str(tmp_path), "knowledge", 400)
    table = read_block(feed_of(course.order, rows), 0, 0, 1)
    tokens = tokens_of(table)
    assert tokens.shape == (course.order.batch_rows, ROW_TOKENS) and tokens.min() >= 3 and tokens.max() < VOCABULARY
    assert all(sum(lengths) == ROW_TOKENS and min(lengths) > 0 for lengths in table.column("doc_lengths").to_pylist())
