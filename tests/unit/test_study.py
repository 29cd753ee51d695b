"""Who makes what in a study: shared stages once, by the first trial that needs them; MLflow runs that change with what is read."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scored_trials import finish, promoted_recipe

import jobs.study
from jobs.study import check_room, makers_of, stages_of
from medschool.errors import PlanError
from medschool.procedure import checkpoint_stage, trials
from medschool.recipe import load

RECIPE = load(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")


def test_the_first_trial_that_needs_a_stage_makes_it() -> None:
    assert makers_of(RECIPE, "pretrain/instructed") == ["knowledge", "instructed"]
    assert makers_of(RECIPE, "instruct/instructed") == ["instructed"]
    assert makers_of(RECIPE, "evaluate/base") == ["base"]


def test_seeds_share_nothing() -> None:
    recipe = load(Path(__file__).parents[2] / "recipes" / "rehearsal.yaml")
    assert makers_of(recipe, "pretrain/instructed-seed8") == ["knowledge-seed8", "instructed-seed8"]


def test_a_trial_is_judged_by_its_last_training() -> None:
    stages = {trial.name: (stages_of(RECIPE, trial), checkpoint_stage(RECIPE, trial)) for trial in trials(RECIPE)}
    assert stages["base"] == (["evaluate/base"], "model")
    assert stages["knowledge"] == (["pretrain/knowledge", "evaluate/knowledge"], "pretrain/knowledge")
    assert stages["instructed"][0] == ["pretrain/instructed", "instruct/instructed", "evaluate/instructed"]
    assert stages["instructed"][1] == "instruct/instructed"


def test_a_cluster_too_small_is_refused_at_once_unless_nothing_is_left_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medschool.train import on_ray

    recipe, rooms = promoted_recipe(cluster={"num_workers": 7}), [{"CPU": 8.0, "GPU": 0.0}]
    run: Any = SimpleNamespace(recipe=recipe, store_uri=str(tmp_path))
    for module in (on_ray, jobs.study):
        monkeypatch.setattr(module, "cluster_room", lambda: rooms[-1])
    with pytest.raises(PlanError, match=r"need 9 logical CPUs.*at most 8"):
        check_room(run)
    rooms.append({"CPU": 0.0, "GPU": 0.0})
    check_room(run)  # a head without work: its autoscaler has not said yet what may come
    rooms.pop()
    finish(recipe, tmp_path)
    check_room(run)
