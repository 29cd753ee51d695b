"""python -m jobs.search RECIPE: a hyperparameter search by Ray Tune and ASHA; the best setting is written out as a recipe."""

import itertools
import json
import math
from dataclasses import asdict
from functools import partial
from typing import Any

from jobs.makers import course_of
from jobs.model import adopt
from jobs.run import Run, main, quiet
from jobs.study import open_trial_run, turn
from medschool import artifact, storage, track
from medschool.ablate.limit import within
from medschool.ablate.on_ray import Tried, run_search
from medschool.ablate.report import columns
from medschool.artifact import digest_of
from medschool.board import Board
from medschool.cluster.fit import concurrent_trials
from medschool.cluster.room import cluster_room
from medschool.errors import RecipeError
from medschool.procedure import Trial, results_uri, trials
from medschool.recipe import Recipe
from medschool.recipe.dump import dump, with_values
from medschool.recipe.training import Search
from medschool.stage import fingerprint_in
from medschool.track import TrackedRun, read_journal
from medschool.train.course import JOURNAL
from medschool.train.on_ray import check_cluster


def search(run: Run) -> None:
    """Try every setting, print the trials, and put best.yaml and search.json into the store.

    Raises the error of a setting that failed, once all others are told; submitted again, it alone is tried again.
    """
    spec = _spec(run.recipe)
    settings = [dict(zip(spec.over, values, strict=True)) for values in itertools.product(*spec.over.values())]
    children = [child_of(run.recipe, values) for values in settings]
    adopt(run)
    for kind in ("exams", "corpus", "duplicates", "tokens", "overlap", "withheld"):
        run.make(kind)
    steps, fingerprints = _checked(run, children)
    check_cluster(run.recipe)
    at_once = min(len(settings), concurrent_trials(run.recipe.cluster, cluster_room(), run.recipe.evaluate.scorers_beside))
    key = digest_of(fingerprints)[:16]
    parent = track.begin_run(TrackedRun(run.recipe.name, "search", f"search:{key}", {"trials": len(settings), "steps": steps}))
    run.say(f"search: {len(settings)} trials of up to {steps} steps, {at_once} at once")
    do = partial(_try, run.recipe, run.store_uri, run.board, parent)
    try:
        tried, failure = run_search(spec, settings, steps, do, at_once, storage.join(run.store_uri, "tune", f"search-{key}"))
        if failure and run.board.stop_asked():
            raise failure
    except BaseException as error:
        track.close_below(parent, track.status_of(error))
        track.close_run(parent, track.status_of(error))
        raise
    for child, one, fingerprint in zip(children, tried, fingerprints, strict=True):
        _settle(run, child, one, fingerprint, parent)
    track.close_run(parent, "FAILED" if failure else "FINISHED")
    if any(one.losses and not one.failed for one in tried):
        _tell(run, spec, tried, steps)
    if failure:
        raise failure


