"""Ray's autoscaler, version 2, on one machine: its nodes are processes here, which Ray's own fake provider starts and ends.

    with fake_cluster(folder) as cluster:  head without work --> cluster.address, cluster.jobs_url; nodes come and go by demand

Node types are those of cluster.yaml by name and label, with sizes that fit this machine. Everything else is as on the real cluster:
version 2 of the autoscaler, its idle timeouts, a token, the head's environment. The provider is `external` because the one in
Ray's wheel lacks a file, and Ray's own AutoscalingCluster is not used because it begins with `ray stop --force`, which ends every
Ray on the machine. Which of the odd settings in `config` are needed was not separated.

What a cloud does wrong is written into `cluster.faults`, and read at each launch:

    {"refused": {"gpu_train": "InsufficientInstanceCapacity"}}      the launch fails with these words
    {"never_ready": ["gpu_train"]}                                  a machine is there and bills; Ray never runs on it
"""

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import yaml
from ray._private import ray_constants
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

from medschool.cluster import growth
from medschool.cluster.ports import choose
from medschool.cluster.ray_head import ask

ROOT = Path(__file__).parents[1]
SIZES: dict[str, dict[str, float]] = {
    "cpu": {"CPU": 2},
    "gpu_train": {"CPU": 3, "GPU": 1},
    "gpu_serve": {"CPU": 4, "GPU": 1},
}
"""Logical resources: a worker of 3 CPUs fits no cpu node, a replica of 4 nothing but gpu_serve. There are no GPUs behind them."""
MOST = {"cpu": 3, "gpu_train": 2, "gpu_serve": 1}
OBJECT_STORE_BYTES = 100_000_000
START_S = 300.0
PORTS = ("gcs", "jobs", "agent", "client", "metrics", "serve")
PATIENT = {
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_raylet_start_wait_time_s": "90",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_worker_register_timeout_seconds": "300",
}
"""On a busy machine Ray gives up half a minute after it has started a process."""


