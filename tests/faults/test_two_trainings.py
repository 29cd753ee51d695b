"""Two trainings on a cluster that holds one: neither takes the CPUs that the other's feed reads with, and both end.

Each is elastic and could fill the cluster with its workers alone; so it keeps to fewer of them, and the second waits for the first.
"""

import threading
from pathlib import Path

import pytest
from tiny import RECIPE, write_model

from medschool.board import printing
from medschool.cluster.admission import admitted
from medschool.cluster.fit import trial_needs
from medschool.cluster.slice import tiny_slice
from medschool.recipe import load
from medschool.train.on_ray import make_checkpoint

STEPS = 12
SETTINGS = ["cluster.num_workers=[1,2]", "cluster.cpus_per_worker=4", "cluster.data_cpus=2", "cluster.max_failures=0"]
"""On the eight logical CPUs of the tests' Ray."""


@pytest.mark.long
@pytest.mark.timeout(400)
def test_two_that_would_fill_the_cluster_leave_room_to_read_and_take_turns(ray_cluster: None, tmp_path: Path) -> None:
    model = tmp_path / "raw" / "models" / "tiny"
    model.mkdir(parents=True)
    write_model(model)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    recipe = load(tmp_path / "tiny.yaml", SETTINGS)
    said: list[str] = []

    def train(name: str) -> None:
        course, rows = tiny_slice(recipe, str(tmp_path), str(tmp_path / name), STEPS)
        with printing(lambda line: said.append(f"{name}: {line}")) as board, admitted(name, trial_needs(recipe.cluster), board):
            said.append(f"{name} begins")
            output = make_checkpoint(course, rows, board)
            assert output.facts["cost"]["workers"] == 1
            said.append(f"{name} has made {output.facts['steps']} steps")

    threads = [threading.Thread(target=train, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    marks = [line for line in said if "begins" in line or "has made" in line]
    first, second = marks[0][0], marks[2][0]
    assert {first, second} == {"a", "b"}
    assert marks == [f"{name} {what}" for name in (first, second) for what in ("begins", f"has made {STEPS} steps")]
    assert f"{second}: {second} waits in line for 10 CPUs, behind {first}" in said
