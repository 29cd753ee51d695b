"""The price of a node on its way: a label of its type, as Ray's launcher gives it, then Ray's list of nodes, then the bill.

Run as a script this file is the job on a cluster of a head and two priced nodes, of which one ends.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

MEMORY = {"object_store_memory": 100_000_000}


def drive() -> None:
    """Prints nodes, what a worker on the one that stays pays an hour, and the bill, as JSON."""
    import ray
    from ray._private.ray_constants import LABELS_ENVIRONMENT_VARIABLE
    from ray.cluster_utils import Cluster

    from medschool.cluster.bill import bill, nodes_at, nodes_of_cluster
    from medschool.cluster.price import PRICE
    from medschool.train.held import node_type, worker_price

    began_s = time.time()
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0, **MEMORY}
    )
    added = []
    for name, price in (("spot", "36.0"), ("demand", "7.2")):
        os.environ.update(
            {"RAY_NODE_TYPE_NAME": name, LABELS_ENVIRONMENT_VARIABLE: json.dumps({PRICE: price})}
        )  # as Ray's launcher
        added.append(cluster.add_node(num_cpus=2, **MEMORY))
    ray.init(address=cluster.address, log_to_driver=False)
    known = {node_type(node): worker_price(node, {"CPU": 1, "GPU": 0}) for node in ray.nodes()}
    cluster.remove_node(added[0])
    deadline_s = time.monotonic() + 60
    while (nodes := nodes_of_cluster()) and all(node.alive for node in nodes):
        assert time.monotonic() < deadline_s
        time.sleep(0.5)
    told = nodes_at(f"http://{cluster.webui_url}")
    print(json.dumps({"prices": known, "bill": bill(nodes, began_s, time.time()), "same": set(told) == set(nodes_of_cluster())}))
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__))], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_a_running_cluster_knows_the_prices_of_its_nodes(found: dict[str, Any]) -> None:
    assert found["prices"]["spot"] == 18.0 and found["prices"]["demand"] == 3.6  # a worker of one of two CPUs pays half


def test_the_bill_has_the_node_that_ended_and_the_one_that_stays(found: dict[str, Any]) -> None:
    paid = {each["type"]: each for each in found["bill"]}
    assert (paid["spot"]["alive"], paid["spot"]["usd_per_hour"]) == (0, 0.0)
    assert (paid["demand"]["alive"], paid["demand"]["usd_per_hour"]) == (1, 7.2)
    assert 0 < paid["spot"]["usd"] == pytest.approx(36.0 * paid["spot"]["hours"], abs=0.002)
    assert found["same"], "the head's list and that of its job server"
    assert [each["usd"] for name, each in paid.items() if "head" in name] == [None]  # it was given no price


if __name__ == "__main__":
    drive()
