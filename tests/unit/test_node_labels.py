"""Labels that nodes must have to hold training workers: in the recipe, in a plan against a cluster file, and in what is said."""

from pathlib import Path
from typing import Any

import pytest

from medschool.cluster.memory import second_copy_bytes
from medschool.cluster.offer import read_cluster
from medschool.errors import PlanError, RecipeError
from medschool.forecast import forecast
from medschool.plan import make_plan
from medschool.recipe import load
from medschool.train.failures import Request

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "recipes" / "pmc_llama_13b.yaml"


def foreseen(*settings: str) -> Any:
    recipe = load(PAPER, list(settings))
    return forecast(make_plan(recipe, ""), read_cluster(ROOT / "cluster.yaml"), recipe.model.shape).needs[0]


def labelled(**labels: str) -> str:
    return (
        "cluster.node_labels={" + ", ".join(f"ray.io/{name.replace('_', '-')}: {value}" for name, value in labels.items()) + "}"
    )


def test_a_plan_takes_the_nodes_with_the_labels_and_no_other() -> None:
    assert foreseen(labelled(accelerator_type="A100", market_type="spot")).nodes["gpu_train"] == 4
    with pytest.raises(
        PlanError, match=r"32 workers of .* on nodes with ray\.io/market-type=on-demand and .* can never hold them"
    ):
        foreseen(labelled(market_type="on-demand"))
    with pytest.raises(PlanError, match="accelerator-type=H100"):
        foreseen(labelled(accelerator_type="H100"))


def test_what_is_no_label_is_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(RecipeError, match="node_labels"):
        load(PAPER, ['cluster.node_labels={zone: "a b"}'])


def test_a_group_without_a_place_says_which_labels_it_asks_for() -> None:
    asked = Request(2, {"CPU": 4.0, "GPU": 1.0}, {"ray.io/accelerator-type": "A100"})
    assert str(asked) == "2 workers of 4 CPUs, 1 GPU each on nodes with ray.io/accelerator-type=A100"
    assert str(Request(1, {"CPU": 1.0})) == "1 worker of 1 CPU each"


def test_a_plan_counts_the_second_copy_of_the_weights_on_several_machines() -> None:
    recipe = load(PAPER)
    (course,) = [each for each in make_plan(recipe, "").courses if each.shared_with is None]
    assert recipe.model.shape is not None and course.memory is not None
    second = second_copy_bytes(recipe.model.shape, recipe.cluster, "bf16", 32, 4)
    assert second == 2 * 13_015_864_320 // 8
    assert foreseen().memory_share == pytest.approx((course.memory.peak_bytes + second) / (80 * 2**30), abs=1e-3)
    for machines, workers in ((1, 32), (32, 32), (3, 32)):
        assert second_copy_bytes(recipe.model.shape, recipe.cluster, "bf16", workers, machines) == 0
