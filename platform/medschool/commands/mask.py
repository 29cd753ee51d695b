"""`medschool mask`: which tokens of the conversations are trained."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medschool.commands.arguments import AsJson, Overrides, RecipePath, store_alone
from medschool.commands.finished import finished
from medschool.errors import RecipeError
from medschool.recipe import load

if TYPE_CHECKING:
    from medschool.trace.mask import Row, Shown

app = typer.Typer()


@app.command()
def mask(
    recipe: RecipePath,
    of: Annotated[str | None, typer.Option(help="A set of the recipe's instructions; its first when left out.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Rows to show.")] = 5,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file.")] = None,
    overrides: Overrides = [],  # noqa: B006 (typer's own form)
    as_json: AsJson = False,
) -> None:
    """Show tokens, mask, conversations and positions of rows as the trainer receives them. The chats must be finished.

    Example: medschool mask recipes/quickstart.yaml --of exam_questions --n 2 --html mask.html
    """
    from medschool.artifact import local_copy
    from medschool.tokens.tokenizer import load_tokenizer
    from medschool.trace.mask import as_json as plain
    from medschool.trace.mask import first_rows, page

    checked = load(recipe, overrides)
    if checked.chats is None or not checked.instructions:
        raise RecipeError("there are no conversations in this recipe", "give it `instructions` and `chats`", str(recipe))
    of = of or next(iter(checked.instructions))
    if of not in checked.instructions:
        raise RecipeError(f"{of!r} is no set of instructions", f"name one of {', '.join(checked.instructions)}", "--of")
    made = finished(checked, store_alone(), [f"chats/{of}", "tokenizer"])
    tokenizer = load_tokenizer(local_copy(made["tokenizer"]))
    rows = first_rows(made[f"chats/{of}"], lambda ids: str(tokenizer.raw.decode(list(ids), skip_special_tokens=False)), n)
    if html is not None:
        html.write_text(page(rows, of), encoding="utf-8")
        typer.echo(f"{len(rows)} rows: {html}")
    elif as_json:
        print(json.dumps(plain(rows), indent=1))
    else:
        for row in rows:
            _print(row)


def _print(row: "Row") -> None:
    """A row: its conversations with what is trained in green, positions of the first and the last token in front."""
    from medschool.trace.mask import padding_of

    typer.secho(f"shard {row.shard} row {row.row}: {padding_of(row)} tokens of padding", bold=True)
    for piece in (piece for piece in row.pieces if piece.conversation):
        first, last = piece.tokens[0].position, piece.tokens[-1].position
        typer.secho(f"-- {piece.conversation}: positions {first}-{last}, {piece.trained} trained", fg="cyan")
        typer.echo("".join(_coloured(token) for token in piece.tokens))


def _coloured(token: "Shown") -> str:
    return typer.style(token.text, fg="green", underline=True) if token.trained else token.text
