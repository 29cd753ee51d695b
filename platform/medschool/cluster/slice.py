"""The small piece of a recipe's training that a drill trains: the recipe's own model and rows, or invented ones."""

import os
import uuid

from medschool import storage
from medschool.artifact import Artifact
from medschool.cluster.drill import Rows
from medschool.cluster.invented import ROW_TOKENS, config_of, invented_rows, tiny_model
from medschool.errors import RecipeError, StageError
from medschool.procedure import phase_sources, resolve_all
from medschool.recipe import Recipe
from medschool.tokens.order import Withheld, order_of
from medschool.tokens.where import index_of
from medschool.tokens.withheld import read_withheld
from medschool.train.adopt import model_folder
from medschool.train.course import Course

TINY_BATCH_ROWS, TINY_ROWS = 24, 400


def drill_folder(store_uri: str) -> str:
    """A new folder for everything that one drill writes."""
    return storage.join(store_uri, "drills", uuid.uuid4().hex[:12])


def tiny_slice(recipe: Recipe, store_uri: str, folder_uri: str, steps: int) -> tuple[Course, Rows]:
    """A tiny model and invented rows, written to the drill's folder; short rows, small batches.

    The architecture is that of the recipe's model where its config.json can be read, else LLaMA's.
    """
    small = {
        "tokens": recipe.tokens.model_copy(update={"row_tokens": ROW_TOKENS}),
        "pretrain": recipe.pretrain.model_copy(update={"batch_rows": min(recipe.pretrain.batch_rows, TINY_BATCH_ROWS)}),
    }
    recipe = recipe.model_copy(update=small)
    config = config_of(model_folder(recipe, os.environ.get("MEDSCHOOL_STORE", store_uri)))
    model, rows = tiny_model(recipe, folder_uri, config), invented_rows(recipe, folder_uri, _variant(recipe), TINY_ROWS)
    return _course(recipe, folder_uri, model, rows, {}, steps), rows


def recipe_slice(recipe: Recipe, store_uri: str, folder_uri: str, steps: int) -> tuple[Course, Rows]:
    """The recipe's model and the rows of its first variant with weights. Raises StageError for a stage that is not finished."""
    sources = phase_sources(recipe, _variant(recipe), "pretrain")
    kinds = ("tokens", "withheld") if recipe.exams else ("tokens",)
    found = _finished(recipe, store_uri, ["model", *(f"{kind}/{source}" for kind in kinds for source in sources)])
    rows = {source: (found[f"tokens/{source}"], index_of(found[f"tokens/{source}"])) for source in sources}
    withheld = {source: read_withheld(found[f"withheld/{source}"]) for source in sources if recipe.exams}
    return _course(recipe, folder_uri, found["model"], rows, withheld, steps), rows


def _course(recipe: Recipe, folder_uri: str, model: Artifact, rows: Rows, withheld: Withheld, steps: int) -> Course:
    seed = (recipe.train_seeds or (recipe.seed,))[0]
    shard_rows = {name: index.shard_rows for name, (_, index) in rows.items()}
    order = order_of(recipe, _variant(recipe), "pretrain", seed, shard_rows, withheld)
    return Course(
        recipe=recipe,
        phase="pretrain",
        trial="drill",
        model=model,
        order=order,
        steps=steps,
        run_uri=storage.join(folder_uri, "runs"),
        prefix_uri=storage.join(folder_uri, "made"),
        mlflow_run=None,
    )


def _variant(recipe: Recipe) -> str:
    """Raises RecipeError where no variant is pretrained."""
    for name, variant in recipe.variants.items():
        if variant.weights is not None:
            return name
    raise RecipeError("no variant has weights, so nothing is pretrained", "add weights to one", "variants")


def _finished(recipe: Recipe, store_uri: str, names: list[str]) -> dict[str, Artifact]:
    resolved, found = resolve_all(recipe, store_uri), {}
    for name in names:
        made = resolved[name].artifact
        if made is None:
            raise StageError(f"is not finished ({resolved[name].reason})", "submit the recipe first, or drill with --tiny", name)
        found[name] = made
    return found
