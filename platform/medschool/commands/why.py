"""`medschool why`: what a job waits for, or what it died of."""

import json
from typing import Annotated

import typer

from medschool.commands.arguments import AsJson, environment

app = typer.Typer()


@app.command()
def why(
    job: Annotated[str | None, typer.Argument(help="A job's id; the latest job when left out.")] = None, as_json: AsJson = False
) -> None:
    """Say what a job waits for, or what it died of, and what to do.

    Example: medschool why quickstart-20261122-163000-ab12 --json
    """
    from medschool.cluster import why as of

    environment()
    found = of.why(job)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
        return
    for line in found.lines():
        print(line)
