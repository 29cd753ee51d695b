"""Cost of trials from the facts of their artifacts: shares, sums, what is shared, node types, and a price where all had one."""

import json
from typing import Any

import pytest
from scored_trials import promoted_recipe

from medschool.ablate.cost import cost_tables, costs
from medschool.ablate.gain import gains
from medschool.artifact import Artifact


def held(used: float, idle: float, lost: float, preempted: float, usd: float | None) -> dict[str, float | None]:
    return {"used": used, "idle": idle, "lost": lost, "preempted": preempted, "usd": usd}


FACTS: dict[str, dict[str, Any]] = {
    "pretrain/control": {
        "cost": {
            "workers": 4, "gpus_per_worker": 2, "groups": 2, "worker_seconds": {"spot": 7200.0, "demand": 1800.0},
            "idle_worker_seconds": 900.0, "lost_worker_seconds": 1800.0,
            "by_node_type": {"spot": held(4600, 800, 1800, 900, 4.0), "demand": held(1700, 100, 0, 0, 2.0)},
        }
    },
    "pretrain/knowledge": {
        "cost": {
            "workers": 2, "gpus_per_worker": 0, "groups": 1, "worker_seconds": {"spot": 3600.0}, "idle_worker_seconds": 360.0,
            "lost_worker_seconds": 0.0, "by_node_type": {"spot": held(3240, 360, 0, 0, 2.0)},
        }
    },
}  # fmt: skip
SHARED = {"pretrain/instructed": "pretrain/knowledge"}
NODES = [{"type": "spot", "nodes": 3, "alive": 1, "hours": 2.5, "usd_per_hour": 1.0, "usd": 2.5}]


def find(name: str) -> Artifact:
    name = SHARED.get(name, name)
    facts = FACTS.get(name, {"workers": 3} if name.startswith("evaluate/") else {})
    return Artifact(name, "f", name, "", (), facts, {}, 100.0)


def unpriced(name: str) -> Artifact:
    """As `find`, with a node type of control's that had no price."""
    made = find(name)
    if name != "pretrain/control":
        return made
    by_type = {**made.facts["cost"]["by_node_type"], "demand": held(1700, 100, 0, 0, None)}
    return Artifact(name, "f", name, "", (), {"cost": made.facts["cost"] | {"by_node_type": by_type}}, {}, 100.0)


def test_shares_and_prices_of_each_stage() -> None:
    stages = {one["stage"]: one for one in costs(promoted_recipe(), find)["stages"]}
    control = stages["pretrain/control"]
    assert (control["worker_seconds"], control["workers"]) == (9000.0, 4)
    assert (control["idle"], control["lost"], control["preempted"]) == pytest.approx((0.1, 0.2, 0.1))
    assert control["usd"] == pytest.approx(6.0)
    assert stages["evaluate/control"]["worker_seconds"] == 300.0 and stages["evaluate/control"]["usd"] is None
    shared = stages["pretrain/instructed"]
    assert (shared["shared_with"], shared["worker_seconds"], shared["usd"]) == ("pretrain/knowledge", 0.0, 0.0)
    assert stages["instruct/instructed"]["worker_seconds"] is None  # of a time before costs were recorded
    assert costs(promoted_recipe(), unpriced)["stages"][1]["usd"] is None  # part of it has no price


def test_sums_of_trials_of_node_types_and_of_all() -> None:
    cost = costs(promoted_recipe(), find, NODES)
    json.dumps(cost, allow_nan=False)
    trials = {one["trial"]: one for one in cost["trials"]}
    nothing = {"idle": None, "lost": None, "preempted": None, "usd": None}
    assert trials["base"] == {"trial": "base", "worker_seconds": 300.0, **nothing}
    assert trials["control"]["worker_seconds"] == 9300.0 and trials["control"]["lost"] == pytest.approx(0.2)
    assert trials["instructed"]["worker_seconds"] is None and trials["instructed"]["usd"] is None
    assert trials["knowledge"]["usd"] == pytest.approx(2.0) and cost["total"]["idle"] == pytest.approx(1260 / 12600)
    assert cost["total"]["usd"] is None  # one training has no price: a sum of the others would be taken for all
    demand, spot = cost["node_types"]
    assert spot == {"node_type": "spot", "used": 7840, "idle": 1160, "lost": 1800, "preempted": 900, "usd": 6.0}
    assert demand["usd"] == 2.0 and cost["nodes"] == NODES
    assert costs(promoted_recipe(), unpriced)["node_types"][0]["usd"] is None


def test_tables_show_prices_where_there_are_some_and_dashes_where_nothing_is_known() -> None:
    summed, stages, types, nodes = cost_tables(costs(promoted_recipe(), find, NODES)).values()
    assert summed[0] == ["trial", "worker-seconds", "idle", "lost", "preempted", "USD"]
    assert ["control", "9,300", "10%", "20%", "10%", "6.00"] in summed and ["base", "300", "-", "-", "-", "-"] in summed
    assert ["pretrain/instructed", "-", "0", "-", "-", "-", "0.00", "as pretrain/knowledge"] in stages
    assert ["pretrain/knowledge", "2", "3,600", "10%", "0%", "0%", "2.00", "spot: 3,600 s"] in stages
    assert types[1:] == [["demand", "1,700", "100", "0", "0", "2.00"], ["spot", "7,840", "1,160", "1,800", "900", "6.00"]]
    assert nodes == [["node type", "nodes", "node-hours", "USD"], ["spot", "3", "2.50", "2.50"]]
    assert cost_tables(None) == {}


def test_tables_of_an_older_run_have_no_price_and_no_node_types(monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in FACTS:
        monkeypatch.setitem(
            FACTS, stage, {"cost": {key: value for key, value in FACTS[stage]["cost"].items() if key != "by_node_type"}}
        )
    summed, stages = cost_tables(costs(promoted_recipe(), find)).values()
    assert summed[0] == ["trial", "worker-seconds", "idle", "lost"] and ["control", "9,300", "10%", "20%"] in summed
    assert ["pretrain/knowledge", "2", "3,600", "10%", "0%", "spot: 3,600 s"] in stages


def test_a_gain_counts_the_workers_that_made_it_not_those_of_the_recipe() -> None:
    effect = {"measure": "accuracy", "on": "clinical", "change": 0.05, "word": "helped"}
    pairs = [("control", "base"), ("knowledge", "control"), ("instructed", "knowledge")]
    effects = [effect | {"variant": variant, "reference": reference} for variant, reference in pairs]
    found = gains(promoted_recipe(), {"effects": effects}, find)
    assert [(gain.worker_hours, gain.accelerator_hours) for gain in found[:2]] == [(2.5, 5.0), (1.0, 0.0)]
    assert found[2].worker_hours == pytest.approx(2 * 100 / 3600)  # not recorded: the recipe's two workers
