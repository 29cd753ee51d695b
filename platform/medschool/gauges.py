"""Numbers of a training run in Ray's own Prometheus endpoint, beside those of Ray: each node has one, found through its head.

    rank 0 --Gauge, Counter--> the node's metrics agent --every 10 s--> http://node:port/metrics --scrape--> Prometheus

All have the labels `run`, `phase` and `trial`; what is measured by part of the time or by source has one more. Ray puts `ray_`
before every name. A gauge stays at its last value until the worker ends. The counter shows the
run's total, also in a worker that was started again.
"""

from collections.abc import Mapping
from typing import Any

LABELS = ("run", "phase", "trial")
GAUGES = {
    "step": ("medschool_train_step", "Optimizer steps done"),
    "loss": ("medschool_train_loss", "Mean cross-entropy of the global batch, in nats per target"),
    "lr": ("medschool_train_learning_rate", "Learning rate"),
    "grad_norm": ("medschool_train_gradient_norm", "Norm of the gradient before clipping"),
    "tokens_per_s": ("medschool_train_tokens_per_second", "Tokens of whole rows, of all workers"),
    "mfu": ("medschool_train_model_flops_utilization", "Model FLOP/s as a share of the accelerators' peak"),
    "goodput": ("medschool_train_goodput_ratio", "Time in steps that count as a share of the run's time"),
    "rss_bytes": ("medschool_train_worker_memory_bytes", "Resident memory of rank 0"),
    "accelerator_peak_bytes": ("medschool_train_accelerator_peak_bytes", "Most memory held on rank 0's accelerator"),
}
"""Gauges by the name that the journal has for the same number."""
SECONDS = ("medschool_train_step_seconds", "Seconds between the last two steps, by part")
SOURCE_LOSS = ("medschool_train_source_loss", "Mean cross-entropy of the rows of one source, in nats per target")
SKIPPED = ("medschool_train_skipped_batches_total", "Batches whose update was not made")


class Gauges:
    """Shows the numbers of one training; call it with those of a step, by the names of the journal. Lives in a Ray worker."""

    def __init__(self, run: str, phase: str, trial: str) -> None:
        from ray.util.metrics import Counter, Gauge

        self._labels = dict(zip(LABELS, (run, phase, trial), strict=True))
        self._gauges: dict[str, Any] = {key: Gauge(*said, tag_keys=LABELS) for key, said in GAUGES.items()}
        self._seconds, self._source_loss = (
            Gauge(*SECONDS, tag_keys=(*LABELS, "part")),
            Gauge(*SOURCE_LOSS, tag_keys=(*LABELS, "source")),
        )
        self._skipped_total, self._skipped = Counter(*SKIPPED, tag_keys=LABELS), 0.0

    def __call__(self, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            if key in self._gauges:
                self._gauges[key].set(value, self._labels)
            elif key.startswith("loss/"):
                self._source_loss.set(value, {**self._labels, "source": key.removeprefix("loss/")})
            elif key.endswith("_s") and key != "wall_s":
                self._seconds.set(value, {**self._labels, "part": key.removesuffix("_s")})
        if more := values["skipped_batches"] - self._skipped:
            self._skipped_total.inc(more, self._labels)
            self._skipped += more
