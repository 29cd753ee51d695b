"""What each trial cost, stage by stage: workers x seconds, how much of it was idle or lost, and the price.

    facts of finished trainings and evaluations --costs--> JSON of the report --cost_tables--> tables

The artifacts say how many workers made them, on which nodes and for how long (medschool.train.held).
A stage that two trials share is counted once, at the trial that stands first in the recipe, and is named at the other. Stages
before the trials have seconds alone (the report's table of stages): Ray Data takes as many CPUs as are free, and tells nobody.

The price is that of `cluster.usd_per_worker_hour` at the time of the report, and there is one only where every type of node that
took part has one. Scorers are not priced: which nodes they ran on is not recorded; nor are the head, the store, and nodes that
wait for work. An artifact of a time before costs were recorded has dashes.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from medschool.artifact import Artifact
from medschool.procedure import PHASES, phase_weights, trials
from medschool.recipe import Recipe

Rows = list[list[str]]


def costs(recipe: Recipe, find: Callable[[str], Artifact]) -> dict[str, Any]:
    """`stages`: of each stage of each trial; `trials`: their sums; JSON values. `find` gives a finished stage by its name.

    worker_seconds are workers x seconds, None where they are not known; idle and lost are shares, usd is a price, of trainings.
    """
    prices, seen, stages = recipe.cluster.usd_per_worker_hour, dict[str, str](), []
    for trial in trials(recipe):
        phases = [phase for phase in PHASES if phase_weights(recipe, trial.variant, phase) is not None]
        for stage in (*(f"{phase}/{trial.name}" for phase in phases), f"evaluate/{trial.name}"):
            made = find(stage)
            first = seen.setdefault(made.manifest_uri, stage)
            shared = None if first == stage else first
            stages.append(
                {"stage": stage, "trial": trial.name, "shared_with": shared, **(_nothing() if shared else _of(made, prices))}
            )
    names = [trial.name for trial in trials(recipe)]
    summed = [{"trial": name, **_sum(one for one in stages if one["trial"] == name)} for name in names]
    return {"stages": stages, "trials": summed, "total": _sum(stages)}


def worker_seconds(made: Artifact) -> float | None:
    """Workers x seconds that a finished training or evaluation took; None where its artifact does not say how many made it."""
    if cost := made.facts.get("cost"):
        return float(sum(cost["worker_seconds"].values()))
    workers = made.facts.get("workers")
    return None if workers is None else workers * made.seconds


def _nothing() -> dict[str, Any]:
    return {"workers": None, "worker_seconds": 0.0, "by_node_type": {}, "idle": None, "lost": None, "usd": 0.0}


def _of(made: Artifact, prices: Mapping[str, float]) -> dict[str, Any]:
    """One stage. Of a training all of it; of an evaluation workers and seconds."""
    cost, held = made.facts.get("cost") or {}, worker_seconds(made)
    by_type: dict[str, float] = cost.get("worker_seconds", {})
    priced = bool(by_type) and all(name in prices for name in by_type)
    return {
        "workers": cost.get("workers", made.facts.get("workers")),
        "worker_seconds": held,
        "by_node_type": by_type,
        "idle": cost["idle_worker_seconds"] / held if cost and held else None,
        "lost": cost["lost_worker_seconds"] / held if cost and held else None,
        "usd": sum(seconds / 3600 * prices[name] for name, seconds in by_type.items()) if priced else None,
    }


def _sum(stages: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Worker-seconds of all stages and price of all trainings, None where one is not known; shares of those that have them."""
    some = list(stages)
    known = [one["worker_seconds"] for one in some]
    measured = [one for one in some if one["idle"] is not None]
    held = sum(one["worker_seconds"] for one in measured)
    prices = [one["usd"] for one in some if not one["shared_with"] and not one["stage"].startswith("evaluate/")]
    return {
        "worker_seconds": None if None in known else sum(known),
        "idle": sum(one["idle"] * one["worker_seconds"] for one in measured) / held if held else None,
        "lost": sum(one["lost"] * one["worker_seconds"] for one in measured) / held if held else None,
        "usd": None if None in prices or not prices else sum(prices),
    }


# ---- tables -------------------------------------------------------------------------------------------------------------------


def cost_tables(cost: Mapping[str, Any] | None) -> dict[str, Rows]:
    """(title: rows with a header) of what `costs` gives; nothing where there is none."""
    if not cost:
        return {}
    priced = ["USD"] if any(one["usd"] for one in cost["stages"]) else []
    stages = [
        ["stage", "workers", "worker-seconds", "idle", "lost", *priced, "nodes"],
        *([one["stage"], _count(one["workers"]), *_figures(one, priced), _where(one)] for one in cost["stages"]),
    ]
    summed = [
        ["trial", "worker-seconds", "idle", "lost", *priced],
        *([one["trial"], *_figures(one, priced)] for one in cost["trials"]),
        ["all", *_figures(cost["total"], priced)],
    ]
    return {"Cost of each trial (idle, lost and price: of its training)": summed, "Cost of the stages of the trials": stages}


def _figures(one: Mapping[str, Any], priced: list[str]) -> list[str]:
    shares = ["-" if one[key] is None else f"{one[key]:.0%}" for key in ("idle", "lost")]
    usd = "-" if one["usd"] is None else f"{one['usd']:,.2f}"
    seconds = one["worker_seconds"]
    return ["-" if seconds is None else f"{seconds:,.0f}", *shares, *([usd] if priced else [])]


def _where(one: Mapping[str, Any]) -> str:
    """`as pretrain/knowledge` of what is shared; else the types of the nodes."""
    if one["shared_with"]:
        return f"as {one['shared_with']}"
    return ", ".join(f"{name}: {seconds:,.0f} s" for name, seconds in one["by_node_type"].items()) or "-"


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"
