"""What a run cost, by stage, trial and node type: workers x seconds, how much of it was used, idle or lost, and the price.

    facts of finished trainings and evaluations ---+--costs--> JSON of the report --cost_tables--> tables
    nodes of the cluster while the job ran --------+

The artifacts say how many workers made them, on which nodes, for how long and at what price (medschool.train.held).
A stage that two trials share is counted once, at the trial that stands first in the recipe, and is named at the other. Stages
before the trials have seconds alone (the report's table of stages): Ray Data takes as many CPUs as are free, and tells nobody.

The price is that of the nodes' labels when they worked (medschool.cluster.offer), and there is one only where every type of node
that took part had one. A training pays for its workers' share of a node. What the rest of the nodes cost, and the head, and nodes
that waited for work, stands in the table of nodes: all that ran while the job did, for other jobs too, until the report was made.
Scorers are not priced by themselves: which nodes they ran on is not recorded. An artifact of a time before costs were recorded
has dashes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from medschool.artifact import Artifact
from medschool.procedure import PHASES, phase_weights, trials
from medschool.recipe import Recipe

Rows = list[list[str]]
PARTS = ("used", "idle", "lost", "preempted")
"""Of worker-seconds: in steps that count; in none; thrown away; of these, because a node was taken away."""


def costs(recipe: Recipe, find: Callable[[str], Artifact], nodes: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """`stages`: of each stage of each trial; `trials`: their sums; `node_types`: of trainings; `nodes`: as given; JSON values.

    find: gives a finished stage by its name. nodes: what the nodes of the cluster cost while the job ran, by type.
    worker_seconds are workers x seconds, None where they are not known; idle, lost and preempted are shares of them, usd is a
    price, of trainings.
    """
    seen, stages = dict[str, str](), []
    for trial in trials(recipe):
        phases = [phase for phase in PHASES if phase_weights(recipe, trial.variant, phase) is not None]
        for stage in (*(f"{phase}/{trial.name}" for phase in phases), f"evaluate/{trial.name}"):
            made = find(stage)
            first = seen.setdefault(made.manifest_uri, stage)
            shared = None if first == stage else first
            stages.append({"stage": stage, "trial": trial.name, "shared_with": shared, **(_nothing() if shared else _of(made))})
    names = [trial.name for trial in trials(recipe)]
    summed = [{"trial": name, **_sum(one for one in stages if one["trial"] == name)} for name in names]
    return {
        "stages": stages,
        "trials": summed,
        "total": _sum(stages),
        "node_types": _by_type(stages),
        "nodes": [dict(each) for each in nodes],
    }


def worker_seconds(made: Artifact) -> float | None:
    """Workers x seconds that a finished training or evaluation took; None where its artifact does not say how many made it."""
    if cost := made.facts.get("cost"):
        return float(sum(cost["worker_seconds"].values()))
    workers = made.facts.get("workers")
    return None if workers is None else workers * made.seconds


def _nothing() -> dict[str, Any]:
    shares = dict.fromkeys(PARTS[1:])
    return {"workers": None, "worker_seconds": 0.0, "held": {}, "by_node_type": {}, **shares, "usd": 0.0}


def _of(made: Artifact) -> dict[str, Any]:
    """One stage. Of a training all of it; of an evaluation workers and seconds."""
    cost, seconds = made.facts.get("cost") or {}, worker_seconds(made)
    by_type: dict[str, dict[str, float | None]] = cost.get("by_node_type", {})
    preempted = sum(one["preempted"] or 0.0 for one in by_type.values()) if by_type else None
    return {
        "workers": cost.get("workers", made.facts.get("workers")),
        "worker_seconds": seconds,
        "held": cost.get("worker_seconds", {}),
        "by_node_type": by_type,
        "idle": cost["idle_worker_seconds"] / seconds if cost and seconds else None,
        "lost": cost["lost_worker_seconds"] / seconds if cost and seconds else None,
        "preempted": preempted / seconds if preempted is not None and seconds else None,
        "usd": total([one["usd"] for one in by_type.values()]),
    }


def _sum(stages: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Worker-seconds of all stages and price of all trainings, None where one is not known; shares of those that have them."""
    some = list(stages)
    trained = [one["usd"] for one in some if not one["shared_with"] and not one["stage"].startswith("evaluate/")]
    return {
        "worker_seconds": total([one["worker_seconds"] for one in some]),
        **{part: _share(some, part) for part in PARTS[1:]},
        "usd": total(trained),
    }


