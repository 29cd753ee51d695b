"""Ray nodes on three hosts with addresses of their own, and training across them: a lost host, a cut link, a lost head, no way.

Everything is the product's own: feed, workers, DeepSpeed over gloo, checkpoints, failure policy; the model is tiny and random.
Run as a script this file is the job, on the head: `python test_namespaces.py STORE NAME ADDRESS STOP SETTING...`. At step STOP it
prints WAITS and goes on when a line comes in.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from namespaces import Hosts

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
STEPS, STOP = 36, 21
CPUS = 3
"""Of each host: a worker takes two, the third is for the feed."""


def drive(store: Path, name: str, address: str, stop: int, settings: list[str]) -> None:
    """Train, waiting at step `stop` for whatever is done to the hosts. Prints what was seen, as JSON."""
    import threading

    import ray

    from medschool.board import printing, this_node
    from medschool.cluster.drill import trained
    from medschool.cluster.slice import tiny_slice
    from medschool.cluster.strike import Gate, Witness
    from medschool.errors import MedschoolError
    from medschool.recipe import load
    from medschool.train import on_ray

    on_ray.RESIZE_EVERY_S = 5.0
    ray.init(address=f"{address}:6379", _node_ip_address=address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    common = ["cluster.cpus_per_worker=2", "cluster.checkpoint_every_steps=4", "cluster.data_cpus=1", "model.dtype=fp32"]
    course, rows = tiny_slice(load(RECIPE, [*common, *settings]), str(store), str(store / name), STEPS)
    said: list[str] = []
    with printing(lambda line: (said.append(line), print(line, flush=True))) as board:
        gate = Gate.options(scheduling_strategy=this_node()).remote()

        def watch() -> None:
            while not (stop and ray.get(gate.waited_at.remote())):
                time.sleep(0.2)
            print("WAITS", flush=True)
            sys.stdin.readline()
            gate.go_on.remote(stop)

        threading.Thread(target=watch, daemon=True).start()
        found: dict[str, Any] = {"error": "", "nodes": [node["NodeID"] for node in ray.nodes() if node["Alive"]]}
        began_s = time.monotonic()
        try:
            output = on_ray.make_checkpoint(course, rows, Witness(board.actor, gate=gate, stops=(stop,) if stop else ()))
            made = trained(course.prefix_uri, output, time.monotonic() - began_s)
            found |= {"losses": made.losses, "ledger": made.ledger.hex(), "wall_s": made.wall_s}
        except MedschoolError as error:
            found["error"] = str(error)
        time.sleep(1)  # the board's last lines
    print("FOUND " + json.dumps(found | {"said": said}), flush=True)
    os._exit(0)


class Cluster:
    """A Ray node on each host, the first one the head; and jobs on it."""

    def __init__(self, hosts: Hosts, folder: Path, environment: dict[str, str]) -> None:
        self.hosts, self._folder, self.logs = hosts, folder, folder / "logs"
        self.logs.mkdir(parents=True)
        self._environment = os.environ | {"RAY_raylet_start_wait_time_s": "300"} | environment

    def start(self, host: int) -> None:
        """A Ray node on a host; returns when it has joined. A node that finds no head within Ray's own patience is tried again."""
        own = self.hosts.addresses[host]
        ray = [str(Path(sys.executable).with_name("ray")), "start", f"--node-ip-address={own}", f"--num-cpus={CPUS}", "--block"]
        head = ["--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={self._folder}/ray"]
        if host == 0:  # Ray takes the other hosts' processes, which it sees here, for a cluster that still runs on this one
            Path(self._folder, "ray", "ray_current_cluster").unlink(missing_ok=True)
        where = head if host == 0 else [f"--address={self.hosts.addresses[0]}:6379"]
        until_s = time.monotonic() + 600
        for attempt in range(10):
            path = self.logs / f"ray-{host}-{time.monotonic():.0f}-{attempt}.log"
            with path.open("w") as log:
                words = [*ray, *where, "--object-store-memory=100000000"]
                process = self.hosts.start(host, words, env=self._environment, stdout=log, stderr=log)
            while process.poll() is None and time.monotonic() < until_s:
                if "Ray runtime started" in path.read_text():
                    return
                time.sleep(0.3)
        raise AssertionError(f"no Ray on host {host}: " + path.read_text()[-2000:])

    def raylets(self, host: int) -> list[int]:
        """Processes of Ray's node manager on a host."""
        found = []
        for pid in self.hosts.processes(host):
            try:
                if psutil.Process(pid).name() == "raylet":
                    found.append(pid)
            except psutil.NoSuchProcess:
                continue
        return found

    def job(self, name: str, *settings: str, stop: int = 0) -> subprocess.Popen[str]:
        words = [sys.executable, __file__, str(self._folder / "store"), name, self.hosts.addresses[0], str(stop), *settings]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return self.hosts.start(0, words, env=self._environment, **pipes)


