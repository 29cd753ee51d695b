"""What all job scripts share: the recipe from the command line, a connection to Ray, and one line of output a stage."""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jobs.makers import MAKERS
from jobs.stopping import EXIT_CODE, stopping
from medschool import artifact
from medschool.artifact import Artifact
from medschool.board import Board, printing
from medschool.cluster import growth
from medschool.cluster.timeline import Recorder, Span
from medschool.errors import ServiceError, StoppedError, cause_of
from medschool.gauges import count_stage
from medschool.plan import check_model
from medschool.procedure import stages
from medschool.recipe import Recipe, load
from medschool.stage import TRIAL_KINDS, Resolved, fingerprint_in, raw_listing, resolve
from medschool.track import TrackedRun
from medschool.train.live import Screen


class Run:
    """One recipe against one store: makes stages in order and remembers what is done. The driver has one, and each trial."""

    def __init__(
        self,
        recipe: Recipe,
        store_uri: str,
        board: Board,
        mlflow_run: TrackedRun | None = None,
        report_every_steps: int | None = None,
    ) -> None:
        self.recipe, self.store_uri, self.board = recipe, store_uri, board
        self.mlflow_run, self.report_every_steps = mlflow_run, report_every_steps
        self.stages = {stage.name: stage for stage in stages(recipe)}
        self.done: dict[str, Resolved] = {}
        self.made: set[str] = set()
        """Stages that were not cached."""
        self.recorder: Recorder | None = None
        """Notes which nodes there are, where an autoscaler brings them."""
        self.spans: list[Span] = []
        """What took time and is no stage."""
        self._width = max(map(len, self.stages))

    def say(self, text: str) -> None:
        self.board.put(text)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Note when the block began and ended."""
        began_s = time.time()
        try:
            yield
        finally:
            self.spans.append(Span(name, began_s, time.time()))

    def make(self, kind: str) -> None:
        """Make every stage of one kind that is not finished yet; stages of other kinds must be finished."""
        for name, stage in self.stages.items():
            if stage.kind == kind:
                self.make_one(name)

    def artifact(self, name: str) -> Artifact:
        """A finished stage, looked up if it has not been met yet. Raises StageError when it is not finished."""
        if name in self.done and (known := self.done[name].artifact):
            return known
        self.find(name)
        return self.done[name].required()

    def find(self, name: str) -> Artifact | None:
        """A stage as it stands in the store now; None when it is not finished, or something before it is not."""
        for needed in self.stages[name].inputs.values():
            if needed not in self.done or self.done[needed].artifact is None:
                self.find(needed)
        self.done[name] = resolve(self.stages[name], self.store_uri, self.done)
        return self.done[name].artifact

    def make_one(self, name: str) -> None:
        """Make one stage unless it is finished; its inputs must be."""
        stage, label = self.stages[name], self.label(name)
        inputs = {role: self.artifact(needed) for role, needed in stage.inputs.items()}
        fingerprint = fingerprint_in(stage, inputs, raw_listing(stage, self.store_uri))
        found = artifact.find(self.store_uri, stage.identity, fingerprint)
        if found is None:
            if self.board.stop_asked():
                raise StoppedError("stopped before it began", "submit again to go on", name)
            self.say(f"{label}  run")
            began = time.monotonic()
            found = MAKERS[stage.kind](self, stage, inputs, fingerprint)
            spent_s = time.monotonic() - began
            self.made.add(name)
            self.say(f"{label}  done in {spent_s:.1f} s  {facts_line(found.facts)}")
            if stage.kind not in (*TRIAL_KINDS, "verdict"):
                count_stage(self.recipe.name, name, found.facts, spent_s)
        else:
            self.say(f"{label}  cached  {facts_line(found.facts)}")
        self.done[name] = Resolved(stage, "cached", fingerprint, found, "")

    def label(self, name: str) -> str:
        """`[ 9/17] pretrain/knowledge`: where a stage stands in the whole."""
        number = list(self.stages).index(name) + 1
        return f"[{number:2}/{len(self.stages)}] {name:<{self._width}}"


def facts_line(facts: dict[str, Any]) -> str:
    """Small facts of an artifact in one line: numbers, and counts by name."""

    def word(value: Any) -> str:
        if isinstance(value, dict):
            return "(" + ", ".join(f"{key} {word(inner)}" for key, inner in value.items()) + ")"
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)

    if "gate" in facts:
        return f"gate passed: {facts['gate']['passed']}  winner {facts['gate']['winner']}"
    return "  ".join(f"{key} {word(value)}" for key, value in facts.items() if value != {})


def main(do: Callable[[Run], None]) -> None:
    """Parse the command line, connect to Ray, run; exit code and two lines for every error that a user can mend."""
    parser = argparse.ArgumentParser(
        epilog="example: python -m jobs.whole_run recipes/quickstart.yaml --set pretrain.length.steps=4"
    )
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], metavar="section.field=value")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_CODE))
    try:
        recipe, store_uri = load(args.recipe, args.set), store_from_environment()
        check_model(recipe, store_uri)
        _connect()
        with printing(Screen()) as board, stopping(board):
            do(Run(recipe, store_uri, board))
    except Exception as error:
        known = cause_of(error)
        if known is None:
            raise
        print(
            f"error: {known.where + ': ' if known.where else ''}{known.problem}\nfix: {known.remedy}", file=sys.stderr, flush=True
        )
        sys.exit(known.exit_code)


def store_from_environment() -> str:
    """The store's URI. Raises ServiceError when none is named."""
    uri = os.environ.get("MEDSCHOOL_STORE", "")
    if not uri:
        raise ServiceError("MEDSCHOOL_STORE is not set", "run `medschool up`, or set it to s3://bucket/prefix of your store")
    return uri


def _connect() -> None:
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
    quiet()


def quiet() -> None:
    """Keep the libraries' own progress out of this process's output: the board has ours; and Ray Data off nodes with a GPU.

    It asks for more and more CPUs while it is busy, and an autoscaler that has no other node left brings one with GPUs for them.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    if cpus := growth.without_gpu():
        context.execution_options.resource_limits = ray.data.ExecutionResources(cpu=cpus)
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial is told by run_study, once
