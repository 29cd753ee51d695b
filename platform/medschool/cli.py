"""The command line: `medschool <verb>`. Every verb has `--help` with an example; errors are two lines, cause and remedy."""

import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from medschool import __version__, s3
from medschool.commands.arguments import AsJson, Overrides, RecipePath, environment, store, tree_of
from medschool.commands.cluster import app as cluster_app
from medschool.commands.drill import app as drill_app
from medschool.commands.exam import app as exam_app
from medschool.commands.export import app as export_app
from medschool.commands.fetch import fetch
from medschool.commands.keys import app as keys_app
from medschool.commands.ledger import app as ledger_app
from medschool.commands.mask import app as mask_app
from medschool.commands.promote import app as promote_app
from medschool.commands.status import status
from medschool.commands.tokens import app as tokens_app
from medschool.commands.verdict import app as verdict_app
from medschool.commands.why import app as why_app
from medschool.errors import MedschoolError, RecipeError, ServiceError
from medschool.recipe import Recipe, load

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
NOT_SUBMITTED = ("__init__", "run", "makers", "stopping", "drill")
"""Of the files below jobs/: what jobs share, and what has a verb of its own."""
PLAN_WAITS_S = 3.0
"""How long a plan waits for each answer of the store."""
app.add_typer(tokens_app)
app.add_typer(ledger_app)
app.add_typer(mask_app)
app.add_typer(export_app)
app.add_typer(drill_app)
app.add_typer(verdict_app)
app.add_typer(exam_app)
app.add_typer(promote_app)
app.add_typer(keys_app)
app.add_typer(cluster_app)
app.add_typer(why_app)


def main() -> None:
    """Entry point: run a verb, print errors in two lines, exit with the error's code."""
    logging.disable(logging.WARNING)  # libraries' remarks; what a user needs to know is printed
    try:
        app()
    except MedschoolError as error:
        where = f"{error.where}: " if error.where else ""
        print(f"error: {where}{error.problem}\nfix: {error.remedy}", file=sys.stderr)
        sys.exit(error.exit_code)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Put a general language model through medical school, on one Ray cluster. Models made with it are not for clinical use."""
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def up(
    num_cpus: Annotated[int, typer.Option(help="Logical CPUs of the local Ray head; more than the cores is right.")] = 8,
    metrics: Annotated[bool, typer.Option("--metrics", help="Watch Ray with a Prometheus, its alerts and a dashboard.")] = False,
) -> None:
    """Start the local services that are not running: object store, Ray, MLflow. Yours are used instead where they are set.

    Example: medschool up
    """
    from medschool.cluster import local, state

    local.up(state.home(), num_cpus=num_cpus, metrics=metrics, say=print)


@app.command()
def down() -> None:
    """Stop the local services by pid; data stays.

    Example: medschool down
    """
    from medschool.cluster import local, state

    local.down(state.home(), print)


@app.command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="Check against what this recipe needs.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check versions, services, ports, disk, memory, token and store; a fix for every red line. Exit code 1 if any is red.

    Example: medschool doctor recipes/quickstart.yaml
    """
    from medschool.cluster import state
    from medschool.cluster.doctor import doctor as examine
    from medschool.cluster.fit import trial_needs

    spec = load(recipe) if recipe else None
    needed = int(trial_needs(spec.cluster, spec.evaluate.scorers_beside, spec.cluster.fewest_workers)["CPU"]) if spec else None
    checks = examine(state.home(), needed_cpus=needed)
    if as_json:
        print(json.dumps([vars(check) for check in checks], indent=1))
    else:
        for check in checks:
            print(
                f"{'ok ' if check.ok else 'BAD'}  {check.name:<28} {check.found}"
                + ("" if check.ok else f"\n     fix: {check.fix}")
            )
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


