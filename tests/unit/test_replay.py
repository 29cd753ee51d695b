"""A share of general instructions in the tuning: exact in every batch, where the recipe's parts divide it, and over batches else."""

from collections import Counter
from pathlib import Path

import pytest

from medschool.plan import make_plan
from medschool.procedure import stages
from medschool.recipe import Recipe, load
from medschool.tokens.order import Order, order_of

ROOT = Path(__file__).parents[2]
SHARDS = {"exam_questions": (50, 50), "graph": (64,), "reading": (90, 7), "replay": (13,)}


def recipe(*overrides: str) -> Recipe:
    return load(ROOT / "recipes" / "reading.yaml", overrides)


def order(*overrides: str) -> Order:
    return order_of(recipe(*overrides), "replayed", "instruct", 7, SHARDS, {})


def test_every_batch_of_the_shipped_recipe_has_one_general_row_of_ten() -> None:
    found = order()
    batches = [found.batch(batch) for batch in range(52)]
    parts = {"exam_questions": 4, "graph": 1, "reading": 4, "replay": 1}
    assert all(Counter(ref.source for ref in batch) == parts for batch in batches)
    seen = Counter((ref.shard, ref.row) for batch in batches for ref in batch if ref.source == "replay")
    assert set(seen.values()) == {4} and len(seen) == 13  # four passes over the general rows


@pytest.mark.parametrize(("general", "rows"), [(1, 8), (3, 7), (1, 3)])
def test_a_share_that_does_not_divide_the_batch_is_never_a_row_off(general: int, rows: int) -> None:
    found = order(f"variants.replayed.instructions={{reading: 9, replay: {general}}}", f"instruct.batch_rows={rows}")
    taken = 0
    for batch in range(200):
        taken += sum(ref.source == "replay" for ref in found.batch(batch))
        assert abs(taken - (batch + 1) * rows * general / (9 + general)) < 1


def test_the_plan_tells_the_share_in_tokens_and_one_override_takes_it_out() -> None:
    courses = {course.stage: course for course in make_plan(recipe(), "").courses}
    told = courses["instruct/replayed"].tokens_by_source
    assert told["replay"] * 10 == sum(told.values()) and "replay" not in courses["instruct/reading"].tokens_by_source
    without = recipe("variants.replayed.instructions={exam_questions: 4, graph: 1, reading: 5}")
    same = {stage.name: (stage.sections, stage.inputs) for stage in stages(without)}
    assert same["instruct/replayed"] == same["instruct/reading"]  # one training for both
