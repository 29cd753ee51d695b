"""Measurements go to a local journal first; a background shipper copies them to MLflow. Tracking never stops training.

    log() --append--> journal.jsonl --shipper thread, retries--> MLflow

An MLflow that is down, slow or full costs nothing but the copy: the journal is uploaded with the artifact and stays the truth.
What MLflow missed is shipped as soon as it answers: by the same training, by an attempt that goes on with its journal, or by
`replay` from the finished artifact.

Every point arrives once and in order. Steps are sent in the journal's order, whole steps in one request, which MLflow writes in
one transaction; a run is asked for its newest step before anything is sent, and again after every failure, and nothing up to that
step is sent. A request that was written and not answered may be repeated: with the same time, which MLflow's database takes for
the same point. Not covered: MLflow's old file store, which has neither transactions nor keys.
"""

import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medschool.errors import StoppedError, cause_of

SHIP_EVERY_S = 2.0
LAST_SHIP_S = 10.0
REQUEST_METRICS = 1000
"""Most that MLflow takes in one request (its REST reference, runs/log-batch)."""
FINGERPRINT_TAG = "medschool.fingerprint"


@dataclass(frozen=True)
class TrackedRun:
    """A run in MLflow by what identifies it: found again, or begun, whenever MLflow answers. Travels to other processes."""

    experiment: str
    name: str
    fingerprint: str
    params: Mapping[str, Any] = field(default_factory=dict)
    parent: "TrackedRun | None" = None

    def id(self, client: Any) -> str:
        """MLflow's id of it. Raises what the client does when there is no answer."""
        found = client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else client.create_experiment(self.experiment)
        if (known := self._oldest(client, experiment)) is None:
            tags = {FINGERPRINT_TAG: self.fingerprint, "mlflow.runName": self.name}
            if self.parent:
                tags["mlflow.parentRunId"] = self.parent.id(client)
            begun = client.create_run(experiment, tags=tags)
            known = self._oldest(client, experiment) or begun
            if known.info.run_id != begun.info.run_id:  # another process began it in the same moment
                client.delete_run(begun.info.run_id)
        for key in self.params.keys() - known.data.params.keys():
            client.log_param(known.info.run_id, key, self.params[key])
        return str(known.info.run_id)

    def _oldest(self, client: Any, experiment: str) -> Any:
        wanted = f"tags.`{FINGERPRINT_TAG}` = '{self.fingerprint}'"
        runs = client.search_runs([experiment], wanted, max_results=1, order_by=["attributes.start_time ASC"])
        return runs[0] if runs else None


class Journal:
    """An append-only file of measurements, shipped to one MLflow run while it grows. Use as a context manager.

    run: MLflow run; None keeps the journal only. Steps that the run already has are not shipped again, so a resumed run
        does not log a step twice.
    before: put before every key in MLflow, so that one run can hold several phases.
    """

    def __init__(self, path: Path, run: TrackedRun | None, before: str = "") -> None:
        self._file = path.open("a", encoding="utf-8")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._ship, args=(path, run, before), daemon=True) if run else None
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

    def _ship(self, path: Path, run: TrackedRun, before: str) -> None:
        shipper, closing = _Shipper(run, before), False
        with path.open("rb") as journal:
            while not closing:
                closing = self._closing.wait(SHIP_EVERY_S)
                shipper.take(journal.readlines())
                with suppress(Exception):  # whatever it is: the lines are kept, and the next turn tries again
                    shipper.ship()


class _Shipper:
    """Lines of a journal on their way to MLflow; those that arrived are forgotten."""

    def __init__(self, run: TrackedRun, before: str) -> None:
        self._run, self._before = run, before
        self._client: Any = None
        self._id = ""
        self._newest: int | None = None
        self._rest = b""
        self._points: list[dict[str, Any]] = []

    def take(self, lines: Sequence[bytes]) -> None:
        """Lines in the journal's order; the last one may be half written, its rest comes first the next time."""
        data = self._rest + b"".join(lines)
        whole, _, self._rest = data.rpartition(b"\n")
        self._points += read_journal(whole)

    def ship(self) -> int:
        """Send everything that was taken and that the run lacks; the number of steps sent. Raises what the client does."""
        sent = 0
        try:
            if not self._points:
                return 0
            self._client = self._client or mlflow_client()
            self._id = self._id or self._run.id(self._client)
            newest = self._newest = _newest_step(self._client, self._id, self._before) if self._newest is None else self._newest
            self._points = [point for point in self._points if point["step"] > newest]
            for steps, metrics in _requests(self._points, self._before):
                self._client.log_batch(self._id, metrics=metrics)
                self._points = self._points[steps:]
                sent += steps
        except Exception:
            self._newest = None  # part of what failed may have been written
            raise
        return sent