def until_waits(job: subprocess.Popen[str]) -> None:
    assert job.stdout is not None
    seen = []
    for line in job.stdout:
        seen.append(line)
        if line.startswith("WAITS"):
            return
    raise AssertionError("the job ended before its step: " + "".join(seen)[-3000:])


def go_on(job: subprocess.Popen[str]) -> None:
    assert job.stdin is not None
    job.stdin.write("now\n")
    job.stdin.flush()


def ended(job: subprocess.Popen[str]) -> dict[str, Any]:
    told, _ = job.communicate(timeout=1200)
    assert "FOUND " in told, told[-4000:]
    found: dict[str, Any] = json.loads(told.split("FOUND ")[1].splitlines()[0])
    return found


def largest_difference(one: dict[str, float], other: dict[str, float]) -> float:
    assert one.keys() == other.keys() and len(one) == STEPS
    return max(abs(one[step] - other[step]) / one[step] for step in one)


@pytest.fixture
def cluster(ray_folder: str, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(dir=ray_folder))
    persisted = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": f"{folder}/gcs"} if "head" in request.node.name else {}
    with Hosts(3) as hosts:
        made = Cluster(hosts, folder, persisted)
        for host in range(3):
            made.start(host)
        yield made


def test_a_lost_host_and_a_cut_link_cost_steps_and_no_rows(cluster: Cluster) -> None:
    calm = ended(cluster.job("calm", "cluster.num_workers=3"))
    assert not calm["error"], calm["error"]
    checked = [line for line in calm["said"] if line.startswith("preflight: 3 workers on 3 machines")]
    assert len(checked) == 1, calm["said"]
    for name, host, harm in (("killed", 2, cluster.hosts.kill), ("cut", 1, cluster.hosts.cut)):
        job = cluster.job(name, "cluster.num_workers=[2,3]", stop=STOP)
        until_waits(job)
        harm(host)
        began_s = time.monotonic()
        go_on(job)
        found = ended(job)
        assert not found["error"], found["error"]
        lines = found["said"]
        assert any("workers restart after" in line for line in lines), f"{name}: nothing happened to the training"
        assert any(line.startswith("resuming at step 20") for line in lines)
        assert any(line.startswith("preflight: 2 workers on 2 machines") for line in lines), "it went on with other workers"
        assert found["ledger"] == calm["ledger"] and largest_difference(calm["losses"], found["losses"]) < 1e-4
        print(f"{name}: {time.monotonic() - began_s:.0f} s from the fault to the end of the training")
        cluster.hosts.mend(host)
        cluster.hosts.kill(host)  # a node that was cut off ends by itself, sooner or later
        cluster.start(host)


def test_hosts_without_a_way_to_each_other_end_the_training_with_their_names(cluster: Cluster) -> None:
    a, b, c = cluster.hosts.addresses
    cluster.hosts.forget(1, 2)
    began_s = time.monotonic()
    found = ended(cluster.job("no_way", "cluster.num_workers=3", "cluster.max_failures=1"))
    assert "does not reach" in found["error"] and b in found["error"] and c in found["error"], found
    assert f"{a} " not in found["error"]
    assert "fix: open all ports between the nodes" in found["error"]
    assert sum("workers restart after a failure (1 of 1)" in line for line in found["said"]) == 1
    assert time.monotonic() - began_s < 300
    cluster.hosts.remember(1, 2)
    assert not ended(cluster.job("no_way", "cluster.num_workers=3"))["error"]


def test_a_slow_host_is_named_when_a_training_starts(cluster: Cluster) -> None:
    cluster.hosts.slow(2)
    found = ended(cluster.job("slow", "cluster.num_workers=3"))
    named = [line for line in found["said"] if " is slow: " in line]
    assert not found["error"] and len(named) == 1 and f"preflight: {cluster.hosts.addresses[2]} (rank" in named[0], found["said"]


def test_a_head_that_comes_back_finds_its_nodes_and_the_training_its_steps(cluster: Cluster) -> None:
    """The head loses power, driver and all; Ray's state lies on its disk. Its nodes wait for it, and the same recipe goes on."""
    job = cluster.job("head", "cluster.num_workers=2", stop=STOP)
    until_waits(job)
    before = {host: cluster.raylets(host) for host in (1, 2)}
    assert cluster.hosts.kill(0) > 3
    job.wait(20)
    cluster.start(0)
    again = cluster.job("head", "cluster.num_workers=2")
    found = ended(again)
    assert not found["error"], found["error"]
    assert any(line.startswith("resuming at step 20") for line in found["said"]), found["said"]
    assert {host: cluster.raylets(host) for host in (1, 2)} == before, "the nodes were started anew"
    assert len(found["nodes"]) == 3 and len(found["losses"]) == STEPS


if __name__ == "__main__":
    drive(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5:])
