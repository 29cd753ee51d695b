"""Measurements go to a local journal first; a background shipper copies them to MLflow. Tracking never stops training.

    log() --append--> journal.jsonl --shipper thread, retries--> MLflow

An MLflow that is down, slow or full costs nothing but the copy: the journal is uploaded with the artifact and stays the truth.
"""

import json
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHIP_EVERY_S = 2.0
LAST_SHIP_S = 20.0


class Journal:
    """An append-only file of measurements, shipped to one MLflow run while it grows. Use as a context manager.

    run_id: MLflow run; None keeps the journal only. Steps that the run already has are not shipped again, so a resumed run
        does not log a step twice.
    before: put before every key in MLflow, so that one run can hold several phases.
    """

    def __init__(self, path: Path, run_id: str | None, before: str = "") -> None:
        self.path, self._run_id, self._before = path, run_id, before
        self._file = path.open("a", encoding="utf-8")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._ship, daemon=True) if run_id else None
        if self._thread:
            self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line; never blocks on the network."""
        self._file.write(json.dumps({"step": step, "time_ms": int(time.time() * 1000), **values}) + "\n")
        self._file.flush()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        """Give the shipper LAST_SHIP_S to finish, then go on without it."""
        self._closing.set()
        if self._thread:
            self._thread.join(LAST_SHIP_S)
        self._file.close()

    def _ship(self) -> None:
        shipped = 0
        client: Any = None
        newest = -1
        while True:
            closing = self._closing.wait(SHIP_EVERY_S)
            lines = self.path.read_text(encoding="utf-8").splitlines()
            try:
                if client is None:
                    client = mlflow_client()
                    newest = _newest_step(client, str(self._run_id), self._before)
                _log_lines(client, str(self._run_id), lines[shipped:], newest, self._before)
                shipped = len(lines)
            except Exception:
                if not closing:
                    continue
            if closing:
                return


def _log_lines(client: Any, run_id: str, lines: list[str], newest: int, before: str) -> None:
    from mlflow.entities import Metric

    points = [json.loads(line) for line in lines]
    metrics = [
        Metric(before + key, value, point["time_ms"], point["step"])
        for point in points
        if point["step"] > newest
        for key, value in point.items()
        if key not in ("step", "time_ms") and math.isfinite(value)
    ]
    for first in range(0, len(metrics), 500):
        client.log_batch(run_id, metrics=metrics[first : first + 500])


def _newest_step(client: Any, run_id: str, before: str) -> int:
    """Newest step among the run's metrics whose keys start with `before`; -1 for a new run."""
    keys = [key for key in client.get_run(run_id).data.metrics if key.startswith(before)]
    return max((point.step for key in keys for point in client.get_metric_history(run_id, key)[-1:]), default=-1)


def read_journal(data: bytes) -> list[dict[str, float]]:
    """The lines of a journal: step, time_ms and what was measured."""
    return [json.loads(line) for line in data.decode("utf-8").splitlines()]


def mlflow_client() -> Any:
    """A client of the server named by MLFLOW_TRACKING_URI, quick to give up: MLflow's own 7 retries take minutes a call."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def open_run(experiment: str, name: str, fingerprint: str, params: Mapping[str, Any], parent: str | None = None) -> str | None:
    """Id of the MLflow run with this fingerprint: found again, or begun, below the run `parent`.

    None when there is no MLflow to talk to.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    try:
        client = mlflow_client()
        found = client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else client.create_experiment(experiment)
        runs = client.search_runs([experiment_id], f"tags.`medschool.fingerprint` = '{fingerprint}'", max_results=1)
        if runs:
            client.update_run(runs[0].info.run_id, status="RUNNING")
            return str(runs[0].info.run_id)
        tags = {"medschool.fingerprint": fingerprint, "mlflow.runName": name}
        run = client.create_run(experiment_id, tags=tags | ({"mlflow.parentRunId": parent} if parent else {}))
        for key, value in params.items():
            client.log_param(run.info.run_id, key, value)
        return str(run.info.run_id)
    except Exception as error:
        print(f"tracking: MLflow does not answer ({type(error).__name__}); measurements are kept in the journal", flush=True)
        return None


def close_run(run_id: str | None, status: str, metrics: Mapping[str, float] | None = None) -> None:
    """Set the final status (`FINISHED`, `FAILED`, `KILLED`) and summary metrics; a dead MLflow is ignored."""
    if run_id is None:
        return
    try:
        client = mlflow_client()
        known = client.get_run(run_id).data.metrics if metrics else {}
        for key, value in (metrics or {}).items():
            if known.get(key) != value:
                client.log_metric(run_id, key, value)
        client.set_terminated(run_id, status)
    except Exception as error:
        print(f"tracking: could not close run {run_id} ({type(error).__name__})", flush=True)


def status_of(error: BaseException) -> str:
    """MLflow's word for a run that ended with `error`: `KILLED` when somebody stopped it."""
    return "FAILED" if isinstance(error, Exception) else "KILLED"
