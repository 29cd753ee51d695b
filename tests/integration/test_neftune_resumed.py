"""Tuning with NEFTune through the real engine: a resumed run ends with the weights of the one that never stopped, bit by bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from medschool.artifact import Artifact
from medschool.cluster.invented import invented_rows
from medschool.recipe import Recipe, load
from medschool.tokens.order import Order
from medschool.tokens.stream import Feed, feed_of, read_block
from medschool.train.adopt import adopt_model
from medschool.train.course import Course
from medschool.train.engine import build_engine
from medschool.train.loop import train

SAVED, STEPS, ROWS = 2, 4, 4
SETTINGS = (f"instruct.batch_rows={ROWS}", "chats.row_tokens=64", "cluster.micro_batch_tokens=128", "cluster.zero_stage=2")


def tuning(lone_store: Path, *overrides: str) -> tuple[Course, Feed]:
    """The phase `instruct` of a recipe, on invented rows."""
    recipe: Recipe = load(lone_store / "tiny.yaml", [*SETTINGS, *overrides])
    model = Artifact(
        "model", "f", "m", str(lone_store / "raw/models/tiny"), adopt_model(recipe, str(lone_store)).files, {}, {}, 0
    )
    rows = invented_rows(recipe, str(lone_store), "control", 40)
    order = Order({"general": ROWS}, ROWS, {"general": rows["general"][1].shard_rows}, seed=3)
    return Course(recipe, "instruct", "t", model, order, STEPS, "", "", None), feed_of(order, rows)


def steps(engine: Any, feed: Feed, first: int, last: int) -> list[float]:
    batches = (read_block(feed, batch, 0, 1) for batch in range(first, last))
    return [step.loss for step in train(engine, batches, feed.order, first, first)]


def weights(engine: Any) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in engine.module.parameters()]


def test_a_resumed_tuning_draws_the_noise_that_it_would_have_drawn(lone_store: Path, tmp_path: Path) -> None:
    course, feed = tuning(lone_store, "instruct.neftune_alpha=10")
    engine = build_engine(course, 1)
    losses = steps(engine, feed, 0, SAVED)
    engine.save_checkpoint(str(tmp_path), tag="state")
    losses += steps(engine, feed, SAVED, STEPS)
    torch.rand(7)  # whatever else draws in between
    again = build_engine(course, 1)
    again.load_checkpoint(str(tmp_path), tag="state")
    assert steps(again, feed, SAVED, STEPS) == losses[SAVED:]
    assert all(map(torch.equal, weights(again), weights(engine)))
    quiet = build_engine(tuning(lone_store)[0], 1)
    plain = steps(quiet, feed, 0, STEPS)
    assert plain[0] != pytest.approx(losses[0], rel=1e-4) and not all(map(torch.equal, weights(quiet), weights(engine)))


@pytest.mark.parametrize("way", ["cluster.zero_stage=3", "cluster.loss_chunk_tokens=50", "cluster.micro_batch_tokens=64"])
def test_every_way_adds_the_same_noise(way: str, lone_store: Path) -> None:
    wanted, found = (
        steps(build_engine(course, 1), feed, 0, 2)
        for course, feed in (tuning(lone_store, "instruct.neftune_alpha=10", *more) for more in ((), (way,)))
    )
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.long  # torch.compile takes a minute
def test_a_compiled_model_adds_new_noise_at_every_step(lone_store: Path) -> None:
    wanted, found = (
        steps(build_engine(course, 1), feed, 0, STEPS)
        for course, feed in (tuning(lone_store, "instruct.neftune_alpha=10", *more) for more in ((), ("cluster.compile=true",)))
    )
    assert found == pytest.approx(wanted, rel=1e-5)
