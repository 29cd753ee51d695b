"""The drills on real clusters of several nodes: a node is taken away or killed, the store and the head are lost, and all come back.

Run as a script this file is the driver of those in which a training runs: one cluster and one undisturbed training for all of
them. `python test_fault_drills.py FOLDER`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "quickstart.yaml"
STEPS = 16
AWAY_S = 3.0
TRAINED = ("preempt", "node", "store")


def drive(folder: Path) -> None:
    """Each drill's outcome as a line of JSON."""
    from medschool.cluster.own_cluster import own_cluster
    from medschool.cluster.own_store import own_store

    with own_store(folder / "home") as store, own_cluster(head_cpus=1, variables=store.variables) as cluster:
        from medschool.cluster import node_drill, store_drill
        from medschool.cluster.slice import tiny_slice
        from medschool.recipe import load

        for _ in range(2):
            cluster.add_node(node_drill.NODE_CPUS)
        cluster.connect()
        recipe = node_drill.for_own_cluster(load(RECIPE, ["model.dtype=fp32"]), STEPS)
        course, rows = tiny_slice(recipe, str(folder), str(folder / "drill"), STEPS)
        calm = node_drill.undisturbed(course, rows, _tell)
        for loss in ("preempt", "node"):
            _found(node_drill.drill_loss(loss, course, rows, calm, cluster, _tell))
        uri = store.variables["MEDSCHOOL_STORE"]
        course, rows = tiny_slice(store_drill.for_own_ray(recipe, STEPS), uri, f"{uri}/drill", STEPS)
        _found(store_drill.drill_store(course, rows, calm, store, AWAY_S, _tell))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _found(outcome: Any) -> None:
    print(json.dumps(outcome.as_json()), flush=True)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A short one, since Ray puts sockets below it; whatever still names it at the end is killed, and the test fails."""
    found = Path(tempfile.mkdtemp(prefix="d", dir="/tmp"))
    yield found
    left = [each for each in psutil.process_iter(["cmdline"]) if any(str(found) in word for word in each.info["cmdline"] or [])]
    for process in left:
        process.kill()
    shutil.rmtree(found, ignore_errors=True)
    assert not left


SOON = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""A lost node is believed to be gone after three seconds, in place of twenty."""


def ran(folder: Path, *words: str, timeout_s: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
    """A program with nothing of this test's own Ray in its environment, and its temporary files in the folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MEDSCHOOL_", "AWS_"))}
    environment = {**kept, **variables, "TMPDIR": str(folder)}
    return subprocess.run(
        [sys.executable, *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
    )


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, dict[str, Any]]:
    """Of the drills in which a training runs."""
    driver = ran(folder, __file__, str(folder), timeout_s=800)
    assert driver.returncode == 0, driver.stderr[-6000:]
    found = [json.loads(line) for line in driver.stdout.splitlines() if line.startswith("{")]
    return {outcome["fault"]: outcome for outcome in found}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_preempted_node_costs_no_step_and_no_failure(outcomes: dict[str, dict[str, Any]]) -> None:
    found = outcomes["preempt"]
    assert (found["result"], found["reasons"], found["lost_steps"], found["lost_tokens"]) == ("PASS", [], 0, 0)
    assert found["workers"] == [2, 1, 2] and found["ledgers_equal"] and found["recovery_s"] > 0


@pytest.mark.long
def test_a_killed_node_costs_no_more_than_the_steps_since_the_checkpoint(outcomes: dict[str, dict[str, Any]]) -> None:
    found = outcomes["node"]
    assert (found["result"], found["reasons"]) == ("PASS", [])
    assert 1 <= found["lost_steps"] <= found["checkpoint_every_steps"] and found["lost_tokens"] > 0
    assert found["workers"] == [2, 1, 2] and found["ledgers_equal"] and found["largest_loss_difference"] < 1e-4


@pytest.mark.long
def test_a_lost_store_costs_time_alone(outcomes: dict[str, dict[str, Any]]) -> None:
    found = outcomes["store"]
    assert (found["result"], found["reasons"], found["lost_steps"]) == ("PASS", [], 0)
    assert found["weights_equal"] and found["away_s"] >= AWAY_S and found["steps_while_away"] >= 1


def test_a_lost_head_is_missed_by_no_request_elsewhere(folder: Path) -> None:
    command = ran(folder, "-m", "medschool.cli", "drill", "head", "--away-s", "2", "--json", **SOON)
    assert command.returncode == 0, command.stdout + command.stderr[-6000:]
    found = json.loads(command.stdout)
    assert (found["result"], found["requests_failed"]) == ("PASS", 0)
    assert found["requests_while_away"] > 10 and found["requests_failed_at_the_head"] > 10 and found["replicas_kept"] == 2
    assert list(folder.glob("ms-own-*")) == []


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", ["preempt", "node", "head", "store"])
def test_the_command_passes_and_leaves_nothing(folder: Path, fault: str) -> None:
    longer = ["--away-s", "45"] if fault in {"head", "store"} else ["--steps", "64", "--set", "cluster.zero_stage=2"]
    command = ran(folder, "-m", "medschool.cli", "drill", fault, *longer, "--json", timeout_s=800)
    print(command.stdout)
    assert command.returncode == 0, command.stdout + command.stderr[-6000:]
    found = json.loads(command.stdout)
    assert (found["fault"], found["result"], found["requests_failed"]) == (fault, "PASS", 0)
    assert list(folder.glob("ms-*")) == []


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
