"""A training that is preempted, then stalls, then is told to stop: each time it goes on, or ends, with what it had.

One training on a cluster of three nodes, each of which holds one worker, goes through all three, with one failure and one
preemption allowed. Nothing is saved but what the faults make it save. Run as a script this file is its driver:
`python test_stop_faults.py FOLDER`; with settings behind it, a driver of that training without faults.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

STEPS = 30_000
STALL_TIMEOUT_S = 20.0
DEADLINE_S = 60
"""Of the preempted node, from the notice on."""
WORKER_CPUS = 3
FIRST = 5
SETTINGS = [
    "cluster.num_workers=2", f"cluster.cpus_per_worker={WORKER_CPUS}", f"cluster.checkpoint_every_steps={STEPS}",
    "cluster.max_failures=1", "cluster.max_preemptions=1", f"cluster.stall_timeout_s={STALL_TIMEOUT_S}",
]  # fmt: skip

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


# ---- the driver ---------------------------------------------------------------------------------------------------------------


class Faults:
    """Hears what the training says, and strikes FIRST steps after each start; what was done and heard is printed as JSON."""

    def __init__(self, nodes: list[Any], address: str, strikes: list[Callable[["Faults"], None]]) -> None:
        self.nodes, self.address = nodes, address
        self._strikes, self._steps = strikes, 0
        self.step = 0

    def hear(self, line: str) -> None:
        if found := re.match(r"step (\d+)/", line):
            self.step, self._steps = int(found[1]), self._steps + 1
            if self._steps == FIRST and self._strikes:
                strike = self._strikes.pop(0)
                threading.Thread(target=strike, args=(self,), daemon=True).start()
            return
        self.tell("said", line=line)
        if line.startswith("workers restart"):
            self._steps = 0

    def tell(self, what: str, **more: Any) -> None:
        print(json.dumps({"what": what, "at_s": time.time(), "step": self.step, **more}), flush=True)

    def workers(self) -> list[tuple[Any, psutil.Process]]:
        """(node, process) of every training worker."""
        found = []
        for node in self.nodes:  # the head is none of them
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            found += [(node, child) for child in raylet.children() if "RayTrainWorker" in " ".join(child.cmdline())]
        return found


def preempt(faults: Faults) -> None:
    from medschool.cluster.drain import drain_node

    node = faults.workers()[-1][0]
    faults.tell("preempted", node=node.node_id)
    drain_node(faults.address, node.node_id, datetime.now(UTC) + timedelta(seconds=DEADLINE_S), "test")


def hang(faults: Faults) -> None:
    process = faults.workers()[-1][1]
    process.suspend()
    faults.tell("stopped", pid=process.pid)


def terminate(faults: Faults) -> None:
    faults.tell("terminated")
    os.kill(os.getpid(), signal.SIGTERM)


def drive(folder: Path, settings: list[str]) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from jobs.run import quiet
    from jobs.stopping import stopping
    from medschool.board import printing
    from medschool.cluster.slice import tiny_slice
    from medschool.errors import PlanError, StoppedError
    from medschool.recipe import load
    from medschool.train.on_ray import make_checkpoint

    memory = {"object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": WORKER_CPUS + 2, "include_dashboard": False, **memory})
    nodes = [cluster.add_node(num_cpus=WORKER_CPUS, **memory) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    quiet()
    course, rows = tiny_slice(load(folder / "tiny.yaml", [*SETTINGS, *settings]), str(folder), str(folder / "slice"), STEPS)
    faults = Faults(nodes, cluster.address, [] if settings else [preempt, hang, terminate])
    code = 0
    try:
        with printing(faults.hear) as board, stopping(board):
            make_checkpoint(course, rows, board)
    except (PlanError, StoppedError) as error:
        faults.tell("ended", error=str(error))
        code = error.exit_code
    except SystemExit as error:
        faults.tell("exited")
        code = int(str(error.code))
    ray.shutdown()
    os._exit(code)  # Cluster ends its processes at exit, and with the code 1 where one of them is gone already


# ---- the tests ----------------------------------------------------------------------------------------------------------------


class Told:
    """What the driver printed."""

    def __init__(self, out: str, err: str, folder: Path) -> None:
        self.folder = folder
        self.text = "\n".join(line for line in (out + err).splitlines() if "state-dump" not in line)
        self.events = [json.loads(line) for line in out.splitlines() if line.startswith("{")]

    def one(self, what: str, pattern: str = "") -> dict[str, Any]:
        found = [event for event in self.events if event["what"] == what and re.search(pattern, event.get("line", ""))]
        assert len(found) == 1, (what, pattern, self.events)
        return found[0]

    def after(self, event: dict[str, Any], pattern: str) -> dict[str, Any]:
        """The first line after an event that matches."""
        rest = self.events[self.events.index(event) :]
        return next(later for later in rest if re.search(pattern, later.get("line", "")))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, ray_folder: str) -> Told:
    """The one training, from its start to its stop."""
    code, found = driven(tmp_path_factory.mktemp("stop"), ray_folder)
    assert code == 143, found.text
    return found


def driven(folder: Path, ray_folder: str, *settings: str) -> tuple[int, Told]:
    """Run a driver to its end; its exit code and what it told."""
    from tiny import RECIPE

    (folder / "tiny.yaml").write_text(RECIPE)
    Path(ray_folder, "ray").mkdir(exist_ok=True)
    job = subprocess.run(
        [sys.executable, __file__, str(folder), *settings], env=os.environ | {"RAY_TMPDIR": ray_folder}, capture_output=True, text=True,
        timeout=850, check=False,
    )  # fmt: skip
    return job.returncode, Told(job.stdout, job.stderr, folder)


def test_a_preempted_node_costs_no_step_and_no_failure(told: Told) -> None:
    notice = told.one("preempted")
    told.one("said", "a node is about to be taken away")
    moved = told.one("said", r"workers restart after a preempted node \(1 of 1\)")
    assert notice["node"][:8] in moved["line"]
    resumed = told.after(moved, "resuming at step")
    assert int(resumed["line"].split()[3]) == moved["step"] >= notice["step"], "a step was trained and lost"
    assert moved["at_s"] - notice["at_s"] < DEADLINE_S / 2, "waited for the deadline"


def test_a_stopped_worker_is_found_named_and_its_stacks_are_kept(told: Told) -> None:
    stopped = told.one("stopped")
    stalled = told.one("said", r"^stalled: rank \d of 2 does not answer \(step \d+, [a-z, ]+\)")
    assert stalled["at_s"] - stopped["at_s"] <= 2 * STALL_TIMEOUT_S
    told.one("said", r"workers restart after a failure \(1 of 1\): stalled")
    folder = Path(stalled["line"].rsplit(": ", 1)[1])
    silent = int(re.findall(r"rank (\d)", stalled["line"])[0])
    texts = {path.name: path.read_text() for path in folder.iterdir()}
    assert texts.keys() == {"rank-0.txt", "rank-1.txt"}
    assert f"Process {stopped['pid']}" in texts[f"rank-{silent}.txt"] and "ray" in texts[f"rank-{silent}.txt"]
    assert "TrainingThread" in texts[f"rank-{1 - silent}.txt"] and "worker.py" in texts[f"rank-{1 - silent}.txt"]
    assert not psutil.pid_exists(stopped["pid"])


def test_a_stalled_group_goes_on_from_the_newest_state(told: Told) -> None:
    first, second = (int(event["line"].split()[3]) for event in told.events if "resuming at step" in event.get("line", ""))
    assert first == second


def test_sigterm_saves_the_step_it_stands_at_and_ends_with_143(told: Told) -> None:
    asked, ended = told.one("terminated"), told.one("ended")
    at = int(re.findall(r"stopped at step (\d+) of", ended["error"])[0])
    assert at == ended["step"] >= asked["step"]
    assert ended["at_s"] - asked["at_s"] < 30
    manifests = sorted((told.folder / "slice" / "runs" / "state").glob("*/manifest.json"))
    assert int(manifests[-1].parent.name) == at
    assert json.loads(manifests[-1].read_text())["position"]["step"] == at


def test_a_request_that_can_never_be_placed_fails_within_a_minute(tmp_path: Path, ray_folder: str) -> None:
    code, told = driven(tmp_path, ray_folder, "cluster.cpus_per_worker=4")  # 11 CPUs, but one node alone has 4
    begun, ended = told.one("said", "^no place for 2 workers of 4 CPUs each"), told.one("ended")
    assert code == 1 and ended["at_s"] - begun["at_s"] < 60
    assert "can never be placed" in ended["error"] and "2 x (3 CPUs)" in ended["error"] and "1 x (5 CPUs)" in ended["error"]


def test_runs_in_mlflow_that_nobody_closed_are_closed_with_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    from medschool import track

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    study, other = (track.TrackedRun("e", name, name) for name in ("study", "other"))
    done, killed = (track.TrackedRun("e", name, name, {}, study) for name in ("done", "killed"))
    for run in (study, other, done, killed):
        track.begin_run(run)
    track.close_run(done, "FINISHED")
    track.close_below(study, "KILLED")
    found = {run.name: client.get_run(run.id(client)).info.status for run in (study, other, done, killed)}
    assert found == {"study": "RUNNING", "other": "RUNNING", "done": "FINISHED", "killed": "KILLED"}


if __name__ == "__main__":
    drive(Path(sys.argv[1]), sys.argv[2:])
