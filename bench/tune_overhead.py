"""Wall time of 16 short trials through our path of Ray Tune, beside a bare pool of processes over the same function.

    ours   run_study of medschool.ablate.on_ray, as jobs.study calls it: its record of trials, its failure handling
    bare   two processes of a pool, kept for all trials, which import everything once

A trial fits a small logistic regression, gives one result a second to its journal, and has a run in MLflow (SQLite, no server).
Two run at a time. Ray is started before the clock; both arms must end with the same losses. Arms take turns.

    python bench/tune_overhead.py --trials 16 --seconds 20 --reps 3
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "bench")]

import numpy as np  # noqa: E402
from side_by_side import interval, machine, spread  # noqa: E402
from small_run import ENVIRONMENT, own_ray  # noqa: E402

AT_ONCE = 2


def trial(folder: str, seconds: int, name: str, others: Any = None) -> None:
    """One trial: a result a second, in a journal that MLflow gets too; the losses go to a file."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    from medschool import track
    from medschool.track import Journal, TrackedRun

    run = track.begin_run(TrackedRun("overhead", name, f"trial:{name}", {"trial": name}))
    draw, losses = np.random.default_rng(int(name.removeprefix("trial-"))), list[float]()
    rows, weights = draw.normal(size=(2000, 20)), np.zeros(20)
    targets = (rows @ draw.normal(size=20) > 0).astype(float)
    with Journal(Path(folder, f"{name}.jsonl"), run) as journal:
        for second in range(1, seconds + 1):
            began_s = time.monotonic()
            for _ in range(20):
                said = 1 / (1 + np.exp(-np.clip(rows @ weights, -30, 30)))
                weights -= rows.T @ (said - targets) / len(rows)
            losses.append(float(-np.mean(targets * np.log(said + 1e-12) + (1 - targets) * np.log(1 - said + 1e-12))))
            journal.log(second, {"loss": losses[-1]})
            time.sleep(max(0.0, 1 - (time.monotonic() - began_s)))
    track.close_run(run, "FINISHED", {"loss_last": losses[-1]})
    Path(folder, f"{name}.json").write_text(json.dumps(losses))


def bare(names: list[str], do: Callable[..., None], folder: Path) -> None:
    with ProcessPoolExecutor(AT_ONCE, get_context("spawn")) as pool:
        for done in [pool.submit(do, name) for name in names]:
            done.result()


def ours(names: list[str], do: Callable[..., None], folder: Path) -> None:
    from medschool.ablate.on_ray import run_study

    run_study("bench", names, do, AT_ONCE, str(folder / "store"))


ARMS: dict[str, Callable[[list[str], Callable[..., None], Path], None]] = {"ours": ours, "bare": bare}


def measured(arm: str, folder: Path, asked: argparse.Namespace) -> tuple[float, list[Any]]:
    """Seconds of all trials, and their losses."""
    folder.mkdir()
    begin_mlflow(folder)
    names = [f"trial-{number}" for number in range(asked.trials)]
    began_s = time.perf_counter()
    ARMS[arm](names, partial(trial, str(folder), asked.seconds), folder)
    took_s = time.perf_counter() - began_s
    return took_s, [json.loads((folder / f"{name}.json").read_text()) for name in names]


def begin_mlflow(folder: Path) -> None:
    """Make the database before the clock starts: its tables take seconds."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    from medschool.track import TrackedRun, mlflow_client

    TrackedRun("overhead", "study", "study").id(mlflow_client())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=20, help="of one trial")
    parser.add_argument("--reps", type=int, default=3)
    asked = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    print(json.dumps(machine("ray", "mlflow") | {"load": os.getloadavg()}), flush=True)
    with tempfile.TemporaryDirectory(prefix="ms-bench-", dir="/tmp") as name, own_ray(AT_ONCE):
        folder = Path(name)
        floor_s = asked.seconds * -(-asked.trials // AT_ONCE)
        print(f"{asked.trials} trials of {asked.seconds} s, {AT_ONCE} at a time: {floor_s} s at least")
        for rep in range(asked.reps):
            losses = {}
            for arm in list(ARMS)[:: 1 if rep % 2 else -1]:
                took_s, losses[arm] = measured(arm, folder / f"{arm}-{rep}", asked)
                found[arm].append(took_s)
            if losses["ours"] != losses["bare"]:
                raise SystemExit("the arms came to other losses")
            now = {arm: round(times[-1], 1) for arm, times in found.items()}
            print(f"rep {rep} (load {os.getloadavg()[0]:.1f}): seconds {json.dumps(now)}", flush=True)
    for arm, times in found.items():
        print(f"  {arm:<6} seconds {spread(times)}")
    ratio, low, high = interval(found["ours"], found["bare"])
    print(f"  ours against bare  {ratio:.3f} [{low:.3f}, {high:.3f}], load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
