"""Finished stages of a recipe, for verbs that read what a run made.

What reads the store is imported when a stage is asked for: the command line loads this file for every verb, and most need none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from medschool.recipe import Recipe

if TYPE_CHECKING:
    from medschool.artifact import Artifact
    from medschool.stage import Resolved


def finished(recipe: Recipe, store_uri: str, names: Iterable[str]) -> dict[str, Artifact]:
    """The artifacts of the stages `names`. Raises StageError, naming the first that is not finished."""
    from medschool.procedure import resolve_all

    find = finder(resolve_all(recipe, store_uri))
    return {name: find(name) for name in names}


def finder(resolved: Mapping[str, Resolved]) -> Callable[[str], Artifact]:
    """Looks a finished artifact up by the stage's name. It raises StageError for one that is not finished."""

    return lambda name: resolved[name].required()
