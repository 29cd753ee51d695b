"""`medschool export ...`: what a run made, in forms that other programs read."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medschool.commands.arguments import AsJson, Overrides, RecipePath, store_alone
from medschool.commands.finished import finished
from medschool.errors import RecipeError
from medschool.recipe import load

app = typer.Typer(name="export", no_args_is_help=True, help="Write what a run made in forms that other programs read.")


@app.command()
def corpus(
    recipe: RecipePath,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    source: Annotated[list[str], typer.Option(help="Only this source; repeatable.")] = [],  # noqa: B006 (typer's own form)
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Write the finished corpus as a Hugging Face `datasets` directory: Parquet and a card. Near-duplicates stay out.

    Example: medschool export corpus recipes/quickstart.yaml corpus --source papers
    """
    from medschool.corpus.export import export_corpus
    from medschool.duplicates import removed_ids

    checked = load(recipe, overrides)
    if unknown := [name for name in source if name not in checked.sources]:
        raise RecipeError(f"{unknown[0]!r} is no source", f"name one of {', '.join(checked.sources)}", "--source")
    names = source or list(checked.sources)
    made = finished(checked, store_alone(), [f"corpus/{name}" for name in names] + ["duplicates"] * bool(checked.near_duplicates))
    removed = {name: removed_ids(made["duplicates"], name) for name in names} if checked.near_duplicates else {}
    sources = {name: made[f"corpus/{name}"] for name in names}
    found = export_corpus(checked.name, sources, removed, folder, (lambda _: None) if as_json else print)
    print(json.dumps({name: asdict(one) for name, one in found.items()}, indent=1) if as_json else f"wrote {folder}/README.md")


@app.command()
def instructions(
    recipe: RecipePath,
    to: Annotated[
        Path | None, typer.Option(help="A new or empty folder; `<name of the recipe>-instructions` when left out.")
    ] = None,
    of: Annotated[list[str], typer.Option(help="Only this set; repeatable.")] = [],  # noqa: B006 (typer's own form)
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Write the finished instructions as a Hugging Face `datasets` directory: Parquet and a card, one configuration a set.

    Example: medschool export instructions recipes/quickstart.yaml --to instructions --of graph
    """
    from medschool.instructions.export import export_instructions

    checked = load(recipe, overrides)
    if not checked.instructions:
        raise RecipeError("there are no instructions in this recipe", "give it a section `instructions`", str(recipe))
    if unknown := [name for name in of if name not in checked.instructions]:
        raise RecipeError(f"{unknown[0]!r} is no set of instructions", f"name one of {', '.join(checked.instructions)}", "--of")
    names = list(dict.fromkeys(of)) or list(checked.instructions)
    made = finished(checked, store_alone(), [f"instructions/{name}" for name in names])
    folder = to or Path(f"{checked.name}-instructions")
    sets = {name: made[f"instructions/{name}"] for name in names}
    found = export_instructions(checked, sets, folder, (lambda _: None) if as_json else print)
    print(json.dumps({name: asdict(one) for name, one in found.items()}, indent=1) if as_json else f"wrote {folder}/README.md")


@app.command()
def preferences(out: Annotated[Path, typer.Argument(metavar="OUT", help="A new file, JSON lines.")]) -> None:
    """Write the votes of the chat page's blind mode as preference pairs: prompt, chosen, rejected, and who wrote which.

    Example: medschool export preferences preferences.jsonl
    """
    from collections import Counter

    from medschool.rows import Dropped
    from medschool.serve.votes import pairs

    if out.exists():
        raise RecipeError("it exists already", "name a new file", str(out))
    found = list(pairs(store_alone()))
    made = [pair for pair in found if isinstance(pair, dict)]
    out.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in made), encoding="utf-8")
    left_out = [one for one in found if isinstance(one, Dropped)]
    counts = sorted(Counter(one.step for one in left_out).items())
    print(", ".join([f"{out}: {len(made)} pairs", *(f"{count} {step} left out" for step, count in counts)]))
    for one in left_out:
        if one.step == "malformed":
            typer.echo(f"left out {one.uri}: {one.reason}", err=True)
