"""python -m jobs.publish RECIPE: register the gate's winner in MLflow under the recipe's alias."""

from jobs.run import Run, main
from medschool import registry, track
from medschool.errors import StageError
from medschool.stage import recipe_digest


def publish(run: Run) -> str | None:
    """The registered version. Raises StageError when the gate did not pass; None when the recipe does not register."""
    recipe = run.recipe
    if recipe.serve is None or recipe.gate is None:
        run.say("publish: the recipe has no `serve` section, nothing is registered")
        return None
    verdict = run.artifact("verdict")
    if not verdict.facts["gate"]["passed"]:
        raise StageError(
            f"the gate did not pass: {verdict.facts['gate']['reason']}",
            "train longer or on other text; the alias keeps the model it had",
            f"gate.candidate {recipe.gate.candidate}",
        )
    name = f"pretrain/{recipe.gate.candidate}"
    winner = run.artifact(name)
    run_id = track.open_run(recipe.name, recipe.gate.candidate, winner.fingerprint, {})
    tags = {
        "recipe": recipe.name,
        "recipe_digest": recipe_digest(recipe),
        "gate": verdict.facts["gate"]["reason"],
        "intended_use": "not for clinical use",
    }
    try:
        version = registry.register(winner, recipe.serve.registered_model, recipe.serve.alias, run_id, tags)
    except BaseException as error:
        track.close_run(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    metrics = {f"perplexity_{source}": value for source, value in verdict.facts["perplexity"][recipe.gate.candidate].items()}
    track.close_run(run_id, "FINISHED", metrics)
    run.say(f"registered {recipe.serve.registered_model} version {version} as @{recipe.serve.alias}")
    return version


def do(run: Run) -> None:
    publish(run)


if __name__ == "__main__":
    main(do)