def _requests(points: Sequence[Mapping[str, Any]], before: str) -> Iterator[tuple[int, list[Any]]]:
    """(steps, metrics) of each request: as many whole steps as it holds."""
    from mlflow.entities import Metric

    steps: int = 0
    metrics: list[Any] = []
    for point in points:
        more = [
            Metric(before + key, value, point["time_ms"], point["step"])
            for key, value in point.items()
            if key not in ("step", "time_ms") and isinstance(value, int | float) and math.isfinite(value)
        ]
        if steps and len(metrics) + len(more) > REQUEST_METRICS:
            yield steps, metrics
            steps, metrics = 0, []
        steps, metrics = steps + 1, metrics + more
    if steps:
        yield steps, metrics


def _newest_step(client: Any, run_id: str, before: str) -> int:
    """Newest step among the run's metrics whose keys start with `before`; -1 for a new run."""
    metrics = client.get_run(run_id).to_proto().data.metrics
    return max((metric.step for metric in metrics if metric.key.startswith(before)), default=-1)


def replay(run: TrackedRun, journal: bytes, before: str = "") -> int:
    """Ship what the run lacks of a whole journal; the number of steps sent. Raises what MLflow's client does."""
    shipper = _Shipper(run, before)
    shipper.take([journal])
    return shipper.ship()


def read_journal(data: bytes) -> list[dict[str, float]]:
    """The lines of a journal: step, time_ms and what was measured."""
    return [json.loads(line) for line in data.decode("utf-8").splitlines()]


def mlflow_client() -> Any:
    """A client of the server named by MLFLOW_TRACKING_URI, quick to give up: MLflow's own 7 retries take minutes a call."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def begin_run(run: TrackedRun) -> TrackedRun | None:
    """Find the run again, or begin it: now, or once MLflow answers. None when no MLflow is named."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    try:
        client = mlflow_client()
        client.update_run(run.id(client), status="RUNNING")
    except Exception as error:
        said = f"MLflow does not answer ({type(error).__name__})"
        print(f"tracking: {said}; measurements are kept in the journal and shipped later", flush=True)
    return run


def close_run(run: TrackedRun | None, status: str, metrics: Mapping[str, float] | None = None) -> None:
    """Set the final status (`FINISHED`, `FAILED`, `KILLED`) and summary metrics; a dead MLflow is ignored."""
    if run is None:
        return
    try:
        client = mlflow_client()
        identity = run.id(client)
        known = client.get_run(identity).data.metrics if metrics else {}
        for key, value in (metrics or {}).items():
            if known.get(key) != value:
                client.log_metric(identity, key, value)
        client.set_terminated(identity, status)
    except Exception as error:
        print(f"tracking: could not close run {run.name} ({type(error).__name__})", flush=True)


def close_below(parent: TrackedRun | None, status: str) -> None:
    """Set the final status of the runs below `parent` that nobody closed: their processes are gone. A dead MLflow is ignored."""
    if parent is None:
        return
    try:
        client = mlflow_client()
        experiment = client.get_experiment_by_name(parent.experiment)
        wanted = f"tags.`mlflow.parentRunId` = '{parent.id(client)}' AND attributes.status = 'RUNNING'"
        for run in client.search_runs([experiment.experiment_id], wanted):
            client.set_terminated(run.info.run_id, status)
    except Exception as error:
        print(f"tracking: could not close the runs below {parent.name} ({type(error).__name__})", flush=True)


def status_of(error: BaseException) -> str:
    """MLflow's word for a run that ended with `error`: `KILLED` when somebody stopped it."""
    return "FAILED" if isinstance(error, Exception) and not isinstance(cause_of(error), StoppedError) else "KILLED"
