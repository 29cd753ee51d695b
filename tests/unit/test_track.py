"""Tracking beside an MLflow that is not there or fails: quick to give up, nothing measured is lost, nothing is shipped twice."""

import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from medschool import registry, track
from medschool.artifact import Artifact
from medschool.errors import ServiceError


@pytest.fixture
def dead_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLFLOW_TRACKING_URI names a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)


RUN = track.TrackedRun("experiment", "name", "fingerprint", {"lr": 1e-3})


@pytest.mark.usefixtures("dead_mlflow")
def test_a_dead_mlflow_costs_seconds_and_the_run_is_begun_later(capsys: pytest.CaptureFixture[str]) -> None:
    track.mlflow_client()  # the import is not what is measured
    began = time.monotonic()
    assert track.begin_run(RUN) == RUN
    track.close_run(RUN, "FINISHED")
    assert time.monotonic() - began < 30
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["tracking", "tracking"]


def test_without_an_mlflow_there_is_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert track.begin_run(RUN) is None


@pytest.mark.usefixtures("dead_mlflow")
def test_the_journal_keeps_every_line_without_mlflow(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with track.Journal(path, RUN) as journal:
        for step in range(1, 51):
            journal.log(step, {"loss": 1 / step})
        began = time.monotonic()
    assert time.monotonic() - began < track.LAST_SHIP_S + 1
    points = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(point["step"], point["loss"]) for point in points] == [(step, 1 / step) for step in range(1, 51)]


class Server:
    """An MLflow client as far as shipping needs one; every request may fail before or after it was written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.points: list[tuple[int, str, float, int]] = []
        self.requests, self.fail_before, self.fail_after = 0, set[int](), set[int]()
        monkeypatch.setattr(track, "mlflow_client", lambda: self)
        monkeypatch.setattr(track.TrackedRun, "id", lambda run, client: "7")
        monkeypatch.setattr(
            track, "_newest_step", lambda client, run_id, before: max([step for step, *_ in self.points], default=-1)
        )

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        self.requests += 1
        assert len(metrics) <= 1000
        if self.requests in self.fail_before:
            raise ConnectionError
        self.points += [(metric.step, metric.key, metric.value, metric.timestamp) for metric in metrics]
        if self.requests in self.fail_after:
            raise TimeoutError


def journal_of(steps: range, keys: int) -> bytes:
    lines = [{"step": step, "time_ms": 1000 + step, **{f"k{key}": step + key / 100 for key in range(keys)}} for step in steps]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def test_a_journal_is_shipped_in_whole_steps_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third request is lost, every other third is written and not answered."""
    server = Server(monkeypatch)
    server.fail_before, server.fail_after = set(range(3, 60, 3)), set(range(2, 60, 3))
    shipper = track._Shipper(RUN, "a/")
    data, sent = journal_of(range(1, 501), 30), 0
    while sent < len(data):  # as it grows, lines cut anywhere
        shipper.take([data[sent : sent + 7777]])
        sent += 7777
        with contextlib.suppress(OSError):
            shipper.ship()
    while shipper._points:
        with contextlib.suppress(OSError):
            shipper.ship()
    assert server.points == [(step, f"a/k{key}", step + key / 100, 1000 + step) for step in range(1, 501) for key in range(30)]
    assert server.requests > 20


def test_a_replay_sends_what_the_run_lacks_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch)
    assert track.replay(RUN, journal_of(range(1, 6), 2)) == 5
    assert track.replay(RUN, journal_of(range(1, 9), 2)) == 3
    assert track.replay(RUN, journal_of(range(1, 9), 2)) == 0 and len(server.points) == 16


def test_what_is_no_number_is_not_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch)
    track.replay(RUN, b'{"step": 1, "time_ms": 5, "loss": 2.0, "grad_norm": NaN, "who": "rank 0"}\n')
    assert server.points == [(1, "loss", 2.0, 5)]


@pytest.mark.usefixtures("dead_mlflow")
def test_registering_in_a_dead_mlflow_is_an_error_with_a_remedy() -> None:
    artifact = Artifact("pretrain/a", "f", "/store/manifest.json", "/store", (), {}, {}, 0.0)
    with pytest.raises(ServiceError, match="MLflow does not answer") as raised:
        registry.register(artifact, "model", "champion", None, {})
    assert raised.value.where == "model" and "submit again" in raised.value.remedy
