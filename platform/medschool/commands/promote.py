"""`medschool promote`: give a finished model the alias that is served, when all that speaks for it is there."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from medschool.commands.arguments import AsJson, Overrides, RecipePath, store_alone
from medschool.errors import RecipeError
from medschool.recipe import Recipe, load
from medschool.recipe.serving import Serve

app = typer.Typer()


@app.command()
def promote(
    recipe: RecipePath,
    alias: Annotated[str | None, typer.Option(help="Alias to give; that of the recipe's `serve` when left out.")] = None,
    variant: Annotated[str | None, typer.Option(help="A candidate of the gate; its winner when left out.")] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Give the alias back to the version that had it before.")] = False,
    overrides: Overrides = [],  # noqa: B006 (typer's own form)
    as_json: AsJson = False,
) -> None:
    """Register a model under an alias, with its card. Refused, saying what is missing, unless exams, retention, contamination,
    mask contract and export check are there and the recipe's gate passes.

    Example: medschool promote recipes/quickstart.yaml --alias champion

    Example: medschool promote recipes/quickstart.yaml --alias champion --rollback
    """
    from medschool import registry

    checked = load(recipe, overrides)
    if checked.serve is None:
        raise RecipeError("the recipe has no `serve` section", "give it one: it names the registered model", str(recipe))
    alias = alias or checked.serve.alias
    if rollback:
        store_alone()
        left, taken = registry.roll_back(checked.serve.registered_model, alias)
        _tell({"alias": alias, "version": taken, "instead_of": left}, f"@{alias} is version {taken} again, not {left}", as_json)
        return
    _promote(checked, checked.serve, alias, variant, as_json)


def _promote(recipe: Recipe, serve: Serve, alias: str, variant: str | None, as_json: bool) -> None:
    from medschool.ablate.alias import give_alias
    from medschool.ablate.compare import read_verdict
    from medschool.ablate.promote import candidate, checks
    from medschool.ablate.settle import settle
    from medschool.commands.finished import finder

    store_uri = store_alone()
    made, done = settle(recipe, store_uri)
    one = candidate(recipe, read_verdict(made), finder(done), variant)
    found = checks(one)
    plain = {"trial": one.trial.name, "checks": [asdict(check) for check in found]}
    if not as_json:
        for check in found:
            print(f"{check.name:<14} {'ok' if check.ok else 'LACKING':<8} {check.said}")
    if as_json and not all(check.ok for check in found):
        print(json.dumps({"promoted": False, **plain}, indent=1))
    given = give_alias(one, found, serve.registered_model, alias, store_uri)
    said = f"{one.trial.name} is {serve.registered_model} version {given.version}, @{alias}\ncard: {given.card_uri}"
    _tell({"promoted": True, **plain, "alias": alias, "version": given.version, "card": given.card_uri}, said, as_json)


def _tell(plain: dict[str, object], said: str, as_json: bool) -> None:
    print(json.dumps(plain, indent=1) if as_json else said)
