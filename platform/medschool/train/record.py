"""What rank 0 tells of every step: a line in the journal, a line for people, gauges for Prometheus. Other ranks tell nothing.

    Step + Meter --> {loss, loss/books, lr, grad_norm, tokens_per_s, mfu, step_s, data_wait_s, ..., goodput, rss_bytes}
                 --> journal (and from there MLflow) | board | gauges

All three say the same numbers. None of them can stop training: the journal is a local file, the others are sent and forgotten.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from medschool.procedure import row_tokens
from medschool.track import Journal, read_journal
from medschool.train.course import Course
from medschool.train.live import step_line
from medschool.train.loop import Step
from medschool.train.throughput import Meter, Past, device_peak, flops_per_token, memory, past_of

Show = Callable[[Mapping[str, float]], None]
"""Takes the numbers of one step, as they stand in the journal."""


class Record:
    """Use as a context manager, around the steps of one attempt. `journal` may hold the lines of the attempts before it."""

    def __init__(
        self, course: Course, meter: Meter, journal: Path, rank: int, say: Callable[[str], None], show: Show | None = None
    ) -> None:
        self._course, self._meter, self._path, self._rank, self._say, self._show = course, meter, journal, rank, say, show
        self._journal = Journal(journal, course.mlflow_run if rank == 0 else None, f"{course.phase}/")
        self._resumed = False

    def begin(self, engine: Any, world_size: int, began_s: float) -> None:
        """Before the first step: what the speed is measured against, and what the run has behind it."""
        points = read_journal(self._path.read_bytes())
        self._resumed = bool(points)
        peak = device_peak(self._course.recipe.model.dtype)
        self._meter.begin(
            past_of(points, began_s) if points else Past(),
            flops_per_token(engine.module, row_tokens(self._course.recipe, self._course.phase)) if peak else 0.0,
            peak and peak * world_size,
        )

    def part(self, name: str) -> AbstractContextManager[None]:
        """What runs inside is named in the time of the next step's line."""
        return self._meter.part(name)

    def step(self, step: Step, skipped_batches: int, failed_checkpoints: int) -> None:
        """Tell of one step. `skipped_batches`: of the whole run until here; `failed_checkpoints`: in a row."""
        if self._rank != 0:
            return
        values = self.values(step, skipped_batches) | {"failed_checkpoints": failed_checkpoints}
        self._journal.log(step.step, values)
        if self._show:
            self._show({"step": step.step, **values})
        goodput = values["goodput"] if self._resumed else None
        self._say(step_line(step.step, self._course.steps, step.loss, step.lr, self._meter, skipped_batches, goodput))

    def values(self, step: Step, skipped_batches: int) -> dict[str, float]:
        """Everything measured in one step, by the names of the journal; what is no number is left out."""
        found = {
            "loss": step.loss,
            **{f"loss/{name}": loss for name, loss in step.source_losses.items()},
            "lr": step.lr,
            "grad_norm": step.grad_norm,
            "tokens": step.tokens,
            "targets": step.targets,
            **self._meter.lap(step.tokens, step.data_wait_s, step.step_s),
            "skipped_batches": skipped_batches,
            **memory(),
        }
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._journal.__exit__(kind, error, trace)
