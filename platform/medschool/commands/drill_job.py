"""A drill on the running cluster is a job: `python -m jobs.drill RECIPE ...`, submitted and followed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from medschool.commands.arguments import environment, tree_of
from medschool.recipe import Recipe


def as_job(path: Path, recipe: Recipe, words: Sequence[str], overrides: Sequence[str]) -> int:
    """Submit it with these words behind the recipe, and follow it; the job's exit code."""
    from medschool.cluster import submit as ray_jobs

    root = tree_of(path)
    environment()
    settings = [word for override in overrides for word in ("--set", override)]
    arguments = [str(path.resolve().relative_to(root)), *words, *settings]
    identity = ray_jobs.submit(root, "drill", f"{recipe.name}-drill", arguments, {"recipe": recipe.name}, _tell)
    return ray_jobs.follow(identity, print)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
