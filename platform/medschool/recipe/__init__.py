"""The typed recipe: one YAML file describes one whole run.

    recipes/quickstart.yaml --load()--> Recipe (frozen, checked)          light: no ray, no torch

Example:
    >>> from medschool.recipe import load
    >>> load("recipes/quickstart.yaml", ["pretrain.length.steps=4"]).pretrain.length.steps
    4
"""

from medschool.recipe.load import load
from medschool.recipe.schema import Recipe

__all__ = ["Recipe", "load"]
