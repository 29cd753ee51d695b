"""From a Recipe back to YAML that loads to the same recipe, and to recipes that differ in some values."""

from collections.abc import Mapping
from typing import Any

import yaml

from medschool.recipe.load import checked, put
from medschool.recipe.schema import Recipe


def dump(recipe: Recipe) -> str:
    """YAML with the keys that were given, in the order of the schema. `load` gives an equal recipe."""
    data = recipe.model_dump(mode="json", exclude_unset=True)
    return str(yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=130, allow_unicode=True))


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with other values under dotted keys. Raises RecipeError when that is not a valid recipe."""
    data = recipe.model_dump(mode="json", exclude_unset=True)
    for key, value in values.items():
        put(data, key, value, key)
    return checked(data, {}, ", ".join(f"{key}={value}" for key, value in values.items()))
