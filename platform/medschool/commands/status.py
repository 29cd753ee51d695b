"""`medschool status`: what runs here, how far the latest job is, and what it has cost."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

import typer

from medschool.commands.arguments import AsJson, environment
from medschool.train.live import duration

LOOK_EVERY_S = 3.0
NAMES_SHOWN = 6


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """What runs here: services, the latest jobs, stages, trials, speed, nodes and what they cost, the served model.

    Example: medschool status --watch

    Example: medschool status --json
    """
    from medschool.cluster.status import status as look

    environment()
    if not watch:
        _print(look(), as_json)
        return
    with suppress(KeyboardInterrupt):
        if as_json:
            while True:
                print(json.dumps(look()), flush=True)
                time.sleep(LOOK_EVERY_S)
        _live(look)


def _print(found: Mapping[str, Any], as_json: bool) -> None:
    for line in [json.dumps(found, indent=1)] if as_json else lines(found):
        print(line)


def _live(look: Any) -> None:
    """The same lines again and again in the same place; one after the other where there is no terminal."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            text = Text("\n".join(lines(look())), no_wrap=True, overflow="ellipsis")
            live.update(text, refresh=True) if console.is_terminal else console.print(text)
            time.sleep(LOOK_EVERY_S)


def lines(found: Mapping[str, Any]) -> list[str]:
    """What medschool.cluster.status gives, for people."""
    parts = {name: part for name, part in found.items() if name not in ("job", "nodes", "spend")}
    text = [f"{name:<10} " + "  ".join(f"{key} {_word(value)}" for key, value in part.items()) for name, part in parts.items()]
    if "job" in found:
        text += ["", *_job(found["job"]), *_nodes(found["nodes"], found["spend"])]
    return text


def _word(value: Any) -> str:
    """`quickstart-... RUNNING, ...` of the list of jobs; other values as they are."""
    return ", ".join(f"{job['id']} {job['status']}" for job in value) or "none" if isinstance(value, list) else str(value)


def _job(job: Mapping[str, Any]) -> list[str]:
    text = [f"{'job':<10} {job['id']}  {job['status']}  {duration(job['seconds'])}"]
    if "stages" not in job:
        return text
    stages, trials = job["stages"], job["trials"]
    text.append(f"{'stages':<10} {len(stages['done'])} of {stages['total']} done" + _named("running", stages["running"]))
    if stages["to_do"]:
        text[-1] += _named("to do", stages["to_do"])
    if trials:
        states = {state: [name for name in trials if trials[name] == state] for state in ("done", "running", "waiting", "failed")}
        told = [f"{len(names)} {state}{_in_words(names)}" for state, names in states.items() if names or state != "failed"]
        text.append(f"{'trials':<10} " + ", ".join(told))
    text += [f"{name:<10} {_training(shown)}" for name, shown in job["trainings"].items()]
    if len(job["trainings"]) > 1:
        text.append(f"{'together':<10} {job['tokens_per_s']:,.0f} tokens/s")
    return text


def _training(shown: Mapping[str, Any]) -> str:
    words = [
        f"step {shown['step']}/{shown['steps']}",
        f"loss {shown['loss']:.4f}",
        f"{shown['tokens_per_s']:,.0f} tokens/s",
        f"{duration(shown['left_s'])} left" if shown["left_s"] is not None else "",
        f"goodput {shown['goodput']:.0%}" if shown["goodput"] is not None else "",
        f"skipped {shown['skipped']}" if shown["skipped"] else "",
    ]
    return "  ".join(word for word in words if word)


def _nodes(nodes: list[Mapping[str, Any]], spend: Mapping[str, float | None]) -> list[str]:
    """One line a type, and one for all; without a price where nodes have none."""
    text = [
        f"{'nodes' if place == 0 else '':<10} {each['type']}: {each['alive']} there, {each['nodes']} in all, "
        f"{each['hours']:,.2f} node-hours" + (f", {each['usd']:,.2f} USD" if each["usd"] is not None else ", no price")
        for place, each in enumerate(nodes)
    ]
    if spend["so_far"] is not None and spend["an_hour"] is not None:
        text.append(f"{'spend':<10} {spend['so_far']:,.2f} USD since the job began, {spend['an_hour']:,.2f} USD an hour now")
        if spend["projected"] is not None:
            text[-1] += f", {spend['projected']:,.2f} USD when its trainings end"
    return text


def _named(word: str, names: list[str]) -> str:
    return f"; {word}: {', '.join(names[:NAMES_SHOWN])}" + (" ..." if len(names) > NAMES_SHOWN else "") if names else ""


def _in_words(names: list[str]) -> str:
    return f" ({', '.join(names[:NAMES_SHOWN])}{' ...' if len(names) > NAMES_SHOWN else ''})" if names else ""
