"""The arithmetic of a search: windows of the loss, the best trial, recipes of trials."""

from pathlib import Path

import pytest

from jobs.search import best_of, child_of, windows
from medschool.ablate.on_ray import Tried
from medschool.errors import RecipeError
from medschool.recipe import load

RECIPE = load(Path(__file__).parents[2] / "recipes" / "search_lr.yaml")


@pytest.mark.parametrize(("steps", "every"), [(12, 3), (10, 3), (2, 3), (3, 3), (1, 1)])
def test_windows_cover_every_step_once(steps: int, every: int) -> None:
    losses = [float(step * step) for step in range(1, steps + 1)]
    found = windows(losses, every)
    assert [step for step, _ in found] == sorted({*range(every, steps + 1, every), steps})
    start = 0
    for step, mean in found:
        assert mean == pytest.approx(sum(losses[start:step]) / (step - start))
        start = step


def test_the_best_trial_ran_to_the_end() -> None:
    tried = [
        Tried({"lr": 1}, 3, {3: 0.1}, stopped=True),
        Tried({"lr": 2}, 6, {3: 0.5, 6: 0.4}, stopped=False),
        Tried({"lr": 3}, 6, {3: 0.5, 6: 0.3}, stopped=False),
    ]
    assert best_of(tried).values == {"lr": 3}


def test_a_trial_s_recipe_differs_in_its_values_and_has_no_search() -> None:
    child = child_of(RECIPE, {"pretrain.optimizer.lr": 5e-4})
    assert child.pretrain.optimizer.lr == 5e-4 and child.search is None
    assert child.pretrain.optimizer.betas == RECIPE.pretrain.optimizer.betas
    with pytest.raises(RecipeError, match="less than 1"):
        child_of(RECIPE, {"pretrain.optimizer.lr": 5.0})


def test_what_failed_is_not_the_best() -> None:
    failed = Tried({"lr": 9}, 6, {3: 0.1, 6: 0.1}, stopped=False, failed="the loss is no number")
    nothing = Tried({"lr": 8}, 0, {}, stopped=False, failed="no place")
    stopped = Tried({"lr": 1}, 3, {3: 0.4}, stopped=True)
    assert best_of([failed, nothing, stopped]) is stopped
    assert best_of([failed, nothing, stopped, whole := Tried({"lr": 2}, 6, {3: 0.6, 6: 0.5}, stopped=False)]) is whole
