"""What a killed worker costs: `kill -9` of one rank, ours beside torchrun --max-restarts, and how much of the time still trains.

    recovery   seconds from the kill to the first step after it; ours: a new worker group under Ray Train, the newest whole state
               from the store, hashes checked; theirs: torchrun starts its workers again, which load DeepSpeed's own checkpoint
    ETTR       effective training time ratio (productive over wall-clock time; Kokolis et al. 2024, section 2): one rank is killed
               every PERIOD seconds; productive are the steps that still count when the wall-clock time is over, at the pace of a
               training that nobody kills and that saves nothing

Both train the same rows with the same engine and save every ten steps; the kill comes at step 15. Arms take turns. For the ETTR a
state is saved every three steps: on two cores a checkpoint costs 0.6 s of slower steps, so that with a kill every 60 s Young's
interval (1974: the root of twice their product) is 8.5 s, and a step takes 3.

`python bench/recovery.py [--reps 5] [--minutes 10] [--period 60] [--tiny]`; 0 minutes leaves the second part out.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from side_by_side import in_fresh_process, interval, machine, spread
from small_run import ENVIRONMENT, SMALL, TINY, own_ray, run_ours, setting, write_store
from training import BATCH_ROWS, MICRO_ROWS, WORKERS, torchrun

EVERY, KILL_AT, STEPS = 10, 15, 30
ETTR_EVERY = 3
UNDISTURBED_STEPS, SETTLED_STEPS = 20, 4
FAILURES = 1000


def cluster_of(store: Path, every: int = EVERY) -> dict[str, Any]:
    row_tokens = json.loads((store / "rows" / "about.json").read_text())["row_tokens"]
    return {
        "num_workers": WORKERS, "micro_batch_tokens": MICRO_ROWS * row_tokens, "checkpoint_every_steps": every,
        "max_failures": FAILURES,
    }  # fmt: skip


class Watcher:
    """Hears what a training says: when each step was told, and when the workers had been started again."""

    def __init__(self) -> None:
        self.steps, self.again = list[tuple[float, int]](), list[float]()

    def step(self, step: int) -> None:
        self.steps.append((time.time(), step))

    def restart(self) -> None:
        self.again.append(time.time())

    def hear(self, line: str) -> None:
        """A line of ours."""
        if line.startswith("resuming at step"):
            self.restart()
        if found := re.match(r"step (\d+)/", line):
            self.step(int(found[1]))

    def first_after(self, moment: float) -> float:
        """Seconds from a kill to the first step of the workers that were started after it."""
        restarted = [when for when in self.again if when > moment]
        steps = [when for when, _ in self.steps if restarted and when >= restarted[0]]
        if not steps:
            raise RuntimeError(f"no step after the kill; told {[step for _, step in self.steps]}")
        return steps[0] - moment


def train_workers() -> list[psutil.Process]:
    """Ray's training workers below this process."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in child.name() + "".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def kill_one_of_ours() -> bool:
    workers = train_workers()
    if len(workers) == WORKERS:
        workers[random.randrange(WORKERS)].send_signal(signal.SIGKILL)
    return len(workers) == WORKERS


def ours_once(store: Path, name: str) -> float:
    """In a process of its own: seconds from the kill to the next step."""
    os.environ["MEDSCHOOL_CACHE"] = str(store / "cache")
    course, rows = setting(store, name, "fp32", STEPS, BATCH_ROWS, cluster_of(store))
    watcher, killed_at = Watcher(), list[float]()

    def hear(line: str) -> None:
        watcher.hear(line)
        if not killed_at and watcher.steps and watcher.steps[-1][1] >= KILL_AT and kill_one_of_ours():
            killed_at.append(time.time())

    with own_ray(8):
        run_ours(course, rows, hear)
    return watcher.first_after(killed_at[0])


def theirs_once(store: Path, name: str) -> float:
    """In a process of its own: the same under torchrun, whose workers count their steps from 1 whenever they start."""
    os.environ["MEDSCHOOL_CACHE"] = str(store / "cache")
    pids = store / f"pids-{name}"
    pids.mkdir()
    spec = {
        "name": name, "dtype": "fp32", "steps": STEPS, "batch_rows": BATCH_ROWS, "save": str(store / f"save-{name}"),
        "cluster": cluster_of(store), "pids": str(pids),
    }  # fmt: skip
    watcher, killed_at = Watcher(), list[float]()
    command = torchrun("deepspeed", store, spec, WORKERS, "--max-restarts", str(FAILURES))
    own = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # else restarted workers call gloo addresses of the dead ones
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=own) as run:
        assert run.stdout is not None
        for step in (json.loads(line)["step"] for line in run.stdout if line.startswith('{"step"')):
            if step == 1 and killed_at:
                watcher.restart()
            watcher.step(step)
            if step == KILL_AT and not killed_at:
                os.kill(int((pids / str(random.randrange(WORKERS))).read_text()), signal.SIGKILL)
                killed_at.append(time.time())
    return watcher.first_after(killed_at[0])


