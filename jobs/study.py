"""python -m jobs.study RECIPE: train and measure every variant under every seed, each as a trial of Ray Tune."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from jobs.run import Run, main, quiet
from medschool import track
from medschool.ablate.limit import within
from medschool.ablate.on_ray import Trials, run_study
from medschool.artifact import digest_of
from medschool.board import Board
from medschool.cluster.admission import admitted
from medschool.cluster.fit import concurrent_trials, trial_needs
from medschool.cluster.room import cluster_room
from medschool.errors import PlanError
from medschool.procedure import PHASES, Trial, phase_weights, phase_weights_from, recipe_digest, resolve_all, trials
from medschool.recipe import Recipe
from medschool.stage import TRIAL_KINDS
from medschool.track import TrackedRun

WORDS_CHARS = 300
"""Of an error in the line that tells of it; the whole comes with the end of the study."""


def study(run: Run) -> None:
    """Make what the trials of the recipe lack; a trial that has everything starts no process."""
    from medschool.train.on_ray import check_cluster

    everyone = trials(run.recipe)
    todo = [trial for trial in everyone if any(run.find(name) is None for name in stages_of(run.recipe, trial))]
    missing = {name for trial in todo for name in stages_of(run.recipe, trial) if run.find(name) is None}
    for trial in everyone:
        if trial not in todo:
            for name in stages_of(run.recipe, trial):
                run.make_one(name)
    if not todo:
        return
    check_cluster(run.recipe)
    at_once = min(len(todo), concurrent_trials(run.recipe.cluster, cluster_room(), run.recipe.evaluate.scorers_beside))
    parent = open_study_run(run)
    names = [trial.name for trial in todo]
    run.say(f"study: {len(todo)} of {len(everyone)} trials to run, {at_once} at once: {', '.join(names)}")
    do = partial(_trial, run.recipe, run.store_uri, run.board, parent)
    try:
        run_study(run.recipe.name, names, do, at_once, run.store_uri)
    except BaseException as error:
        track.close_below(parent, track.status_of(error))
        track.close_run(parent, track.status_of(error))
        raise
    track.close_run(parent, "FINISHED")
    run.made |= missing


def check_room(run: Run) -> None:
    """Raise PlanError now for trials that the cluster can never hold, unless all of them are finished.

    A head without work that was not told what may come (cluster.growth) is not judged; `study` asks again.
    """
    from medschool.train.on_ray import check_cluster

    if not any(cluster_room().values()):
        return
    try:
        check_cluster(run.recipe)
    except PlanError:
        found = resolve_all(run.recipe, run.store_uri)
        if any(found[name].artifact is None for trial in trials(run.recipe) for name in stages_of(run.recipe, trial)):
            raise


def stages_of(recipe: Recipe, trial: Trial) -> list[str]:
    """The stages that a trial makes, in order."""
    trained = [f"{phase}/{trial.name}" for phase in PHASES if phase_weights(recipe, trial.variant, phase) is not None]
    return [*trained, f"evaluate/{trial.name}"]


def _trial(recipe: Recipe, store_uri: str, board: Board, parent: TrackedRun | None, name: str, others: Trials) -> None:
    """What the process of one trial does."""
    quiet()
    trial = next(trial for trial in trials(recipe) if trial.name == name)
    run = Run(recipe, store_uri, board)
    run.mlflow_run = mlflow_run = open_trial_run(run, trial, parent)
    spent_s = 0.0
    try:
        for stage in stages_of(recipe, trial):
            for maker in makers_of(recipe, stage):  # the first of them that is alive makes it, one at a time
                if maker == name or others.wait_for(partial(_is_there, run, stage), maker):
                    break
            with turn(run, stage):
                spent_s = within(recipe.cluster.trial_timeout_s, spent_s, partial(run.make_one, stage), name)
    except BaseException as error:
        if (status := track.status_of(error)) == "FAILED":
            run.say(f"study: {name} failed: {' '.join(str(error).split())[:WORDS_CHARS]}")
        track.close_run(mlflow_run, status)
        raise
    track.close_run(mlflow_run, "FINISHED")


def turn(run: Run, stage: str) -> AbstractContextManager[None]:
    """Its place among the trainings and scorings of all jobs on the cluster; none for a stage that is finished."""
    spec = run.recipe.cluster
    if run.find(stage) is not None:
        return nullcontext()
    scores = run.stages[stage].kind == "evaluate"
    needs = {"CPU": float(spec.score_workers)} if scores else trial_needs(spec, run.recipe.evaluate.scorers_beside)
    return admitted(f"{run.recipe.name}: {stage}", needs, run.board)


def _is_there(run: Run, stage: str) -> bool:
    return run.find(stage) is not None


def open_study_run(run: Run) -> TrackedRun | None:
    """The MLflow run of the whole study, found again or begun; those of its trials lie below it."""
    everyone = trials(run.recipe)
    return track.begin_run(TrackedRun(run.recipe.name, "study", f"study:{_data(run, everyone)}", {"trials": len(everyone)}))


def open_trial_run(run: Run, trial: Trial, parent: TrackedRun | None, params: dict[str, Any] | None = None) -> TrackedRun | None:
    """The MLflow run of a trial, found again or begun; another one once the recipe or what it reads has changed."""
    return track.begin_run(trial_run(run, trial, parent, params))


def trial_run(run: Run, trial: Trial, parent: TrackedRun | None, params: dict[str, Any] | None = None) -> TrackedRun:
    """What identifies the MLflow run of a trial."""
    variant = run.recipe.variants[trial.variant]
    said = {
        "variant": trial.variant,
        "seed": trial.seed,
        "weights": variant.weights,
        **({"weights_from": variant.weights_from} if variant.weights_from else {}),
        "instructions": variant.instructions,
        **(params or {}),
    }
    return TrackedRun(run.recipe.name, trial.name, f"trial:{trial.name}:{_data(run, (trial,))}", said, parent)


def _data(run: Run, some: tuple[Trial, ...]) -> str:
    """Digest of the recipe, and of everything that the trials read and do not make themselves."""
    read = {
        name: run.artifact(name).digest
        for trial in some
        for stage in stages_of(run.recipe, trial)
        for name in run.stages[stage].inputs.values()
        if run.stages[name].kind not in TRIAL_KINDS
    }
    return digest_of([recipe_digest(run.recipe), read])


def makers_of(recipe: Recipe, stage: str) -> list[str]:
    """Trials, in the recipe's order, whose stage of this kind says the same: the first one makes what they share."""
    kind, name = stage.split("/")
    said = {trial.name: _said(recipe, kind, trial) for trial in trials(recipe)}
    return [other for other in said if said[other] == said[name]]


def _said(recipe: Recipe, kind: str, trial: Trial) -> list[object]:
    """What decides the artifact of a trial's stage, beside what is the same for all trials."""
    phases = PHASES[:1] if kind == "pretrain" else PHASES
    mixtures = [(phase_weights(recipe, trial.variant, one), phase_weights_from(recipe, trial.variant, one)) for one in phases]
    return [trial.seed, *mixtures]


if __name__ == "__main__":
    main(study)