def child_of(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe of one trial: without the search. Raises RecipeError when the values do not make a recipe."""
    return with_values(recipe, {**values, "search": None})


def best_of(tried: list[Tried]) -> Tried:
    """The trial with the lowest last loss among those that ran to the end."""
    sound = [one for one in tried if one.losses and not one.failed]
    whole = [one for one in sound if not one.stopped]
    return min(whole or sound, key=lambda one: one.losses[one.steps])


def _spec(recipe: Recipe) -> Search:
    if recipe.search is None:
        raise RecipeError("has no `search` section", "add one, as in recipes/search_lr.yaml", recipe.name)
    return recipe.search


def _trial_of(recipe: Recipe, child: Recipe) -> Trial:
    """The trial that a child recipe is searched by: the variant under its first seed."""
    return next(trial for trial in trials(child) if trial.variant == _spec(recipe).variant)


def _checked(run: Run, children: list[Recipe]) -> tuple[int, list[str]]:
    """Optimizer steps of all trials, and the fingerprint of each one's training.

    Raises RecipeError unless the trials read the same rows in the same order for equally many steps, and no two are the same:
    only then can they be compared step by step.
    """
    spec, lengths, orders, fingerprints = _spec(run.recipe), set(), set(), []
    for child in children:
        inside = Run(child, run.store_uri, run.board)
        stage = inside.stages[f"pretrain/{_trial_of(run.recipe, child).name}"]
        if any(inside.find(name) is None for name in stage.inputs.values()):
            raise RecipeError("changes the rows that are trained on", "search over keys of the training alone", "search.over")
        inputs = {role: inside.artifact(name) for role, name in stage.inputs.items()}
        course = course_of(inside, stage, inputs, "", "")[0]
        lengths.add(course.steps)
        orders.add(repr([course.order, {role: made.digest for role, made in inputs.items()}]))
        fingerprints.append(fingerprint_in(stage, inputs, []))
    steps = max(lengths)
    for wrong, problem, remedy in (
        (len(lengths) > 1 or len(orders) > 1, "the settings differ in length, batches or mixture", "search over other keys"),
        (len(set(fingerprints)) < len(children), "two settings train the same", "search over keys of the training"),
        (spec.grace_steps > steps, f"grace_steps is {spec.grace_steps}, a trial has {steps}", "lower search.grace_steps"),
        (steps % spec.report_every_steps > 0, f"{steps} steps are no multiple of report_every_steps", "change one of them"),
    ):
        if wrong:
            raise RecipeError(problem, remedy, "search")
    return steps, fingerprints


def _try(recipe: Recipe, store_uri: str, board: Board, parent: TrackedRun | None, values: dict[str, Any]) -> None:
    """What the process of one trial does: train, reporting on the way; the last report follows the finished artifact."""
    from ray import tune

    quiet()
    spec, child = _spec(recipe), child_of(recipe, values)
    trial = _trial_of(recipe, child)
    run = Run(child, store_uri, board.within(f"{_words(values)}  "), report_every_steps=spec.report_every_steps)
    run.mlflow_run = open_trial_run(run, trial, parent, values)
    name = f"pretrain/{trial.name}"
    known = run.find(name)
    try:
        with turn(run, name):
            within(recipe.cluster.trial_timeout_s, 0.0, partial(run.make_one, name), _words(values))
    except BaseException as error:
        track.close_run(run.mlflow_run, track.status_of(error))
        raise
    losses = [point["loss"] for point in read_journal(storage.read_bytes(run.artifact(name).uri(JOURNAL)))]
    for step, loss in windows(losses, spec.report_every_steps):
        if known is not None or step == len(losses):
            tune.report({"step": step, "loss": loss})


def windows(losses: list[float], every: int) -> list[tuple[int, float]]:
    """(step, mean loss since the window before) at every `every`-th step and at the last."""
    ends = [*range(every, len(losses), every), len(losses)]
    return [(end, sum(losses[start:end]) / (end - start)) for start, end in zip([0, *ends], ends, strict=False)]


def _settle(run: Run, child: Recipe, one: Tried, fingerprint: str, parent: TrackedRun | None) -> None:
    """Close the trial's MLflow run, and delete what one that was stopped early left behind; never a finished training."""
    inside = Run(child, run.store_uri, run.board)
    status = "FAILED" if one.failed else "KILLED" if one.stopped else "FINISHED"
    mlflow_run = open_trial_run(inside, _trial_of(run.recipe, child), parent, one.values)
    track.close_run(mlflow_run, status, {"search_loss": one.losses[one.steps]} if one.losses else None)
    if one.stopped and artifact.find(run.store_uri, "pretrain", fingerprint) is None:
        storage.delete_prefix(artifact.stage_uri(run.store_uri, "pretrain", fingerprint))


def _tell(run: Run, spec: Search, tried: list[Tried], steps: int) -> None:
    best = best_of(tried)
    rows = []
    for one in sorted(tried, key=lambda one: (-one.steps, one.losses.get(one.steps, math.inf))):
        remark = "best" if one is best else "failed" if one.failed else "stopped early" if one.stopped else ""
        rows.append([_words(one.values), str(one.steps), f"{one.losses[one.steps]:.4f}" if one.losses else "-", remark])
    for line in ["", *columns([["trial", "steps", "loss", ""], *rows]), ""]:
        run.say(line)
    folder = results_uri(run.store_uri, run.recipe)
    child = child_of(run.recipe, best.values)
    header = (
        f"# The best of {len(tried)} trials of {run.recipe.name}: {_words(best.values)}, mean training loss of the last "
        f"{spec.report_every_steps} of {steps} steps {best.losses[best.steps]:.4f}.\n"
    )
    storage.write_bytes(storage.join(folder, "best.yaml"), (header + dump(child)).encode())
    found = {"trials": [asdict(one) for one in tried], "best": best.values, "steps": steps}
    run.say("best.yaml is a recipe: copy it to recipes/ to run it")
    storage.write_bytes(storage.join(folder, "search.json"), json.dumps(found, indent=1).encode())


def _words(values: dict[str, Any]) -> str:
    """`lr=0.0002 warmup_fraction=0.1`: settings by the last part of their keys; by the whole key where two end alike."""
    last = {key: key.rsplit(".", 1)[-1] for key in values}
    ends = list(last.values())
    return " ".join(f"{last[key] if ends.count(last[key]) == 1 else key}={value}" for key, value in values.items())


if __name__ == "__main__":
    main(search)
