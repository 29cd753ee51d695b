"""A node is lost while two workers train: one goes on. A node comes: there are two again. What was trained is what two would have.

Run as a script this file is the job, on a cluster of a head that holds no worker and two nodes that hold one each:
`python test_elastic.py STORE`.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
STEPS, LOST, BACK = 60, 21, 41
"""The node is lost after step LOST, another one comes after step BACK."""
CPUS = 2


def drive(store: Path) -> None:
    """Train with two workers, then again with one or two while nodes go and come. Prints what was seen, as JSON."""
    import ray
    from ray.cluster_utils import Cluster

    from medschool.board import printing, this_node
    from medschool.cluster.drill import largest_difference, trained
    from medschool.cluster.kill import Gate, Witness, training_workers
    from medschool.cluster.slice import tiny_slice
    from medschool.recipe import load
    from medschool.train import on_ray

    on_ray.RESIZE_EVERY_S = 5.0
    memory = {"object_store_memory": 100_000_000}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **memory}, shutdown_at_exit=False
    )  # at exit it would listen for a signal, which only a main thread can; `ray_folder` ends its processes
    nodes = [cluster.add_node(num_cpus=CPUS, **memory) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    settings = [f"cluster.cpus_per_worker={CPUS}", "cluster.checkpoint_every_steps=4", "cluster.data_cpus=1", "model.dtype=fp32"]
    made, said = {}, []
    for name, workers in (("fixed", "2"), ("elastic", "[1, 2]")):
        course, rows = tiny_slice(
            load(RECIPE, [*settings, f"cluster.num_workers={workers}"]), str(store), str(store / name), STEPS
        )
        gate, over = Gate.options(scheduling_strategy=this_node()).remote(), threading.Event()
        seen: list[int] = []

        def watch(gate: Any = gate, over: Any = over, seen: list[int] = seen) -> None:
            while not over.wait(0.1):
                count = len(training_workers())
                if count and seen[-1:] != [count]:
                    seen.append(count)
                for step in ray.get(gate.waited_at.remote()):
                    if step == LOST and len(cluster.worker_nodes) == 2:
                        cluster.remove_node(nodes[0], allow_graceful=False)
                        gate.go_on.remote(step)
                    if step == BACK and len(cluster.worker_nodes) == 1:
                        cluster.add_node(num_cpus=CPUS, **memory)  # nobody is let go: the group is started again, or this hangs

        with printing(lambda line: (said.append(line), print(line, flush=True))) as board:
            witness = Witness(board.actor, gate=gate, stops=(LOST, BACK) if name == "elastic" else ())
            thread = threading.Thread(target=watch, daemon=True)
            thread.start()
            began = time.monotonic()
            output = on_ray.make_checkpoint(course, rows, witness)
            over.set()
            thread.join(10)
        made[name] = trained(course.prefix_uri, output, time.monotonic() - began)
    found = {
        "workers": seen,
        "resumed": [line for line in said if line.startswith("resuming at step")],
        "ledgers": made["fixed"].ledger == made["elastic"].ledger,
        "difference": largest_difference(made["fixed"].losses, made["elastic"].losses, range(1, STEPS + 1)),
        "seconds": {name: round(one.wall_s, 1) for name, one in made.items()},
    }
    print("FOUND " + json.dumps(found), flush=True)
    ray.shutdown()
    os._exit(0)  # Cluster ends its processes at exit, and with the code 1 where one of them is gone already


@pytest.mark.long
def test_a_lost_node_leaves_one_worker_and_a_new_one_brings_the_second_back(tmp_path: Path, ray_folder: str) -> None:
    Path(ray_folder, "ray").mkdir()
    job = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=os.environ | {"RAY_TMPDIR": ray_folder}, capture_output=True, text=True,
        timeout=550, check=False,
    )  # fmt: skip
    assert job.returncode == 0, (job.stdout + job.stderr)[-6000:]
    found = json.loads(job.stdout.split("FOUND ")[1].splitlines()[0])
    assert found["workers"][-3:] == [2, 1, 2] and len(found["resumed"]) >= 2
    assert found["ledgers"] and found["difference"] < 1e-4


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
