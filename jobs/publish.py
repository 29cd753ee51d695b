"""python -m jobs.publish RECIPE: register the gate's winner in MLflow under the recipe's alias."""

from jobs.run import Run, main
from jobs.study import open_study_run, open_trial_run
from medschool import track
from medschool.procedure import trials


def publish(run: Run) -> str | None:
    """The registered version; None when the recipe does not register.

    Raises StageError when no candidate passes the gate, or anything else is missing that the recipe has a part for
    (medschool.ablate.alias). First the verdict's numbers go to the MLflow runs of the study and its trials, so that MLflow says
    what the report says.
    """
    from medschool.ablate.alias import asked_by, give_alias  # with SciPy, which a run needs at its end alone
    from medschool.ablate.compare import read_verdict
    from medschool.ablate.promote import candidate, checks
    from medschool.ablate.report import mlflow_metrics

    recipe, verdict = run.recipe, read_verdict(run.artifact("verdict"))
    parent = open_study_run(run)
    runs = {trial.name: open_trial_run(run, trial, parent) for trial in trials(recipe)}
    for name, run_id in runs.items():
        track.close_run(run_id, "FINISHED", mlflow_metrics(verdict, name))
    track.close_run(parent, "FINISHED")
    if recipe.serve is None or recipe.gate is None:
        run.say("publish: the recipe has no `serve` section, nothing is registered")
        return None
    model, alias = recipe.serve.registered_model, recipe.serve.alias
    one = candidate(recipe, verdict, run.artifact, None)
    given = give_alias(one, asked_by(recipe, checks(one)), model, alias, run.store_uri, runs[one.trial.name])
    run.say(f"registered {one.trial.name} as {model} version {given.version}, @{alias}, card {given.card_uri}")
    return given.version


def do(run: Run) -> None:
    publish(run)


if __name__ == "__main__":
    main(do)
