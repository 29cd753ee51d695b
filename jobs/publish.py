"""python -m jobs.publish RECIPE: register the gate's winner in MLflow under the recipe's alias."""

from jobs.run import Run, main
from jobs.study import open_study_run, open_trial_run
from medschool import registry, track
from medschool.ablate.compare import read_verdict
from medschool.ablate.report import mlflow_metrics
from medschool.errors import StageError
from medschool.procedure import checkpoint_stage, recipe_digest, trials


def publish(run: Run) -> str | None:
    """The registered version. Raises StageError when no candidate passed; None when the recipe does not register.

    First the verdict's numbers go to the MLflow runs of the study and its trials, so that MLflow says what the report says.
    """
    recipe, verdict = run.recipe, read_verdict(run.artifact("verdict"))
    parent = open_study_run(run)
    runs = {trial.name: open_trial_run(run, trial, parent) for trial in trials(recipe)}
    for name, run_id in runs.items():
        track.close_run(run_id, "FINISHED", mlflow_metrics(verdict, name))
    track.close_run(parent, "FINISHED")
    if recipe.serve is None or recipe.gate is None:
        run.say("publish: the recipe has no `serve` section, nothing is registered")
        return None
    gate = verdict["gate"]
    if not gate["passed"]:
        raise StageError(
            f"the gate did not pass: {gate['reason']}",
            "train longer or on other text; the alias keeps the model it had",
            f"gate.candidates {', '.join(recipe.gate.candidates)}",
        )
    winner = next(trial for trial in trials(recipe) if trial.name == gate["winner_trial"])
    tags = {
        "recipe": recipe.name,
        "recipe_digest": recipe_digest(recipe),
        "variant": winner.variant,
        "gate": gate["reason"],
        "intended_use": "not for clinical use",
    }
    made = run.artifact(checkpoint_stage(recipe, winner))
    version = registry.register(made, recipe.serve.registered_model, recipe.serve.alias, runs[winner.name], tags)
    run.say(f"registered {winner.name} as {recipe.serve.registered_model} version {version}, @{recipe.serve.alias}")
    return version


def do(run: Run) -> None:
    publish(run)


if __name__ == "__main__":
    main(do)
