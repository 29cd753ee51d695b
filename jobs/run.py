"""What all job scripts share: the recipe from the command line, a connection to Ray, and one line of output a stage."""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from jobs.makers import MAKERS
from medschool import artifact
from medschool.errors import MedschoolError, ServiceError, StageError, from_text
from medschool.plan import check_model
from medschool.recipe import Recipe, load
from medschool.stage import Resolved, fingerprint_in, raw_listing, resolve, stages


class Run:
    """One recipe against one store: makes stages in order and remembers what is done."""

    def __init__(self, recipe: Recipe, store_uri: str) -> None:
        self.recipe, self.store_uri = recipe, store_uri
        self.stages = {stage.name: stage for stage in stages(recipe)}
        self.done: dict[str, Resolved] = {}
        self._width = max(map(len, self.stages))

    def say(self, text: str) -> None:
        print(text, flush=True)

    def say_more(self, text: str) -> None:
        """A line of progress inside a stage."""
        self.say(f"        {text}")

    def make(self, kind: str) -> None:
        """Make every stage of one kind that is not finished yet; stages of other kinds must be finished."""
        for number, (name, stage) in enumerate(self.stages.items(), 1):
            if stage.kind == kind:
                self._make_one(name, f"[{number:2}/{len(self.stages)}] {name:<{self._width}}")

    def artifact(self, name: str) -> artifact.Artifact:
        """A finished stage, resolved now if it has not been met yet. Raises StageError when it is not finished."""
        if name not in self.done:
            for needed in self.stages[name].inputs:
                self.artifact(needed)
            self.done[name] = resolve(self.stages[name], self.store_uri, self.done)
        found = self.done[name].artifact
        if found is None:
            item = self.done[name]
            raise StageError(
                f"is not finished ({item.reason})", f"run `python -m jobs.{item.stage.kind}` first, or jobs.whole_run", name
            )
        return found

    def _make_one(self, name: str, label: str) -> None:
        stage = self.stages[name]
        inputs = {needed: self.artifact(needed) for needed in stage.inputs}
        raw = raw_listing(stage, self.store_uri)
        fingerprint = fingerprint_in(stage, inputs, raw)
        found = artifact.find(self.store_uri, name, fingerprint)
        if found is None:
            self.say(f"{label}  run")
            began = time.monotonic()
            found = MAKERS[stage.kind](self, stage, inputs, fingerprint)
            self.say(f"{label}  done in {time.monotonic() - began:.1f} s  {facts_line(found.facts)}")
        else:
            self.say(f"{label}  cached  {facts_line(found.facts)}")
        self.done[name] = Resolved(stage, "cached", fingerprint, found, "")


def facts_line(facts: dict[str, Any]) -> str:
    """Small facts of an artifact in one line: numbers, and counts by name."""

    def word(value: Any) -> str:
        if isinstance(value, dict):
            return "(" + ", ".join(f"{key} {word(inner)}" for key, inner in value.items()) + ")"
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)

    if "gate" in facts:
        return f"gate passed: {facts['gate']['passed']}"
    return "  ".join(f"{key} {word(value)}" for key, value in facts.items())


def main(do: Callable[[Run], None]) -> None:
    """Parse the command line, connect to Ray, run; exit code and two lines for every error that a user can mend."""
    parser = argparse.ArgumentParser(
        epilog="example: python -m jobs.whole_run recipes/quickstart.yaml --set pretrain.length.steps=4"
    )
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], metavar="section.field=value")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        recipe, store_uri = load(args.recipe, args.set), store_from_environment()
        check_model(recipe, store_uri)
        _connect()
        do(Run(recipe, store_uri))
    except Exception as error:
        known = cause_of(error)
        if known is None:
            raise
        print(
            f"error: {known.where + ': ' if known.where else ''}{known.problem}\nfix: {known.remedy}", file=sys.stderr, flush=True
        )
        sys.exit(known.exit_code)


def cause_of(error: BaseException) -> MedschoolError | None:
    """The MedschoolError that an exception is, or that Ray wrapped into it, if there is one."""
    return error if isinstance(error, MedschoolError) else from_text(str(error))


def store_from_environment() -> str:
    """The store's URI. Raises ServiceError when none is named."""
    uri = os.environ.get("MEDSCHOOL_STORE", "")
    if not uri:
        raise ServiceError("MEDSCHOOL_STORE is not set", "run `medschool up`, or set it to s3://bucket/prefix of your store")
    return uri


def _connect() -> None:
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
