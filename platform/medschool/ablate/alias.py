"""A model gets the alias that is served: refused with all that is missing, or registered with its card.

    candidate --checks--> all there? --card--> store --register--> MLflow: a version, and the alias on it

`medschool promote` and the last stage of a run both come through here, so neither lets a model pass that the other would not. One
thing differs: somebody who promotes asks for every check, a run asks for those that its recipe has a part for. A recipe that says
nothing of `retention` is a smaller experiment, not a failed one; `medschool promote` refuses its model all the same.

What it does not do: roll back (medschool.registry), and judge whether a model may be used on patients. It may not.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from medschool import registry, storage
from medschool.ablate.promote import Candidate, Check, card
from medschool.errors import StageError
from medschool.procedure import recipe_digest, results_uri
from medschool.recipe import Recipe
from medschool.track import TrackedRun


@dataclass(frozen=True)
class Given:
    """What a model that got the alias is registered as."""

    version: str
    card_uri: str


def asked_by(recipe: Recipe, found: Sequence[Check]) -> list[Check]:
    """The checks that a run of this recipe makes: without those of parts that the recipe does not have."""
    parts = {"exams": recipe.exams, "contamination": recipe.exams, "retention": recipe.retention}
    return [check for check in found if parts.get(check.name, True)]


def give_alias(
    one: Candidate, found: Sequence[Check], model: str, alias: str, store_uri: str, run: TrackedRun | None = None
) -> Given:
    """Register the candidate as `model` under `alias`, with its card in the store; `run` is its MLflow run where there is one.

    Raises StageError, naming every check of `found` that failed; ServiceError when MLflow does not answer or refuses.
    """
    if failed := [check for check in found if not check.ok]:
        said = "; ".join(f"{check.name} ({check.said})" for check in failed)
        raise StageError(
            f"is not promoted: {said}", f"@{alias} keeps the model it had; mend that and promote again", one.trial.name
        )
    text = card(one, found).encode()
    uri = storage.join(results_uri(store_uri, one.recipe), f"card-{one.trial.name}.md")
    storage.write_bytes(uri, text)
    tags = {
        "recipe": one.recipe.name,
        "recipe_digest": recipe_digest(one.recipe),
        "variant": one.trial.variant,
        "gate": next(check.said for check in found if check.name == "gate"),
        "intended_use": "not for clinical use",
        "card": uri,
        "card_sha256": hashlib.sha256(text).hexdigest(),
    }
    return Given(registry.register(one.checkpoint, model, alias, run, tags), uri)
