"""`medschool verdict`: what helped, from what is finished, with an exit status for a pipeline."""

import json
from typing import Any

import typer

from medschool.commands.arguments import AsJson, Overrides, RecipePath, store_alone
from medschool.recipe import load

app = typer.Typer()
EXIT_CODES = {"helped": 0, "cannot tell": 3, "hurt": 4}
"""1 and 2 are errors: what is not finished, a recipe that cannot be read."""


@app.command()
def verdict(recipe: RecipePath, overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006 (typer's own form)
    """Say what each component brought. No job is started: when all trials are evaluated, the verdict is worked out here.

    Exit status: 0 helped (the gate passed; without a gate, something helped and nothing hurt), 3 cannot tell, 4 hurt (every
    candidate was shown to do harm; without a gate, anything was), 1 not finished, 2 the recipe is wrong.

    Example: medschool verdict recipes/quickstart.yaml

    Example: medschool verdict recipes/quickstart.yaml --json > verdict.json || echo "exit status $?"
    """
    from medschool.ablate.compare import read_verdict
    from medschool.ablate.cost import costs
    from medschool.ablate.gain import gains
    from medschool.ablate.gate import study_word
    from medschool.ablate.gather import spent
    from medschool.ablate.report import table
    from medschool.ablate.settle import settle
    from medschool.commands.finished import finder

    checked = load(recipe, overrides)
    made, done = settle(checked, store_alone())
    find = finder(done)
    found = read_verdict(made) | {"cost": costs(checked, find)}
    word = study_word(found)
    if as_json:
        print(json.dumps(_plain(found, word), indent=1))
    else:
        print(table(checked, found, spent(checked, find), gains(checked, found, find)), end="")
        print(f"Verdict: {word}.")
    raise typer.Exit(EXIT_CODES[word])


def _plain(found: dict[str, Any], word: str) -> dict[str, Any]:
    return {"word": word, "exit_status": EXIT_CODES[word], **found}
