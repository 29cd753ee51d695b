"""Tracking beside an MLflow that is not there: quick to give up, and nothing measured is lost."""

import json
import socket
import time
from pathlib import Path

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


@pytest.mark.usefixtures("dead_mlflow")
def test_a_dead_mlflow_costs_seconds_and_no_run() -> None:
    track.mlflow_client()  # the import is not what is measured
    began = time.monotonic()
    assert track.open_run("experiment", "name", "fingerprint", {"lr": 1e-3}) is None
    assert time.monotonic() - began < 30


@pytest.mark.usefixtures("dead_mlflow")
def test_the_journal_keeps_every_line_without_mlflow(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with track.Journal(path, "some-run") as journal:
        for step in range(1, 51):
            journal.log(step, {"loss": 1 / step})
        began = time.monotonic()
    assert time.monotonic() - began < track.LAST_SHIP_S + 1
    points = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(point["step"], point["loss"]) for point in points] == [(step, 1 / step) for step in range(1, 51)]


@pytest.mark.usefixtures("dead_mlflow")
def test_registering_in_a_dead_mlflow_is_an_error_with_a_remedy() -> None:
    artifact = Artifact("pretrain/a", "f", "/store/manifest.json", "/store", (), {}, {}, 0.0)
    with pytest.raises(ServiceError, match="MLflow does not answer") as raised:
        registry.register(artifact, "model", "champion", None, {})
    assert raised.value.where == "model" and "submit again" in raised.value.remedy