def ettr(store: Path, name: str, seconds: float, period_s: float) -> dict[str, float]:
    """One rank killed every `period_s` until `seconds` after the first step; the process ends with its Ray still training."""
    os.environ["MEDSCHOOL_CACHE"] = str(store / "cache")
    course, rows = setting(store, name, "fp32", 10**5, BATCH_ROWS, cluster_of(store, ETTR_EVERY))
    left_alone = setting(store, f"{name}-left-alone", "fp32", UNDISTURBED_STEPS, BATCH_ROWS, cluster_of(store, 10**5))
    watcher, alone = Watcher(), Watcher()

    with own_ray(8):
        run_ours(*left_alone, alone.hear)
        (began, first), (ended, last) = alone.steps[SETTLED_STEPS], alone.steps[-1]
        step_s = (ended - began) / (last - first)
        threading.Thread(target=run_ours, args=(course, rows, watcher.hear), daemon=True).start()
        while not watcher.steps:
            time.sleep(0.2)
        began, kills = watcher.steps[0][0], 0
        while time.time() < began + seconds:
            time.sleep(min(period_s, began + seconds - time.time() + 0.01))
            if time.time() < began + seconds:
                kills += kill_one_of_ours()
        return productive(watcher, began, seconds, step_s) | {"kills": float(kills)}


def productive(watcher: Watcher, began: float, seconds: float, step_s: float) -> dict[str, float]:
    """Steps that count (each once, up to the newest told), times the time of an undisturbed one, over the wall-clock time."""
    told = [step for when, step in watcher.steps if when <= began + seconds]
    return {
        "ETTR": max(told) * step_s / seconds,
        "steps": float(max(told)),
        "trained again": float(len(told) - max(told)),
        "step_s": step_s,
        "restarts": float(len(watcher.again)),
    }


def ettr_and_leave(pipe: Any, *args: Any) -> None:
    pipe.send(ettr(*args))
    pipe.close()
    os._exit(0)  # the thread of the driver still waits for its training


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--period", type=float, default=60, help="seconds between two kills")
    parser.add_argument("--tiny", action="store_true", help="a model of 0.1 million parameters and rows of 64 tokens: a trial")
    asked = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.update(ENVIRONMENT)
    folder = Path(tempfile.mkdtemp(prefix="ms-bench-", dir="/tmp"))
    try:
        print(json.dumps(machine("ray", "torch", "deepspeed") | {"load": os.getloadavg()}))
        shape, row_tokens = (TINY, 64) if asked.tiny else (SMALL, 512)
        store = in_fresh_process(write_store, folder / "store", shape, "fp32", row_tokens, BATCH_ROWS * 40)
        found: dict[str, list[float]] = {"ours": [], "torchrun": []}
        for rep in range(asked.reps):
            for arm, once in (("ours", ours_once), ("torchrun", theirs_once)):
                found[arm].append(in_fresh_process(once, store, f"{arm}-{rep}"))
            now = {arm: round(seconds[-1], 1) for arm, seconds in found.items()}
            print(f"rep {rep} (load {os.getloadavg()[0]:.1f}): seconds from the kill to the next step {json.dumps(now)}")
        for arm, values in found.items():
            if values:
                print(f"  {arm:<9} recovery s {spread(values)}")
        if asked.reps:
            ratio, low, high = interval(found["ours"], found["torchrun"])
            print(f"  ours takes {ratio:.2f} [{low:.2f}, {high:.2f}] times as long as torchrun")
        if asked.minutes:
            here, there = multiprocessing.get_context("spawn").Pipe(duplex=False)
            child = multiprocessing.get_context("spawn").Process(
                target=ettr_and_leave, args=(there, store, "ettr", asked.minutes * 60, asked.period)
            )
            child.start()
            print(f"a kill every {asked.period:g} s for {asked.minutes:g} min: " + json.dumps(here.recv()))
            child.join()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
