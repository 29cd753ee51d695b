"""Cost of trials from the facts of their artifacts: shares, sums, what is shared, and a price where every node has one."""

import json
from typing import Any

import pytest
from scored_trials import promoted_recipe

from medschool.ablate.cost import cost_tables, costs
from medschool.ablate.gain import gains
from medschool.artifact import Artifact

FACTS: dict[str, dict[str, Any]] = {
    "pretrain/control": {
        "cost": {
            "workers": 4, "gpus_per_worker": 2, "groups": 2, "worker_seconds": {"spot": 7200.0, "demand": 1800.0},
            "idle_worker_seconds": 900.0, "lost_worker_seconds": 1800.0,
        }
    },
    "pretrain/knowledge": {
        "cost": {
            "workers": 2, "gpus_per_worker": 0, "groups": 1, "worker_seconds": {"spot": 3600.0}, "idle_worker_seconds": 360.0,
            "lost_worker_seconds": 0.0,
        }
    },
}  # fmt: skip
SHARED = {"pretrain/instructed": "pretrain/knowledge"}


def find(name: str) -> Artifact:
    name = SHARED.get(name, name)
    facts = FACTS.get(name, {"workers": 3} if name.startswith("evaluate/") else {})
    return Artifact(name, "f", name, "", (), facts, {}, 100.0)


def cost_with(**prices: float) -> dict[str, Any]:
    cluster = promoted_recipe().cluster.model_copy(update={"usd_per_worker_hour": prices})
    return costs(promoted_recipe().model_copy(update={"cluster": cluster}), find)


def test_shares_and_prices_of_each_stage() -> None:
    stages = {one["stage"]: one for one in cost_with(spot=2.0, demand=4.0)["stages"]}
    control = stages["pretrain/control"]
    assert (control["worker_seconds"], control["workers"]) == (9000.0, 4)
    assert (control["idle"], control["lost"]) == pytest.approx((0.1, 0.2))
    assert control["usd"] == pytest.approx(2 * 2.0 + 0.5 * 4.0)
    assert stages["evaluate/control"]["worker_seconds"] == 300.0 and stages["evaluate/control"]["usd"] is None
    shared = stages["pretrain/instructed"]
    assert (shared["shared_with"], shared["worker_seconds"], shared["usd"]) == ("pretrain/knowledge", 0.0, 0.0)
    assert stages["instruct/instructed"]["worker_seconds"] is None  # of a time before costs were recorded
    assert cost_with(spot=2.0)["stages"][1]["usd"] is None  # half of it has no price


def test_sums_of_trials_and_of_all() -> None:
    cost = cost_with(spot=2.0, demand=4.0)
    json.dumps(cost, allow_nan=False)
    trials = {one["trial"]: one for one in cost["trials"]}
    assert trials["base"] == {"trial": "base", "worker_seconds": 300.0, "idle": None, "lost": None, "usd": None}
    assert trials["control"]["worker_seconds"] == 9300.0 and trials["control"]["lost"] == pytest.approx(0.2)
    assert trials["instructed"]["worker_seconds"] is None and trials["instructed"]["usd"] is None
    assert trials["knowledge"]["usd"] == pytest.approx(2.0) and cost["total"]["idle"] == pytest.approx(1260 / 12600)
    assert cost["total"]["usd"] is None  # one training has no price: a sum of the others would be taken for all


def test_tables_show_prices_where_there_are_some_and_dashes_where_nothing_is_known() -> None:
    summed, stages = cost_tables(cost_with(spot=2.0, demand=4.0)).values()
    assert summed[0] == ["trial", "worker-seconds", "idle", "lost", "USD"]
    assert ["control", "9,300", "10%", "20%", "6.00"] in summed and ["base", "300", "-", "-", "-"] in summed
    assert ["pretrain/instructed", "-", "0", "-", "-", "0.00", "as pretrain/knowledge"] in stages
    assert ["pretrain/knowledge", "2", "3,600", "10%", "0%", "2.00", "spot: 3,600 s"] in stages
    assert all("USD" not in rows[0] for rows in cost_tables(cost_with()).values())
    assert cost_tables(None) == {}


def test_a_gain_counts_the_workers_that_made_it_not_those_of_the_recipe() -> None:
    effect = {"measure": "accuracy", "on": "clinical", "change": 0.05, "word": "helped"}
    pairs = [("control", "base"), ("knowledge", "control"), ("instructed", "knowledge")]
    effects = [effect | {"variant": variant, "reference": reference} for variant, reference in pairs]
    found = gains(promoted_recipe(), {"effects": effects}, find)
    assert [(gain.worker_hours, gain.accelerator_hours) for gain in found[:2]] == [(2.5, 5.0), (1.0, 0.0)]
    assert found[2].worker_hours == pytest.approx(2 * 100 / 3600)  # not recorded: the recipe's two workers
