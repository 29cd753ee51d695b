"""What benchmarks share: a fresh process for each measurement, its CPU time, ratios with an interval, the machine."""

import importlib.metadata
import multiprocessing
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

T = TypeVar("T")


def in_fresh_process(do: Callable[..., T], *args: Any) -> T:
    """`do(*args)` in a new interpreter, which ends with it: threads, caches, memory. Raises what it raises."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(do, *args).result()


def cpu_seconds() -> float:
    """CPU seconds, user and system, of this process and all below it, those that have ended and were waited for included."""
    mine, total = psutil.Process(), 0.0
    for process in (mine, *mine.children(recursive=True)):
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def on_disk(folder: Path) -> None:
    """Return when all files below `folder` are on disk."""
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of the medians, a to b, with a bootstrapped 95% interval."""
    draw, (first, second) = np.random.default_rng(0), (np.array(a), np.array(b))
    picks = [np.median(draw.choice(first, len(first))) / np.median(draw.choice(second, len(second))) for _ in range(2000)]
    low, high = np.quantile(picks, (0.025, 0.975))
    return float(np.median(first) / np.median(second)), float(low), float(high)


def spread(values: Sequence[float]) -> str:
    return f"{np.median(values):8.3f}   [{min(values):.3f}, {max(values):.3f}]   n={len(values)}"


def machine(*libraries: str) -> dict[str, Any]:
    """The processor, the cores this process may use, and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    versions = {name: importlib.metadata.version(name) for name in libraries}
    cores = sorted(os.sched_getaffinity(0))
    return {
        "cpu": next(iter(models), platform.machine()),
        "cores": cores,
        "python": platform.python_version(),
        "versions": versions,
    }
