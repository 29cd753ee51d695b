"""A drill on the running cluster is a job: `python -m jobs.drill RECIPE ...`, submitted and followed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from medschool.commands.arguments import environment, tree_of
from medschool.commands.drilled import json_in
from medschool.recipe import Recipe


def as_job(path: Path, recipe: Recipe, words: Sequence[str], overrides: Sequence[str], as_json: bool) -> int:
    """Submit it with these words behind the recipe, and follow it; the job's exit code. as_json: its outcome alone on stdout."""
    from medschool.cluster import submit as ray_jobs

    root = tree_of(path)
    environment()
    settings = [word for override in overrides for word in ("--set", override)]
    arguments = [str(path.resolve().relative_to(root)), *words, *["--json"] * as_json, *settings]
    identity = ray_jobs.submit(root, "drill", f"{recipe.name}-drill", arguments, {"recipe": recipe.name}, _tell)
    told: list[str] = []

    def hear(line: str) -> None:
        told.extend(line.splitlines())
        _tell(line)

    code = ray_jobs.follow(identity, hear if as_json else print)
    for line in json_in(told):
        print(line, flush=True)
    return code


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
