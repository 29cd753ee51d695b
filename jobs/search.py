"""python -m jobs.search RECIPE: a hyperparameter search by Ray Tune and ASHA; the best setting is written out as a recipe."""

import itertools
import json
from dataclasses import asdict
from functools import partial
from typing import Any

from jobs.model import adopt
from jobs.run import Run, main, quiet
from jobs.study import open_trial_run
from medschool import artifact, storage, track
from medschool.ablate.on_ray import Tried, run_search
from medschool.ablate.report import columns
from medschool.board import Board
from medschool.cluster.fit import concurrent_trials
from medschool.errors import RecipeError
from medschool.procedure import Trial, recipe_digest, results_uri, trials
from medschool.recipe import Recipe
from medschool.recipe.dump import dump, with_values
from medschool.recipe.schema import Search
from medschool.stage import fingerprint_in
from medschool.track import read_journal
from medschool.train.on_ray import JOURNAL, check_cluster, cluster_room


def search(run: Run) -> None:
    """Try every setting, print the trials, and put best.yaml and search.json into the store."""
    spec = _spec(run.recipe)
    settings = [dict(zip(spec.over, values, strict=True)) for values in itertools.product(*spec.over.values())]
    children = [child_of(run.recipe, values) for values in settings]
    adopt(run)
    run.make("corpus")
    run.make("tokens")
    steps = _steps(run, children)
    check_cluster(run.recipe)
    at_once = min(len(settings), concurrent_trials(run.recipe.cluster, cluster_room()))
    key = f"search:{recipe_digest(run.recipe)}"
    parent = track.open_run(run.recipe.name, "search", key, {"trials": len(settings), "steps": steps})
    run.say(f"search: {len(settings)} trials of up to {steps} steps, {at_once} at once")
    do = partial(_try, run.recipe, run.store_uri, run.board, parent)
    folder = storage.join(run.store_uri, "tune", f"search-{recipe_digest(run.recipe)}")
    try:
        tried = run_search(spec, settings, steps, do, at_once, folder)
    except BaseException as error:
        track.close_run(parent, track.status_of(error))
        raise
    for child, one in zip(children, tried, strict=True):
        _settle(run, child, one, parent)
    track.close_run(parent, "FINISHED")
    _tell(run, spec, tried, steps)


def child_of(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe of one trial: without the search. Raises RecipeError when the values do not make a recipe."""
    return with_values(recipe, {**values, "search": None})


def best_of(tried: list[Tried]) -> Tried:
    """The trial with the lowest last loss among those that ran to the end."""
    whole = [one for one in tried if not one.stopped]
    return min(whole or tried, key=lambda one: one.losses[one.steps])


def _spec(recipe: Recipe) -> Search:
    if recipe.search is None:
        raise RecipeError("has no `search` section", "add one, as in recipes/search_lr.yaml", recipe.name)
    return recipe.search


def _trial_of(recipe: Recipe, child: Recipe) -> Trial:
    """The trial that a child recipe is searched by: the variant under its first seed."""
    return next(trial for trial in trials(child) if trial.variant == _spec(recipe).variant)


def _steps(run: Run, children: list[Recipe]) -> int:
    """Optimizer steps, which must be the same for all: they are compared step by step, on the same batches."""
    from jobs.makers import course_of

    found = set()
    for child in children:
        inside = Run(child, run.store_uri, run.board)
        stage = inside.stages[f"pretrain/{_trial_of(run.recipe, child).name}"]
        inputs = {role: inside.artifact(name) for role, name in stage.inputs.items()}
        found.add(course_of(inside, stage, inputs, "", "")[0].steps)
    if len(found) > 1:
        raise RecipeError(
            f"the settings train for different numbers of steps ({', '.join(map(str, sorted(found)))})",
            "search over keys that leave the length and the batch alone",
            "search.over",
        )
    return found.pop()


def _try(recipe: Recipe, store_uri: str, board: Board, parent: str | None, values: dict[str, Any]) -> None:
    """What the process of one trial does: train, reporting on the way; the last report follows the finished artifact."""
    from ray import tune

    quiet()
    spec, child = _spec(recipe), child_of(recipe, values)
    name = f"pretrain/{_trial_of(recipe, child).name}"
    board = board.within(f"{_words(values)}  ")
    mlflow_run = open_trial_run(child, _trial_of(recipe, child), parent)
    run = Run(child, store_uri, board, mlflow_run, spec.report_every_steps)
    known = run.find(name)
    run.make_one(name)
    losses = [point["loss"] for point in read_journal(storage.read_bytes(run.artifact(name).uri(JOURNAL)))]
    for step, loss in windows(losses, spec.report_every_steps):
        if known is not None or step == len(losses):
            tune.report({"step": step, "loss": loss})


def windows(losses: list[float], every: int) -> list[tuple[int, float]]:
    """(step, mean loss since the window before) at every `every`-th step and at the last."""
    ends = [*range(every, len(losses), every), len(losses)]
    return [(end, sum(losses[start:end]) / (end - start)) for start, end in zip([0, *ends], ends, strict=False)]


def _settle(run: Run, child: Recipe, one: Tried, parent: str | None) -> None:
    """Close the trial's MLflow run, and delete the training state of one that was stopped early."""
    inside = Run(child, run.store_uri, run.board)
    trial = _trial_of(run.recipe, child)
    status = "KILLED" if one.stopped else "FINISHED"
    track.close_run(open_trial_run(child, trial, parent), status, {"search_loss": one.losses[one.steps]})
    stage = inside.stages[f"pretrain/{trial.name}"]
    inputs = {role: inside.artifact(name) for role, name in stage.inputs.items()}
    if one.stopped:
        storage.delete_prefix(artifact.stage_uri(run.store_uri, stage.identity, fingerprint_in(stage, inputs, [])))


def _tell(run: Run, spec: Search, tried: list[Tried], steps: int) -> None:
    best = best_of(tried)
    rows = []
    for one in sorted(tried, key=lambda one: (-one.steps, one.losses[one.steps])):
        remark = "best" if one is best else "stopped early" if one.stopped else ""
        rows.append([_words(one.values), str(one.steps), f"{one.losses[one.steps]:.4f}", remark])
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
    storage.write_bytes(storage.join(folder, "search.json"), json.dumps(found, indent=1).encode())


def _words(values: dict[str, Any]) -> str:
    """`lr=0.0002 warmup_fraction=0.1`: settings by the last part of their keys."""
    return " ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in values.items())


if __name__ == "__main__":
    main(search)
