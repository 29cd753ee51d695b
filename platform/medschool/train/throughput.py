"""How fast a training run goes, where its time goes, and how much of it was to any purpose.

    parts of a worker's time  data_wait | step | checkpoint | report | handout | start | other      a line of the journal = a lap
    tokens/s                  tokens of a global batch / its lap, everything between two steps included
    MFU                       model FLOP/s that those tokens need / what the accelerators could do at best
    goodput                   time in steps that count / time since the run began, restarts included

A lap runs from the end of one step to the end of the next, so a checkpoint written after step 100 stands in the line of step 101,
and the time of a batch whose update was left out is `other` in the line of the next step.
Everything is taken on one rank: the step ends with a sum over all ranks, so they keep pace. Steps that a restart trains again are
no longer in the journal that it goes on with, so only their time counts, on the losing side.

Not known: what a run did between its last checkpoint and the death of its driver, and how long it then waited to be submitted
again; neither is in the journal, so goodput over several submissions is that of the submissions' own recorded time. MFU is given
for bf16 on accelerators whose peak is listed, and for nothing else.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PEAK_BF16_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12,  # NVIDIA A100 data sheet (2021): 312 TFLOPS, all four forms
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,  # NVIDIA H100 architecture white paper (2022), table 2: SXM5 989.4, PCIe 756
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835.5e12,  # H100 NVL data sheet: 1,671 with sparsity
    "NVIDIA H200": 989.4e12,  # H200 data sheet: 1,979 with sparsity
    "NVIDIA L4": 121e12,  # L4 data sheet: 242 with sparsity
    "NVIDIA L40S": 362e12,  # L40S data sheet: 362.05, 733 with sparsity
}
"""Dense bf16 FLOP/s at best, by the exact name that the driver gives: a slice of a card (MIG) has another name and no entry."""
WINDOW_STEPS = 20
"""Steps that the shown speed is the mean of."""


def flops_per_token(module: Any, row_tokens: int) -> float:
    """Floating-point operations that training a dense model on one token takes, forward and backward.

    6 N + 12 L H Q T (Chowdhery et al. 2022, PaLM, appendix B), for N weights that enter a matrix product, L layers, H heads of
    size Q, and rows of T tokens; recomputed activations do not count. N leaves out a table that is only looked up (input
    embeddings that are not the output head as well). A frozen weight has no gradient of its own and takes 4 instead of 6 (of the
    2 + 2 + 2: forward, gradient of the input, gradient of the weight). T is the whole row, also where it holds several documents.
    """
    config = module.config
    looked_up = module.get_input_embeddings().weight
    if looked_up is module.get_output_embeddings().weight:
        looked_up = None
    sizes = [
        (getattr(weight, "ds_numel", weight.numel()), weight.requires_grad)  # at ZeRO 3 a weight's own size is its shard's
        for weight in module.parameters()
        if weight is not looked_up
    ]
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * head_size * row_tokens
    return float(sum((6 if trained else 4) * size for size, trained in sizes) + attention)


def peak_flops(device: str, dtype: str) -> float | None:
    """FLOP/s at best of one accelerator by its name (torch.cuda.get_device_name); None where no figure holds."""
    return PEAK_BF16_FLOPS.get(device) if dtype == "bf16" else None


def device_peak(dtype: str) -> float | None:
    """peak_flops of this process's accelerator; None on a CPU."""
    import torch

    return peak_flops(torch.cuda.get_device_name(), dtype) if torch.cuda.is_available() else None


def memory() -> dict[str, float]:
    """Bytes that this process holds, and the most that its accelerator held since the process began, where it has one."""
    import psutil
    import torch

    found = {"rss_bytes": float(psutil.Process().memory_info().rss)}
    if torch.cuda.is_available():
        found["accelerator_peak_bytes"] = float(torch.cuda.max_memory_allocated())
    return found


@dataclass(frozen=True)
class Past:
    """What a run had behind it when this attempt began."""

    productive_s: float = 0.0
    """Time in steps whose result the run still has."""
    wall_s: float = 0.0
    """Time of earlier submissions, up to the last line that was kept."""


def past_of(points: Sequence[Mapping[str, float]], began_s: float) -> Past:
    """From the kept lines of the journal; `began_s` is when this submission began, in seconds of the clock (time.time)."""
    before = [point for point in points if point["time_ms"] < began_s * 1000]
    return Past(sum(point["step_s"] for point in points), before[-1].get("wall_s", 0.0) if before else 0.0)


class Meter:
    """Takes the time of a worker between its steps. `began_s`: when the submission began (time.time), of all its restarts."""

    def __init__(self, began_s: float) -> None:
        self._began_s, self._lap_began = began_s, time.perf_counter()
        self._parts: dict[str, float] = {}
        self._laps: deque[tuple[float, float, float]] = deque(maxlen=WINDOW_STEPS)
        self._past, self._flops = Past(), 0.0
        self._peak: float | None = None

    def begin(self, past: Past, flops_per_token: float, peak_flops: float | None) -> None:
        """What is known once the engine is there; `peak_flops` of all workers together."""
        self._past, self._flops, self._peak = past, flops_per_token, peak_flops

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside counts as this part of the lap."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._parts[name] = self._parts.get(name, 0.0) + time.perf_counter() - began

    def lap(self, tokens: int, data_wait_s: float, step_s: float) -> dict[str, float]:
        """End the lap of an update that was made: its parts in seconds, speed, MFU and goodput. `tokens`: of the global batch."""
        now = time.perf_counter()
        whole, self._lap_began = now - self._lap_began, now
        parts = {"data_wait": data_wait_s, "step": step_s, "checkpoint": 0.0, "report": 0.0, **self._parts}
        self._parts = {}
        going = whole - parts.get("start", 0.0)  # a start is no speed
        self._laps.append((tokens, going, data_wait_s))
        self._past = Past(self._past.productive_s + step_s, self._past.wall_s)
        wall_s = self._past.wall_s + time.time() - self._began_s
        return {
            **{f"{name}_s": seconds for name, seconds in parts.items()},
            "other_s": max(0.0, whole - sum(parts.values())),
            "tokens_per_s": tokens / going,
            **({"mfu": tokens / going * self._flops / self._peak} if self._peak else {}),
            "wall_s": wall_s,
            "goodput": min(1.0, self._past.productive_s / wall_s),
        }

    @property
    def tokens_per_s(self) -> float:
        """Over the last WINDOW_STEPS steps."""
        return sum(tokens for tokens, _, _ in self._laps) / self._going

    @property
    def waiting(self) -> float:
        """Share of the last WINDOW_STEPS steps' time that was spent waiting for data."""
        return sum(wait for _, _, wait in self._laps) / self._going

    @property
    def lap_s(self) -> float:
        """Mean time of one of the last WINDOW_STEPS steps."""
        return self._going / len(self._laps)

    @property
    def _going(self) -> float:
        return sum(seconds for _, seconds, _ in self._laps)
