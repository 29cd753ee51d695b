"""The job that ships to MLflow what it missed: the journal of each finished training, to the run of the trial that made it."""

from pathlib import Path
from typing import Any

import pytest
from tiny import RECIPE

from jobs.track import ship
from medschool import track
from medschool.artifact import Artifact, Output, make, write_file
from medschool.procedure import trials
from medschool.recipe import load
from medschool.track import TrackedRun

FINISHED = ("pretrain/control", "pretrain/knowledge", "pretrain/instructed", "evaluate/control")


class Stored:
    """A run of the tiny recipe of which only FINISHED and what is before it are there."""

    def __init__(self, folder: Path) -> None:
        (folder / "tiny.yaml").write_text(RECIPE)
        self.recipe, self.folder, self.said = load(folder / "tiny.yaml"), folder, list[str]()
        from medschool.procedure import stages

        self.stages = {stage.name: stage for stage in stages(self.recipe)}

    def artifact(self, name: str) -> Artifact:
        def do(prefix: str) -> Output:
            return Output((write_file(prefix, "metrics.jsonl", name.encode()),))

        return make(str(self.folder), name, "f", {}, do)

    def find(self, name: str) -> Artifact | None:
        return self.artifact(name) if name in FINISHED else None

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture
def stored(tmp_path: Path) -> Any:
    return Stored(tmp_path)


def test_each_finished_training_is_shipped_once_to_the_run_of_its_trial(stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, bytes, str]] = []
    closed: list[tuple[str, str]] = []

    def replay(run: TrackedRun, journal: bytes, before: str) -> int:
        sent.append((run.name, journal, before))
        assert run.parent is not None and run.parent.name == "study"
        return 5

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr(track, "begin_run", lambda run: run)
    monkeypatch.setattr(track, "replay", replay)
    monkeypatch.setattr(track, "close_run", lambda run, status: closed.append((run.name, status)))
    ship(stored)
    assert sent == [("control", b"pretrain/control", "pretrain/"), ("knowledge", b"pretrain/knowledge", "pretrain/")]
    assert closed == [("control", "FINISHED"), ("study", "FINISHED")] and len(trials(stored.recipe)) == 4
    assert stored.said == ["track: 10 steps that MLflow had missed"]


def test_an_mlflow_that_is_away_is_said_and_nothing_fails(stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def replay(run: TrackedRun, journal: bytes, before: str) -> int:
        raise ConnectionError

    monkeypatch.setattr(track, "begin_run", lambda run: run)
    monkeypatch.setattr(track, "replay", replay)
    ship(stored)
    assert len(stored.said) == 1 and "python -m jobs.track" in stored.said[0]


def test_without_an_mlflow_nothing_is_done(stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(track, "replay", lambda *_: pytest.fail("shipped"))
    ship(stored)
    assert stored.said == []
