"""The verdict of a recipe from what its stages left in the store, without Ray: it is arithmetic on tables that are there.

    evaluate/<trial>, overlap/<source>, withheld/<source>, instructions/<set> --verdict_of--> verdict.json    as a job runs it
    recipe + store --settle--> its artifact; made here when all it reads is finished

Price: reading the scores, then some 0.2 s for each comparison and exam.
"""

from medschool import artifact
from medschool.ablate.compare import Scored, make_verdict
from medschool.ablate.contamination import contamination, found_items
from medschool.artifact import Artifact, Output
from medschool.errors import StageError
from medschool.procedure import resolve_all, trials
from medschool.recipe import Recipe
from medschool.stage import Resolved


def verdict_of(recipe: Recipe, inputs: dict[str, Artifact], prefix_uri: str) -> Output:
    """What the stage `verdict` makes of its inputs, by role."""
    from medschool.evaluate.on_ray import read_scores

    scored = [
        Scored(trial.name, trial.variant, trial.seed, **read_scores(inputs[f"evaluate/{trial.name}"])) for trial in trials(recipe)
    ]
    overlap, withheld, sets = (
        {role.split("/", 1)[1]: made for role, made in inputs.items() if role.startswith(f"{kind}/")}
        for kind in ("overlap", "withheld", "instructions")
    )
    return make_verdict(recipe, scored, prefix_uri, contamination(overlap, withheld, sets), found_items(overlap, sets))


def settle(recipe: Recipe, store_uri: str) -> tuple[Artifact, dict[str, Resolved]]:
    """The verdict's artifact, and how every stage stands. Raises StageError, naming what is not finished."""
    done = resolve_all(recipe, store_uri)
    found = done["verdict"]
    if found.artifact is not None:
        return found.artifact, done
    missing = {name: done[name].reason for name in found.stage.inputs.values() if done[name].artifact is None}
    if missing or found.fingerprint is None:
        name, reason = next(iter(missing.items()), ("verdict", found.reason))
        more = f", and {len(missing) - 1} more of {len(found.stage.inputs)} are not" if len(missing) > 1 else ""
        raise StageError(f"is not finished ({reason}){more}", "submit the recipe: medschool submit RECIPE", name)
    inputs = {role: made for role, name in found.stage.inputs.items() if (made := done[name].artifact)}
    digests = {role: made.digest for role, made in inputs.items()}
    made = artifact.make(
        store_uri, found.stage.identity, found.fingerprint, digests, lambda prefix: verdict_of(recipe, inputs, prefix)
    )
    return made, done
