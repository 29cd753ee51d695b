"""Which updates are made: the decision, as a value, from the loss and the gradient norm of a batch.

    loss, gradient norm --judge--> applied | spike | not finite --after--> the window of the next decision

A number that is not finite would destroy the weights, a spike can throw a run back by hundreds of steps. The batch behind either
is skipped: its update is left out (medschool.train.veto), the next batch takes its optimizer step, and the ledger says so.

A spike is a loss or a gradient norm more than `spike_sigmas` standard deviations above its mean over the last `window_steps`
updates, as in OLMo-core's SkipStepOptimizer (src/olmo_core/optim/skip_step_optimizer.py: 6 sigmas, 128 steps). Unlike there, the
values of skipped batches stay out of the window, so one spike does not hide the next. So that a change of the mixture is not
taken for a spike, the window starts empty with every new mixture; in an empty window nothing is a spike.

The policy is pure. Every rank is given the same numbers, and so decides the same. The window needs no file: it is the last lines
of the journal, which is saved with the training state. So a resumed run decides as the one that was not stopped.

What it does not know: whether a spike is the data's fault. It looks at sums over a batch, so a single broken row among thousands
may pass.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from medschool.ledger import Ledger
from medschool.recipe.training import Guard


@dataclass(frozen=True)
class Measured:
    """What one batch gave, over all ranks, before its update."""

    loss: float
    """Mean cross-entropy, in nats per target."""
    grad_norm: float
    """Norm of the whole gradient before clipping."""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@dataclass(frozen=True)
class Verdict:
    """What is done with an update, and why."""

    kind: Literal["applied", "spike", "not finite"]
    reason: str = ""

    @property
    def applied(self) -> bool:
        return self.kind == "applied"


@dataclass(frozen=True)
class Watch:
    """The guard between two batches."""

    spec: Guard
    window: tuple[Measured, ...] = ()
    """Updates applied last, oldest first; at most spec.window_steps."""
    in_a_row: tuple[int, ...] = ()
    """Batches skipped last because of a number that is not finite, without an update since."""
    skipped: frozenset[int] = frozenset()
    """All batches of the run that were skipped, or are passed over since a rollback."""

    @property
    def must_roll_back(self) -> bool:
        return len(self.in_a_row) >= self.spec.rollback_after

    @property
    def too_many(self) -> bool:
        return len(self.skipped) > self.spec.max_skipped_batches

    def judge(self, measured: Measured) -> Verdict:
        """Whether the update of a batch is made. A full window of equal values calls every larger value a spike."""
        if not measured.finite:
            return Verdict("not finite", f"loss {measured.loss:.4g}, gradient norm {measured.grad_norm:.4g}")
        if self.spec.spike_sigmas is None or len(self.window) < self.spec.window_steps:
            return Verdict("applied")
        for name, value, seen in (
            ("loss", measured.loss, [update.loss for update in self.window]),
            ("gradient norm", measured.grad_norm, [update.grad_norm for update in self.window]),
        ):
            mean, deviation = mean_and_deviation(seen)
            if value > mean + self.spec.spike_sigmas * deviation:
                return Verdict(
                    "spike",
                    f"{name} {value:.4g} is over {mean:.4g} + {self.spec.spike_sigmas:g} x {deviation:.4g}, "
                    f"mean and deviation of the last {len(seen)} updates",
                )
        return Verdict("applied")

    def after(self, batch: int, measured: Measured, verdict: Verdict) -> "Watch":
        """The guard when a batch has been judged."""
        if verdict.applied:
            return replace(self, window=(*self.window, measured)[-self.spec.window_steps :], in_a_row=())
        in_a_row = (*self.in_a_row, batch) if verdict.kind == "not finite" else ()
        return replace(self, in_a_row=in_a_row, skipped=self.skipped | {batch})

    def before(self, batch: int, changes: Iterable[int]) -> "Watch":
        """The guard when `batch` comes next; `changes` are the batches that a new mixture begins with."""
        return replace(self, window=()) if batch in changes else self


@dataclass(frozen=True)
class Skipped:
    """A batch whose update was left out."""

    batch: int
    step: int
    """The optimizer step that it would have been; the next batch takes it."""
    measured: Measured
    verdict: Verdict
    watch: Watch
    """The guard after it."""


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation (over n - 1) of at least two values; exact sums, so the same to the bit on every machine."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def watch_of(spec: Guard, ledger: Ledger, lines: Sequence[Mapping[str, Any]], passed_over: Iterable[int]) -> Watch:
    """The guard of a run that stands where its ledger and the lines of its journal say: at the start, or resumed.

    passed_over: batches that will not be fed, since a rollback.
    """
    began = max((batch for batch in ledger.order.weights_from if batch < ledger.batches), default=0)
    before = began - sum(batch < began for batch in ledger.skipped)
    kept = [line for line in lines if line["step"] > before][-spec.window_steps :]
    window = tuple(Measured(line["loss"], line["grad_norm"]) for line in kept)
    return Watch(spec, window, skipped=frozenset({*ledger.skipped, *passed_over}))
