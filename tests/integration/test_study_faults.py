"""A study in which one trial always raises and one hangs: both are told, the others finish, and nothing of theirs is repeated.

The makers of the trials' stages are this test's own and leave a line for each call; all before the trials is in the store already.
"""

import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from scored_trials import finish, promoted_recipe

import jobs.study
from jobs.run import Run
from medschool.cluster.admission import admitted
from medschool.errors import InputError
from medschool.procedure import stages
from medschool.stage import TRIAL_KINDS
from medschool.track import mlflow_client

pytestmark = pytest.mark.usefixtures("ray_cluster")
CLUSTER = {"num_workers": 1, "score_workers": 1, "data_cpus": 1, "trial_timeout_s": 5.0, "max_concurrent_trials": 2}


def study(run: Run, log: Path, faults: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """jobs.study with makers that write a line into `log`, and have these faults by stage."""
    mlflow_uri = f"sqlite:///{log.parent}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)

    def maker(run: Any, stage: Any, inputs: Any, fingerprint: str) -> Any:
        import os

        from medschool import artifact
        from medschool.artifact import Output, write_file
        from medschool.errors import InputError

        with log.open("a") as lines:
            lines.write(f"{stage.name} {os.getpid()}\n")
        if faults.get(stage.name) == "raises":
            raise InputError("its rows are damaged", "make them again", stage.name)
        if faults.get(stage.name) == "hangs":
            time.sleep(600)
        made = partial(write_file, path="made", data=stage.name.encode())
        return artifact.make(run.store_uri, stage.identity, fingerprint, {}, lambda prefix: Output((made(prefix),)))

    def trial(*words: Any) -> None:
        import os

        import jobs.run
        import jobs.study

        os.environ["MLFLOW_TRACKING_URI"] = mlflow_uri
        jobs.run.MAKERS = dict.fromkeys(("pretrain", "instruct", "evaluate"), maker)
        jobs.study._trial(*words)

    with monkeypatch.context() as patched:
        patched.setattr(jobs.study, "_trial", trial)
        jobs.study.study(run)


def _claim_until(said: Path, words: str) -> None:
    """Hold the whole cluster, as a job beside this one would, until somebody has said `words`."""
    board: Any = SimpleNamespace(put=lambda line: None, stop_asked=lambda: False)
    with admitted("another job", {"CPU": 1000.0, "GPU": 0.0}, board):
        said.touch()
        while words not in said.read_text():
            time.sleep(0.2)


def lines_of(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()]


def runs_in_mlflow() -> dict[str, str]:
    """Status by name; every name must be there once."""
    client = mlflow_client()
    runs = client.search_runs([client.get_experiment_by_name("sample").experiment_id])
    found = {run.data.tags["mlflow.runName"]: run.info.status for run in runs}
    assert len(found) == len(runs)
    return found


def test_a_trial_that_raises_and_one_that_hangs_are_told_and_cost_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, store, log = promoted_recipe(cluster=CLUSTER), tmp_path / "store", tmp_path / "log"
    finish(recipe, store, without=tuple(stage.name for stage in stages(recipe) if stage.kind in TRIAL_KINDS))
    board: Any = SimpleNamespace(put=lambda line: None, stop_asked=lambda: False)
    run = Run(recipe, str(store), board)
    faults = {"pretrain/control": "raises", "instruct/instructed": "hangs"}
    with pytest.raises(InputError, match=r"its rows are damaged \(and 1 more: instructed\)"):
        study(run, log, faults, monkeypatch)
    finished = {name: run.find(f"evaluate/{name}") is not None for name in recipe.variants}
    assert finished == {"base": True, "control": False, "knowledge": True, "instructed": False}
    ended = {"base": "FINISHED", "control": "FAILED", "knowledge": "FINISHED", "instructed": "FAILED", "study": "FAILED"}
    assert runs_in_mlflow() == ended
    hung, deadline_s = int(dict(lines_of(log))["instruct/instructed"]), time.monotonic() + 20
    while psutil.pid_exists(hung) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    assert not psutil.pid_exists(hung)

    said = tmp_path / "said"

    def write(line: str) -> None:
        with said.open("a") as lines:
            lines.write(line + "\n")

    board.put = write
    other = threading.Thread(target=_claim_until, args=(said, "waits in line"), daemon=True)
    other.start()
    study(Run(recipe, str(store), board), log, {}, monkeypatch)
    other.join(60)
    assert "waits in line for 2 CPUs, behind another job" in said.read_text() and "has its turn" in said.read_text()
    calls = Counter(name for name, _ in lines_of(log))
    once = ["evaluate/base", "pretrain/knowledge", "evaluate/knowledge", "evaluate/control", "evaluate/instructed"]
    assert calls == dict.fromkeys(once, 1) | {"pretrain/control": 2, "instruct/instructed": 2}
    assert runs_in_mlflow() == dict.fromkeys(ended, "FINISHED")


def test_a_search_tells_the_setting_that_fails_and_keeps_the_others(tmp_path: Path) -> None:
    from medschool.ablate.on_ray import run_search
    from medschool.recipe.training import Search

    calls, settings = tmp_path / "calls", [{"x": 1}, {"x": 2}, {"x": 3}]
    calls.mkdir()
    spec = Search(variant="v", over={"x": (1, 2, 3)}, report_every_steps=1, grace_steps=2)

    def do(mended: bool, values: dict[str, int]) -> None:
        from ray import tune

        from medschool.errors import InputError

        (calls / f"{values['x']}-{time.time_ns()}").touch()
        if values["x"] == 2 and not mended:
            raise InputError("the loss is no number", "lower the rate", "x")
        for step in (1, 2):
            tune.report({"step": step, "loss": values["x"] / step})

    tried, error = run_search(spec, settings, 2, partial(do, False), 3, str(tmp_path / "tune" / "search"))
    assert isinstance(error, InputError) and "the loss is no number" in error.problem
    assert [one.failed for one in tried] == ["", "x: the loss is no number", ""]
    assert [(one.values["x"], one.losses) for one in tried] == [(1, {1: 1.0, 2: 0.5}), (2, {}), (3, {1: 3.0, 2: 1.5})]
    tried, error = run_search(spec, settings, 2, partial(do, True), 3, str(tmp_path / "tune" / "search"))
    assert error is None and [one.losses[2] for one in tried] == [0.5, 1.0, 1.5]
    assert Counter(path.name.split("-")[0] for path in calls.iterdir()) == {"1": 1, "2": 2, "3": 1}
