"""`medschool keys ...`: who may ask the served model, and how much."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from medschool.commands.arguments import AsJson, store_alone, table

if TYPE_CHECKING:
    from medschool.serve.keys import Key

app = typer.Typer(name="keys", no_args_is_help=True, help="API keys of the served model: create, list, revoke.")

Name = Annotated[str, typer.Argument(help="A name for the audit log, such as ward-7; 1-64 of a-z, 0-9, '_', '.', '-'.")]


@app.command()
def create(
    name: Name,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="No limit when left out.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Of prompts and answers. No limit when left out.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Answers at once. No limit when left out.")] = None,
) -> None:
    """Make a key and print it, the only time that it is shown. It is in force a few seconds later.

    Example: medschool keys create ward-7 --requests-per-minute 60 --tokens-per-minute 20000
    """
    from medschool.serve import keys

    secret = keys.create(store_alone(), name, requests_per_minute, tokens_per_minute, concurrency)
    print(secret)
    typer.echo(f"this is the only time that the key {name} is shown; `medschool keys revoke {name}` takes it back", err=True)


@app.command(name="list")
def list_(as_json: AsJson = False) -> None:
    """Show the names and limits of all keys, revoked ones too. The keys themselves are not kept.

    Example: medschool keys list --json
    """
    from medschool.serve import keys

    found = keys.stored(store_alone())
    if as_json:
        print(json.dumps([{name: value for name, value in asdict(key).items() if name != "sha256"} for key in found], indent=1))
        return
    head = ["name", "requests/min", "tokens/min", "at once", "created", "revoked"]
    for line in table([head, *map(_row, found)]):
        print(line)


@app.command()
def revoke(name: Name) -> None:
    """Take a key out of force, within seconds and for good. Its name stays taken.

    Example: medschool keys revoke ward-7
    """
    from medschool.serve import keys

    key = keys.revoke(store_alone(), name)
    print(f"{name} is revoked since {_day(key.revoked_s)}")


def _row(key: "Key") -> list[str]:
    limits = (key.requests_per_minute, key.tokens_per_minute, key.concurrency)
    return [key.name, *("-" if limit is None else str(limit) for limit in limits), _day(key.created_s), _day(key.revoked_s)]


def _day(unix_s: int | None) -> str:
    return "-" if unix_s is None else f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M} UTC"
