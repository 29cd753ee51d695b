"""The fixed cost of a training, by part: what passes before its first step, and after its last one.

A model of 0.1 million parameters is trained for a few steps, so that all else is start and end. Each moment is noted where it
happens: by the driver, and by rank 0, whose functions are wrapped for that. Two figures a part: seconds by the clock, and, for
the parts that are one process's own work, its CPU seconds, which say the same on a busy machine.

    ray            a Ray on this machine starts (once a job; a cluster that runs has it already)
    driver         the driver's imports, and everything until fit() is called
    place          the controller and the placement group, until rank 0's process starts
    worker         that process: Python, Ray, unpickling the training function, the process group
    imports        what training imports that is not there yet
    model          weights from the store into memory
    engine         DeepSpeed's engine, and the forward pass that looks whether documents are apart
    first batch    until the data feed hands over rows
    first step     longer than the others: memory is allocated
    export         from the last step: the files written, proven and uploaded
    end            the worker group ends, and fit() returns

`python bench/fit_start.py [--reps 5] [--fits 2]`: of the trainings in one job the first starts cold, the others find Ray warm.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from side_by_side import in_fresh_process, machine, spread
from small_run import ENVIRONMENT, TINY, own_ray, run_ours, setting, write_store

STEPS = 4
PARTS = ("ray", "driver", "place", "worker", "imports", "model", "engine", "first batch", "first step", "export", "end")
Marks = dict[str, tuple[float, float]]
"""Moment by name: seconds since the epoch, and CPU seconds of the process that noted it."""


def mark(marks: Marks, name: str) -> None:
    used = psutil.Process().cpu_times()
    marks[name] = (time.time(), used.user + used.system)


def timed_work(config: dict[str, Any]) -> Any:
    """In the worker: training as it is, with moments noted on the way."""
    marks: Marks = {"process": (psutil.Process().create_time(), 0.0)}
    mark(marks, "entered")
    import deepspeed
    from transformers import LlamaForCausalLM

    from medschool.train import engine, on_ray, worker

    mark(marks, "imports")
    assert deepspeed and LlamaForCausalLM
    load, build, steps, batches = engine.load_model, worker.build_engine, worker.train, on_ray._batches

    def load_model(*args: Any) -> Any:
        found = load(*args)
        mark(marks, "model")
        return found

    def build_engine(*args: Any) -> Any:
        found = build(*args)
        mark(marks, "engine")
        return found

    def fed(*args: Any) -> Iterator[Any]:
        for table in batches(*args):
            marks.get("first batch") or mark(marks, "first batch")
            yield table

    def train(*args: Any, **options: Any) -> Iterator[Any]:
        for step in steps(*args, **options):
            marks.get("first step") or mark(marks, "first step")
            mark(marks, "last step")
            yield step

    engine.load_model, worker.build_engine, worker.train, on_ray._batches = load_model, build_engine, train, fed  # type: ignore
    made = on_ray._work(config)  # here it is the product's own: only the driver's was replaced
    mark(marks, "export")
    if made is not None:
        Path(os.environ["MARKS"]).write_text(json.dumps(marks))
    return made


def fits(store: Path, name: str, count: int) -> list[dict[str, tuple[float, float]]]:
    """In a process of its own: seconds and CPU seconds of the parts of `count` trainings, one after the other."""
    os.environ |= {"MEDSCHOOL_CACHE": str(store / "cache"), "MARKS": str(store / "marks.json")}
    own: Marks = {}
    mark(own, "begin")
    found = []
    with own_ray(8):
        mark(own, "ray")
        from fit_start import timed_work as known_to_workers  # by this name, not as a function of __main__

        from medschool.train import on_ray

        on_ray._work = known_to_workers
        for number in range(count):
            course, rows = setting(store, f"{name}-{number}", "fp32", STEPS, 8, {"num_workers": 2, "micro_batch_tokens": 256})
            mark(own, "fit")
            run_ours(course, rows)
            mark(own, "end")
            marks: Marks = {key: (at, cpu) for key, (at, cpu) in json.loads(Path(os.environ["MARKS"]).read_text()).items()}
            found.append(parts(own, marks))
            own |= {"begin": own["end"], "ray": own["end"]}
    return found


def parts(own: Marks, marks: Marks) -> dict[str, tuple[float, float]]:
    """Differences of neighbouring moments; the CPU seconds of a part that begins in another process are that process's so far."""
    chain = [
        ("ray", own["begin"], own["ray"]),
        ("driver", own["ray"], own["fit"]),
        ("place", own["fit"], (marks["process"][0], own["fit"][1])),
        ("worker", marks["process"], marks["entered"]),
        ("imports", marks["entered"], marks["imports"]),
        ("model", marks["imports"], marks["model"]),
        ("engine", marks["model"], marks["engine"]),
        ("first batch", marks["engine"], marks["first batch"]),
        ("first step", marks["first batch"], marks["first step"]),
        ("export", marks["last step"], marks["export"]),
        ("end", marks["export"], (own["end"][0], marks["export"][1])),
    ]
    return {name: (after[0] - before[0], after[1] - before[1]) for name, before, after in chain}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--fits", type=int, default=2, help="trainings in one job")
    asked = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.update(ENVIRONMENT)
    folder = Path(tempfile.mkdtemp(prefix="ms-bench-", dir="/tmp"))
    try:
        print(json.dumps(machine("ray", "torch", "deepspeed", "transformers") | {"load": os.getloadavg()}))
        store = in_fresh_process(write_store, folder / "store", TINY, "fp32", 64, 8 * STEPS)
        runs = [in_fresh_process(fits, store, f"run{rep}", asked.fits) for rep in range(asked.reps)]
        for number in range(asked.fits):
            print(f"training {number + 1} of a job; load {os.getloadavg()[0]:.1f}")
            for part in PARTS:
                clock, cpu = ([run[number][part][kind] for run in runs] for kind in (0, 1))
                print(f"  {part:<12} s {spread(clock)}   CPU s {spread(cpu)}")
            before = [sum(run[number][part][0] for part in PARTS[2:9]) for run in runs]
            print(f"  fit() to the end of the first step: s {spread(before)}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
