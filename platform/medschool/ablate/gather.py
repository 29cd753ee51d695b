"""Everything that the report shows, gathered from the finished stages of a recipe: nothing is remembered from the run itself.

So a report can be made again from the store, by another process, without running anything.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from medschool import storage
from medschool.ablate.compare import read_verdict
from medschool.ablate.cost import costs
from medschool.ablate.exam_table import published_rows
from medschool.ablate.gain import gains
from medschool.ablate.page import Cost, Curve, Mixture, Report
from medschool.ablate.report import Spent
from medschool.artifact import Artifact, versions
from medschool.cluster.timeline import Span
from medschool.procedure import (
    PHASES,
    Phase,
    phase_weights,
    phase_weights_from,
    recipe_digest,
    row_tokens,
    stages,
    training,
    trials,
)
from medschool.recipe import Recipe
from medschool.recipe.dump import dump
from medschool.tokens.mixture import Schedule
from medschool.track import read_journal
from medschool.train.course import JOURNAL

Find = Callable[[str], Artifact]
"""The finished artifact of a stage, by the stage's name."""


def gather(
    recipe: Recipe,
    find: Find,
    planned_tokens: Mapping[str, int | None],
    made_now: set[str],
    nodes: Sequence[Mapping[str, Any]] = (),
) -> Report:
    """The report of a recipe whose verdict is there.

    planned_tokens: of each training stage, as the plan says. made_now: stages that this run did not find finished.
    nodes: what the nodes of the cluster cost meanwhile (medschool.cluster.bill); empty where nobody knows.
    """
    names, verdict = [stage.name for stage in stages(recipe)], read_verdict(find("verdict"))
    head, *theirs = published_rows(recipe)
    published = (tuple(head), *map(tuple, theirs)) if theirs else ()
    return Report(
        recipe_name=recipe.name,
        recipe_yaml=dump(recipe),
        recipe_digest=recipe_digest(recipe),
        git_sha=os.environ.get("MEDSCHOOL_GIT_SHA") or None,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        model_uri=recipe.model.uri,
        gate=recipe.gate,
        results=verdict | {"cost": costs(recipe, find, nodes)},
        curves=tuple(_curve(stage, find(stage)) for stage in _trainings(recipe)),
        mixtures=tuple(_mixture(recipe, stage, find(stage)) for stage in _trainings(recipe)),
        costs=_costs(names, find, planned_tokens, made_now),
        budget_minutes=recipe.budget.minutes if recipe.budget else None,
        dropped={name: made.facts["dropped"] for name in names if (made := find(name)).facts.get("dropped") and "/" in name},
        overlap={name: find(f"instructions/{name}").facts["overlap"] for name in recipe.instructions if recipe.exams},
        versions=versions(),
        spent=spent(recipe, find),
        gains=gains(recipe, verdict, find),
        published=published,
    )


def stage_spans(recipe: Recipe, find: Find, made_now: set[str]) -> list[Span]:
    """When the stages that this run made began and ended, as their artifacts say: to the second, each artifact once."""
    found = {}
    for name in (stage.name for stage in stages(recipe) if stage.name in made_now):
        made = find(name)
        if made.created and made.manifest_uri not in found:
            ended_s = datetime.fromisoformat(made.created).timestamp()
            found[made.manifest_uri] = Span(name, ended_s - made.seconds, ended_s)
    return list(found.values())


def spent(recipe: Recipe, find: Find) -> dict[str, Spent]:
    """Trained tokens and minutes of training of each trial, those of a training it shares included."""
    costs = {}
    for trial in trials(recipe):
        made = [find(f"{phase}/{trial.name}") for phase in PHASES if phase_weights(recipe, trial.variant, phase) is not None]
        costs[trial.name] = Spent(sum(int(item.facts["tokens"]) for item in made), sum(item.seconds for item in made) / 60)
    return costs


def _trainings(recipe: Recipe) -> list[str]:
    return [
        f"{phase}/{trial.name}"
        for phase in PHASES
        for trial in trials(recipe)
        if phase_weights(recipe, trial.variant, phase) is not None
    ]


def _phase_and_trial(stage: str) -> tuple[Phase, str]:
    kind, name = stage.split("/")
    return ("pretrain" if kind == "pretrain" else "instruct"), name


def _curve(stage: str, made: Artifact) -> Curve:
    phase, name = _phase_and_trial(stage)
    points = read_journal(storage.read_bytes(made.uri(JOURNAL)))
    return Curve(
        name,
        phase,
        tuple(int(point["step"]) for point in points),
        tuple(point["loss"] for point in points),
        tuple(point["lr"] for point in points),
    )


def _mixture(recipe: Recipe, stage: str, made: Artifact) -> Mixture:
    phase, name = _phase_and_trial(stage)
    variant = next(trial.variant for trial in trials(recipe) if trial.name == name)
    rows: Mapping[str, int] = made.facts["rows"]
    length = row_tokens(recipe, phase)
    tokens = {source: count * length for source, count in rows.items()}
    planned = phase_weights(recipe, variant, phase) or {}
    if later := phase_weights_from(recipe, variant, phase):  # parts that change are told by the rows they come to
        planned = Schedule(planned, training(recipe, phase).batch_rows, later).rows_before(int(made.facts["steps"]))
    return Mixture(name, phase, planned, dict(rows), tokens)


def _costs(names: list[str], find: Find, planned_tokens: Mapping[str, int | None], made_now: set[str]) -> tuple[Cost, ...]:
    """Every stage once; one that shares another's artifact is planned to cost nothing, and does."""
    costs: list[Cost] = []
    seen: set[str] = set()
    for name in names:
        made = find(name)
        if made.manifest_uri in seen:
            costs.append(Cost(name, 0.0, True, 0, 0))
            continue
        seen.add(made.manifest_uri)
        tokens = int(made.facts["tokens"]) if name in planned_tokens else None
        costs.append(Cost(name, made.seconds, name not in made_now, planned_tokens.get(name), tokens))
    return tuple(costs)
