"""python -m jobs.study RECIPE: train and measure every variant under every seed, each as a trial of Ray Tune."""

from __future__ import annotations

from functools import partial

from jobs.run import Run, main, quiet
from medschool import track
from medschool.ablate.on_ray import Trials, run_study
from medschool.board import Board
from medschool.cluster.fit import concurrent_trials
from medschool.procedure import PHASES, Trial, phase_weights, recipe_digest, trials
from medschool.recipe import Recipe


def study(run: Run) -> None:
    """Make what the trials of the recipe lack; a trial that has everything starts no process."""
    from medschool.train.on_ray import check_cluster, cluster_room

    everyone = trials(run.recipe)
    todo = [trial for trial in everyone if any(run.find(name) is None for name in stages_of(run.recipe, trial))]
    for trial in everyone:
        if trial not in todo:
            for name in stages_of(run.recipe, trial):
                run.make_one(name)
    if not todo:
        return
    check_cluster(run.recipe)
    at_once = min(len(todo), concurrent_trials(run.recipe.cluster, cluster_room()))
    parent = open_study_run(run.recipe)
    names = [trial.name for trial in todo]
    run.say(f"study: {len(todo)} of {len(everyone)} trials to run, {at_once} at once: {', '.join(names)}")
    do = partial(_trial, run.recipe, run.store_uri, run.board, parent)
    try:
        run_study(names, do, at_once, run.store_uri)
    except BaseException as error:
        track.close_run(parent, track.status_of(error))
        raise
    track.close_run(parent, "FINISHED")
    run.made |= {name for trial in todo for name in stages_of(run.recipe, trial)}


def stages_of(recipe: Recipe, trial: Trial) -> list[str]:
    """The stages that a trial makes, in order."""
    trained = [f"{phase}/{trial.name}" for phase in PHASES if phase_weights(recipe, trial.variant, phase) is not None]
    return [*trained, f"evaluate/{trial.name}"]


def _trial(recipe: Recipe, store_uri: str, board: Board, parent: str | None, name: str, others: Trials) -> None:
    """What the process of one trial does."""
    quiet()
    trial = next(trial for trial in trials(recipe) if trial.name == name)
    mlflow_run = open_trial_run(recipe, trial, parent)
    run = Run(recipe, store_uri, board, mlflow_run)
    try:
        for stage in stages_of(recipe, trial):
            maker = maker_of(recipe, stage)
            if maker != name:
                others.wait_for(partial(_is_there, run, stage), maker)
            run.make_one(stage)
    except BaseException as error:
        track.close_run(mlflow_run, track.status_of(error))
        raise
    track.close_run(mlflow_run, "FINISHED")


def _is_there(run: Run, stage: str) -> bool:
    return run.find(stage) is not None


def open_study_run(recipe: Recipe) -> str | None:
    """The MLflow run of the whole study, found again or begun; those of its trials lie below it."""
    return track.open_run(recipe.name, "study", f"study:{recipe_digest(recipe)}", {"trials": len(trials(recipe))})


def open_trial_run(recipe: Recipe, trial: Trial, parent: str | None) -> str | None:
    """The MLflow run of a trial, found again or begun."""
    variant = recipe.variants[trial.variant]
    params = {
        "variant": trial.variant,
        "seed": trial.seed,
        "weights": variant.weights,
        "instructions": variant.instructions,
        "pretrain_lr": recipe.pretrain.optimizer.lr,
    }
    return track.open_run(recipe.name, trial.name, f"trial:{recipe_digest(recipe)}:{trial.name}", params, parent)


def maker_of(recipe: Recipe, stage: str) -> str:
    """The first trial, in the recipe's order, whose stage of this kind says the same: it makes what they share."""
    kind, name = stage.split("/")
    said = {trial.name: _said(recipe, kind, trial) for trial in trials(recipe)}
    return next(other for other in said if said[other] == said[name])


def _said(recipe: Recipe, kind: str, trial: Trial) -> list[object]:
    """What decides the artifact of a trial's stage, beside what is the same for all trials."""
    phases = PHASES[:1] if kind == "pretrain" else PHASES
    return [trial.seed, *(phase_weights(recipe, trial.variant, phase) for phase in phases)]


if __name__ == "__main__":
    main(study)
