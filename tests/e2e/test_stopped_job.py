"""`ray job stop` while a model is trained: the step it stands at is saved, MLflow says KILLED, and the next submission goes on there."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from test_whole_run import OVERRIDES, RECIPE, User, user  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

STEPS, EVERY = 2000, 1000
"""Long enough to be stopped in; the only checkpoint is the one of the stop."""
CHANGED = {"pretrain.length.steps": STEPS, "cluster.checkpoint_every_steps": EVERY}
SETTINGS = [
    word
    for override in [
        *(one for one in OVERRIDES if one.split("=")[0] not in CHANGED),
        *(f"{key}={CHANGED[key]}" for key in CHANGED),
    ]
    for word in ("--set", override)
]


def until(process: "subprocess.Popen[str]", pattern: str) -> str:
    """The output up to the first line that matches."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if re.search(pattern, line):
            return "".join(seen)
    raise AssertionError(f"no line matched {pattern}:\n" + "".join(seen))


def test_a_stopped_job_has_saved_its_step_and_its_runs_are_killed(user: User) -> None:  # noqa: F811
    submitted = user.start("submit", RECIPE, *SETTINGS)
    seen = until(submitted, rf"step [1-9]\d/{STEPS}")
    identity, began = re.findall(r"submitted (\S+)", seen)[0], time.monotonic()
    variables = user.services()
    ray = str(Path(sys.executable).with_name("ray"))
    stopped = subprocess.run([ray, "job", "stop", identity], env=user.variables | variables, capture_output=True, text=True)
    took_s = time.monotonic() - began
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    rest, _ = submitted.communicate(timeout=120)
    assert submitted.returncode not in (0, 2)
    stood = re.search(rf"stopped at step (\d+) of {STEPS}, which is saved", rest)
    assert stood, rest
    at = int(stood[1])
    last = max(int(step) for step in re.findall(rf"step (\d+)/{STEPS}", seen + rest))
    assert 0 <= at - last <= 1 and at < EVERY and took_s < 30

    client = MlflowClient(variables["MLFLOW_TRACKING_URI"])
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    ended = {run.data.tags["mlflow.runName"]: run.info.status for run in runs}
    assert ended.pop("base", "FINISHED") in ("FINISHED", "KILLED"), "it trains nothing and may be over before the stop"
    assert len(ended) >= 2 and set(ended.values()) == {"KILLED"}, ended

    again = user.start("submit", RECIPE, *SETTINGS)
    assert until(again, "resuming at step").rsplit("resuming at step ")[1].split()[0] == str(at)
    again.send_signal(signal.SIGINT)
    assert again.wait(150) == 130