def _share(stages: Sequence[Mapping[str, Any]], part: str) -> float | None:
    measured = [one for one in stages if one[part] is not None]
    held = sum(one["worker_seconds"] for one in measured)
    return sum(one[part] * one["worker_seconds"] for one in measured) / held if held else None


def _by_type(stages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Worker-seconds and price of all trainings, by node type."""
    found: dict[str, list[Mapping[str, float | None]]] = {}
    for stage in stages:
        for name, one in stage["by_node_type"].items():
            found.setdefault(name, []).append(one)
    return [
        {"node_type": name, **{part: total([one[part] for one in some]) for part in (*PARTS, "usd")}}
        for name, some in sorted(found.items())
    ]


def total(values: Sequence[float | None]) -> float | None:
    """The sum; None where one is not known, or there is nothing to sum."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


# ---- tables -------------------------------------------------------------------------------------------------------------------


def cost_tables(cost: Mapping[str, Any] | None) -> dict[str, Rows]:
    """(title: rows with a header) of what `costs` gives; nothing where there is none."""
    if not cost:
        return {}
    priced = ["USD"] if any(one["usd"] for one in cost["stages"]) else []
    shares = list(PARTS[1:]) if any(one.get("preempted") for one in cost["stages"]) else list(PARTS[1:3])
    stages = [
        ["stage", "workers", "worker-seconds", *shares, *priced, "nodes"],
        *([one["stage"], _count(one["workers"]), *_figures(one, shares, priced), _where(one)] for one in cost["stages"]),
    ]
    summed = [
        ["trial", "worker-seconds", *shares, *priced],
        *([one["trial"], *_figures(one, shares, priced)] for one in cost["trials"]),
        ["all", *_figures(cost["total"], shares, priced)],
    ]
    tables = {"Cost of each trial (idle, lost and price: of its training)": summed, "Cost of the stages of the trials": stages}
    if types := cost.get("node_types"):
        tables["Worker-seconds of training by node type"] = [
            ["node type", *PARTS, *priced],
            *([one["node_type"], *map(_count, (one[part] for part in PARTS)), *_usd(one, priced)] for one in types),
        ]
    if nodes := cost.get("nodes"):
        tables["Nodes while this job ran"] = [
            ["node type", "nodes", "node-hours", "USD"],
            *([one["type"], _count(one["nodes"]), f"{one['hours']:,.2f}", *_usd(one, ["USD"])] for one in nodes),
        ]
    return tables


def _figures(one: Mapping[str, Any], shares: Sequence[str], priced: Sequence[str]) -> list[str]:
    parts = ["-" if one.get(key) is None else f"{one[key]:.0%}" for key in shares]
    return [_count(one["worker_seconds"]), *parts, *_usd(one, priced)]


def _usd(one: Mapping[str, Any], priced: Sequence[str]) -> list[str]:
    return ["-" if one["usd"] is None else f"{one['usd']:,.2f}"] if priced else []


def _where(one: Mapping[str, Any]) -> str:
    """`as pretrain/knowledge` of what is shared; else the types of the nodes."""
    if one["shared_with"]:
        return f"as {one['shared_with']}"
    return ", ".join(f"{name}: {seconds:,.0f} s" for name, seconds in one["held"].items()) or "-"


def _count(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}"
