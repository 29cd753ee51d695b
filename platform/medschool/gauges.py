"""Numbers of a run in Ray's own Prometheus endpoint, beside those of Ray: each node has one, found through its head.

    rank 0, controller, driver --Gauge, Counter--> the node's metrics agent --> http://node:port/metrics --scrape--> Prometheus

    Gauges       of a training, from rank 0 after every step            labels run, phase, trial (and part, or source)
    Restarts     of its worker group, from Ray's controller             labels run, phase, trial, because
    TrialStates  of a study, by state, from the driver                  labels run, state
    count_stage  what a data stage read, kept and dropped, at its end   labels run, stage, counted

Ray puts `ray_` before every name, and sends what has been set since every 10 seconds: a number that nobody sets again is gone
after 20 seconds. So what changes seldom is set again and again. A counter stays as long as its node's agent.
"""

import threading
import time
from collections.abc import Mapping
from typing import Any

LABELS = ("run", "phase", "trial")
GAUGES = {
    "step": ("medschool_train_step", "Optimizer steps done"),
    "planned_steps": ("medschool_train_planned_steps", "Optimizer steps that the training is to do"),
    "loss": ("medschool_train_loss", "Mean cross-entropy of the global batch, in nats per target"),
    "lr": ("medschool_train_learning_rate", "Learning rate"),
    "grad_norm": ("medschool_train_gradient_norm", "Norm of the gradient before clipping"),
    "tokens_per_s": ("medschool_train_tokens_per_second", "Tokens of whole rows, of all workers"),
    "mfu": ("medschool_train_model_flops_utilization", "Model FLOP/s as a share of the accelerators' peak"),
    "goodput": ("medschool_train_goodput_ratio", "Time in steps that count as a share of the run's time"),
    "rss_bytes": ("medschool_train_worker_memory_bytes", "Resident memory of rank 0"),
    "accelerator_peak_bytes": ("medschool_train_accelerator_peak_bytes", "Most memory held on rank 0's accelerator"),
    "skipped_batches": ("medschool_train_skipped_batches", "Batches whose update was not made, of the whole run"),
    "failed_checkpoints": ("medschool_train_failed_checkpoints", "Checkpoints in a row that could not be written"),
}
"""Gauges by the name that the journal has for the same number."""
SECONDS = ("medschool_train_step_seconds", "Seconds between the last two steps, by part")
SOURCE_LOSS = ("medschool_train_source_loss", "Mean cross-entropy of the rows of one source, in nats per target")
RESTARTS = ("medschool_train_restarts", "Starts of the worker group after a failure or a preemption")
TRIALS = ("medschool_study_trials", "Trials of a study that Ray Tune runs, by state")
STAGE_RECORDS = ("medschool_stage_records_total", "What a data stage counted, by the names in its artifact's facts")
STAGE_SECONDS = ("medschool_stage_seconds_total", "Time that a data stage took")
AGAIN_S = 1.0
"""A gauge is told again after so long: well within the time for which Ray shows it, at any interval that can be set."""
STATES = {"PENDING": "waiting", "PAUSED": "waiting", "RUNNING": "running", "TERMINATED": "done", "ERROR": "failed"}
"""Of a trial, by Ray Tune's word."""


class Gauges:
    """Shows the numbers of one training; call it with those of a step, by the names of the journal. Lives in a Ray worker."""

    def __init__(self, run: str, phase: str, trial: str, planned_steps: int) -> None:
        from ray.util.metrics import Gauge

        self._labels, self._planned_steps = dict(zip(LABELS, (run, phase, trial), strict=True)), planned_steps
        self._gauges: dict[str, Any] = {key: Gauge(*said, tag_keys=LABELS) for key, said in GAUGES.items()}
        self._seconds, self._source_loss = (
            Gauge(*SECONDS, tag_keys=(*LABELS, "part")),
            Gauge(*SOURCE_LOSS, tag_keys=(*LABELS, "source")),
        )
        self._values: Mapping[str, float] = {}
        threading.Thread(target=self._repeat, daemon=True).start()

    def __call__(self, values: Mapping[str, float]) -> None:
        self._values = {**values, "planned_steps": self._planned_steps}
        self._show()

    def _show(self) -> None:
        for key, value in self._values.items():
            if key in self._gauges:
                self._gauges[key].set(value, self._labels)
            elif key.startswith("loss/"):
                self._source_loss.set(value, {**self._labels, "source": key.removeprefix("loss/")})
            elif key.endswith("_s") and key != "wall_s":
                self._seconds.set(value, {**self._labels, "part": key.removesuffix("_s")})

    def _repeat(self) -> None:
        """A step may take minutes."""
        while True:
            time.sleep(AGAIN_S)
            self._show()


class Restarts:
    """Shows how often a worker group was started again. Lives in Ray's controller; `show` is called often."""

    def __init__(self, run: str, phase: str, trial: str) -> None:
        self._labels = dict(zip(LABELS, (run, phase, trial), strict=True))
        self._gauge: Any = None

    def show(self, failures: int, preemptions: int) -> None:
        if self._gauge is None:
            from ray.util.metrics import Gauge

            self._gauge = Gauge(*RESTARTS, tag_keys=(*LABELS, "because"))
        for because, count in (("failure", failures), ("preemption", preemptions)):
            self._gauge.set(count, {**self._labels, "because": because})


class TrialStates:
    """Shows trials by state. Lives in the driver of a study; `show` is called often."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauge: Any = None

    def show(self, words: list[str]) -> None:
        """words: of each trial, its state as Ray Tune calls it."""
        if self._gauge is None:
            from ray.util.metrics import Gauge

            self._gauge = Gauge(*TRIALS, tag_keys=("run", "state"))
        for state in dict.fromkeys(STATES.values()):
            self._gauge.set(sum(STATES.get(word) == state for word in words), {"run": self._run, "state": state})


def count_stage(run: str, stage: str, facts: Mapping[str, Any], seconds: float) -> None:
    """Add what a stage counted: whole numbers of its facts, and counts by name as `dropped/licence`. In a connected process."""
    from ray.util.metrics import Counter

    labels = {"run": run, "stage": stage}
    Counter(*STAGE_SECONDS, tag_keys=("run", "stage")).inc(seconds, labels)
    records = Counter(*STAGE_RECORDS, tag_keys=("run", "stage", "counted"))
    for name, number in counts_of(facts).items():
        records.inc(number, {**labels, "counted": name})


def counts_of(facts: Mapping[str, Any]) -> dict[str, int]:
    """Whole numbers above 0 of an artifact's facts: `{"read": 9, "dropped/licence": 2}`."""
    flat = dict(facts)
    for name, inner in facts.items():
        if isinstance(inner, Mapping):
            flat |= {f"{name}/{key}": value for key, value in inner.items()}
    return {name: value for name, value in flat.items() if isinstance(value, int) and not isinstance(value, bool) and value > 0}
