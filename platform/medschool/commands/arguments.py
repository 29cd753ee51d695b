"""What the verbs share: arguments, the services' addresses, the store."""

import contextlib
import os
from pathlib import Path
from typing import Annotated

import typer

from medschool.errors import RecipeError, ServiceError

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/quickstart.yaml.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Override one value of the recipe; repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def environment() -> None:
    """Make the variables that lead to the services this process's own; a service that the user names wins over the local one."""
    from medschool.cluster import local, state

    os.environ.update(local.environment(state.home()))


def store() -> str:
    """The store's URI. Raises ServiceError when none is known."""
    uri = os.environ.get("MEDSCHOOL_STORE", "")
    if not uri:
        raise ServiceError("no object store is known", "run `medschool up`, or set MEDSCHOOL_STORE and the AWS_* variables")
    return uri


def store_alone() -> str:
    """The store's URI for a verb that needs no other service: those may be missing. Raises ServiceError when none is known."""
    with contextlib.suppress(ServiceError):
        environment()
    return store()


def tree_of(recipe: Path) -> Path:
    """The tree that travels with a job: the folder with jobs/ above the recipe. Raises RecipeError when there is none."""
    for folder in recipe.resolve().parents:
        if (folder / "jobs" / "whole_run.py").is_file():
            return folder
    raise RecipeError(
        "no folder above it holds jobs/whole_run.py",
        "keep recipes in the repository's tree, so that they travel with the job",
        str(recipe),
    )


def table(rows: list[list[str]]) -> list[str]:
    """Lines of a table, the columns aligned; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