class Provider(FakeMultiNodeProvider):  # type: ignore[misc]
    """Ray's, with our name for the head's type, small object stores, and the faults that a test asks for."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._nodes[FAKE_HEAD_NODE_ID]["tags"][TAG_RAY_USER_NODE_TYPE] = "head"

    def create_node_with_resources_and_labels(self, node_config: Any, tags: Any, count: int, resources: Any, labels: Any) -> None:
        kind, faults = tags[TAG_RAY_USER_NODE_TYPE], json.loads(Path(self.provider_config["faults"]).read_text())
        if words := faults.get("refused", {}).get(kind):
            raise RuntimeError(words)
        if kind in faults.get("never_ready", []):
            with self.lock:
                self._nodes.update({self._next_hex_node_id(): {"tags": dict(tags)} for _ in range(count)})
            return
        sized = {**resources, "object_store_memory": OBJECT_STORE_BYTES}
        named = {**labels, "ray.io/node-group": kind}  # Ray would take it from this process's environment, which is the head's
        for _ in range(count):
            own = patch.object(ray_constants, "DEFAULT_RUNTIME_ENV_DIR_NAME", f"jobs_{uuid.uuid4().hex[:8]}")
            with self.lock, own:  # nodes share a session's folder here, and one that unpacks a job removes what is there
                super().create_node_with_resources_and_labels(node_config, tags, 1, sized, named)

    def _terminate_node(self, node: Any) -> None:
        if "node" in node:
            super()._terminate_node(node)


@dataclass(frozen=True)
class FakeCluster:
    """A head that runs, and how to reach it."""

    folder: Path
    address: str
    """Of its GCS, `ip:port`."""
    jobs_url: str
    environment: Mapping[str, str]
    """Variables of a client; the head and its nodes have them, too."""
    faults: Path


def config(gcs_address: str, faults: Path, idle_s: float) -> dict[str, Any]:
    """What the autoscaler is given: cluster.yaml's node types, this machine's sizes."""
    shipped = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    types = {
        name: {
            "resources": SIZES[name], "labels": node["labels"], "node_config": {}, "min_workers": 0, "max_workers": MOST[name],
            "idle_timeout_s": idle_s,
        }
        for name, node in shipped["available_node_types"].items()
        if name != shipped["head_node_type"]
    }  # fmt: skip
    head = {"resources": shipped["available_node_types"]["head"]["resources"], "node_config": {}, "max_workers": 0}
    empty = [key for key in shipped if key.endswith("_commands")] + ["cluster_synced_files", "rsync_exclude", "rsync_filter"]
    return {
        "cluster_name": "fake",
        "max_workers": sum(MOST.values()),
        "upscaling_speed": 10,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external", "module": "fake_cluster.Provider", "gcs_address": gcs_address, "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True, "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True,
            "faults": str(faults),
        },
        "auth": {"ssh_user": "x"}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False,
        **{key: [] for key in empty},
        "head_node_type": "head",
        "available_node_types": {"head": head, **types},
    }  # fmt: skip


@contextmanager
def fake_cluster(folder: Path, idle_s: float = 5.0, settings: Mapping[str, str] | None = None) -> Iterator[FakeCluster]:
    """A head without work, and an autoscaler that looks once a second; all of its processes are ended with the block.

    folder: empty, and of a short name, because Ray puts Unix sockets below it. settings: more variables of the head.
    """
    ports = choose({name: 0 for name in PORTS}, {}, {}, str(folder))
    address, jobs_url = f"127.0.0.1:{ports['gcs']}", f"http://127.0.0.1:{ports['jobs']}"
    faults = folder / "faults.json"
    faults.write_text("{}")
    asked = config(address, faults, idle_s)
    (folder / "cluster.json").write_text(json.dumps(asked))
    client = {"RAY_ADDRESS": address, "RAY_API_SERVER_ADDRESS": jobs_url, "MEDSCHOOL_RAY_JOBS": jobs_url}
    client |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "MEDSCHOOL_SERVE_PORT": str(ports["serve"])}
    own = {
        growth.VARIABLE: growth.told(asked),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": "head",
        "RAY_num_workers_soft_limit": "2",
        **PATIENT,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "AUTOSCALER_METRIC_PORT": str(ports["metrics"]),
        "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("platform", ".", "tests")),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # jobs call `python`
    }
    cluster = FakeCluster(folder, address, jobs_url, client, faults)
    try:
        _start(cluster, ports, client | own | dict(settings or {}))
        yield cluster
    finally:
        _end(folder)


def _start(cluster: FakeCluster, ports: Mapping[str, int], variables: Mapping[str, str]) -> None:
    (cluster.folder / "r").mkdir()
    flags = {
        "port": ports["gcs"], "node-ip-address": "127.0.0.1", "dashboard-host": "127.0.0.1", "dashboard-port": ports["jobs"],
        "dashboard-agent-listen-port": ports["agent"], "ray-client-server-port": ports["client"], "min-worker-port": 0,
        "max-worker-port": 0, "num-cpus": 0, "num-gpus": 0, "resources": json.dumps({"driver": 100}),
        "object-store-memory": OBJECT_STORE_BYTES, "temp-dir": cluster.folder / "r", "include-dashboard": "true",
        "autoscaling-config": cluster.folder / "cluster.json",
    }  # fmt: skip
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--disable-usage-stats"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    environment = {**os.environ, **variables}
    with (cluster.folder / "start.log").open("w") as log:
        ended = subprocess.run(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False, timeout=START_S, cwd=ROOT
        )
    assert ended.returncode == 0, (cluster.folder / "start.log").read_text()
    until = time.monotonic() + START_S
    while ask(environment, "/api/jobs/")[0] != 200:
        assert time.monotonic() < until, (cluster.folder / "start.log").read_text()
        time.sleep(0.3)


def _end(folder: Path) -> None:
    """Kill what was started below `folder`: the processes of Ray that name it, and their children."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or []) and process.pid != os.getpid():
            found += [process, *_children(process)]
    for process in found:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(found, timeout=10)
    shutil.rmtree(folder, ignore_errors=True)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []
