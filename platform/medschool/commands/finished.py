"""Finished stages of a recipe, for verbs that read what a run made."""

from collections.abc import Iterable

from medschool.artifact import Artifact
from medschool.errors import StageError
from medschool.procedure import resolve_all
from medschool.recipe import Recipe


def finished(recipe: Recipe, store_uri: str, names: Iterable[str]) -> dict[str, Artifact]:
    """The artifacts of the stages `names`. Raises StageError, naming the first that is not finished."""
    resolved, found = resolve_all(recipe, store_uri), {}
    for name in names:
        made = resolved[name].artifact
        if made is None:
            job = name.split("/")[0]
            raise StageError(f"is not finished ({resolved[name].reason})", f"submit the recipe with --job {job}", name)
        found[name] = made
    return found