app.command()(fetch)


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006 (typer's own form)
    cluster: Annotated[Path | None, typer.Option(help="A cluster file: can it ever hold this, how long, at what price?")] = None,
    mfu: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the card's peak that training reaches.")] = 0.4,
    as_json: AsJson = False,
) -> None:
    """Say what a run would do, before anything starts: stages cached, to run or blocked; tokens, steps, FLOP, repeats.

    Example: medschool plan recipes/pmc_llama_13b.yaml --cluster cluster.yaml --json
    """
    from medschool.plan import make_plan, model_shape

    with contextlib.suppress(ServiceError):  # a plan is made without services too: it says what is missing
        environment()
    checked = load(recipe, overrides)
    with s3.patience(PLAN_WAITS_S):
        made = make_plan(checked, os.environ.get("MEDSCHOOL_STORE", ""))
        shape = model_shape(checked, os.environ.get("MEDSCHOOL_STORE", ""))
    if cluster is None:
        foreseen = None
    else:
        from medschool.cluster.offer import read_cluster
        from medschool.forecast import forecast

        foreseen = forecast(made, read_cluster(cluster), shape, mfu)
    if as_json:
        print(json.dumps(made.as_json() | ({"cluster": foreseen.as_json()} if foreseen else {}), indent=1))
        return
    for line in [*made.lines(), *(["", *foreseen.lines()] if foreseen else [])]:
        print(line)


@app.command()
def submit(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    job: Annotated[str, typer.Option(help="Job to run: whole_run, or one stage such as corpus or tokens.")] = "whole_run",
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the job; it runs on.")] = False,
) -> None:
    """Submit a recipe as one Ray job and follow it; the exit code is the job's. Ctrl-C stops the job, the next submit goes on.

    Example: medschool submit recipes/quickstart.yaml --set pretrain.length.steps=4
    """
    from medschool.cluster import submit as ray_jobs
    from medschool.cluster.progress import plan_words
    from medschool.cluster.status import next_steps
    from medschool.procedure import recipe_digest
    from medschool.train.live import Screen

    checked = load(recipe, overrides)
    root = tree_of(recipe)
    _known_job(root, job)
    place = recipe.resolve().relative_to(root)
    if f"{place.parts[0]}/" in ray_jobs.EXCLUDES:
        raise RecipeError(f"{place.parts[0]}/ does not travel with a job", f"copy it: cp {recipe} {root}/recipes/", str(recipe))
    environment()
    arguments = [str(place), *(word for override in overrides for word in ("--set", override))]
    metadata = {
        "recipe": checked.name,
        "recipe_digest": recipe_digest(checked),
        "mlflow_experiment": checked.name,
        "stages": plan_words(checked) if job == "whole_run" else "",
    }
    identity = ray_jobs.submit(root, job, checked.name, arguments, metadata, _say)
    if detach:
        print(f"follow it with: ray job logs -f {identity}")
        return
    code = ray_jobs.follow(identity, Screen())
    if job in ("whole_run", "report", "search"):  # a gate that does not pass ends a run with an error and a report
        _bring_home(checked)
    if code == 0 and job == "whole_run":
        for line in next_steps(served=checked.serve is not None, tls=checked.serve is not None and checked.serve.tls is not None):
            print(line)
    raise typer.Exit(code)


@app.command()
def results(recipe: RecipePath, overrides: Overrides = []) -> None:  # noqa: B006
    """Bring a finished run's report, numbers and best recipe from the store to this machine.

    Example: medschool results recipes/quickstart.yaml
    """
    environment()
    if not _bring_home(load(recipe, overrides)):
        raise ServiceError("this recipe has left no results", f"run it first: medschool submit {recipe}", store())


def _bring_home(recipe: Recipe) -> list[Path]:
    """Copy what a run left for people to the folder `results` of this home, and say where it is."""
    from medschool import storage
    from medschool.cluster import state
    from medschool.procedure import results_uri

    folder = state.home() / "results" / recipe.name
    found = []
    for info in storage.list_files(results_uri(store(), recipe)):
        target = folder / info.uri.rsplit("/", 1)[1]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(storage.read_bytes(info.uri))
        found.append(target)
        print(f"{target.name:<13} {target}")
    return found


app.command()(status)


def _known_job(root: Path, job: str) -> None:
    known = sorted(path.stem for path in (root / "jobs").glob("*.py") if path.stem not in NOT_SUBMITTED)
    if job not in known:
        raise RecipeError(f"there is no job {job!r}", f"jobs are {', '.join(known)}", "--job")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
