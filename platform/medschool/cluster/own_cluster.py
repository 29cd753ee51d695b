"""A cluster of several nodes of one command's own, all on this machine: any of them can be lost without harm to anybody else's.

    own_cluster(head_cpus=1) --> a head --add_node, lose_node, lose_head, start_head--> ... --> all ended, folder removed

A node is a raylet with its workers, as on a machine of its own, and is lost by SIGKILL for all its processes. The head keeps
Ray's tables in a folder (GCS fault tolerance without Redis, `RAY_gcs_storage=rocksdb`, alpha in Ray 2.60), so that one that is
started again on its port takes up where it ended.

What it cannot show: one host's network, clock and disk serve all nodes. Price: three seconds and 0.3 GiB a node.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from medschool.cluster.own_ray import end_at_sigterm, not_started, own_folder, quiet

OBJECT_STORE_BYTES = 100_000_000
END_S = 10.0


class OwnCluster:
    """The nodes, by Ray's hex ids. Its verbs may be called from any thread, one at a time."""

    def __init__(self, head_cpus: int, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(shutdown_at_exit=False)  # it would listen for a signal, which only a main thread can
        self._head_cpus = head_cpus
        self.folder = folder
        """For whatever must go when the cluster does."""
        self.address = ""
        """`host:port` of the head; the same after it was lost and started again."""

    def start_head(self) -> None:
        """Start the head; a second time on the port that it had and with the tables that it kept."""
        port = int(self.address.rsplit(":", 1)[1]) if self.address else None
        self._start(num_cpus=self._head_cpus, include_dashboard=False, gcs_server_port=port)
        self.address = str(self._cluster.address)

    def connect(self) -> None:
        """Connect this process to the cluster."""
        import ray

        ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        quiet()

    def add_node(self, cpus: int) -> str:
        """Start a node with so many logical CPUs; its id, once Ray knows it. Raises ServiceError when it does not come."""
        return str(self._start(num_cpus=cpus).node_id)

    def lose_node(self, node_id: str) -> None:
        """SIGKILL for a node; nothing happens where it is gone."""
        for node in [node for node in self._cluster.worker_nodes if node.node_id == node_id]:
            self._end(node)

    def lose_head(self) -> None:
        """SIGKILL for the head: what keeps Ray's tables, and all that runs there."""
        self._end(self._cluster.head_node)

    def workers(self, node_id: str) -> list[psutil.Process]:
        """Worker processes of a node."""
        return [child for node in self._cluster.worker_nodes if node.node_id == node_id for child in _workers(node)]

    def _start(self, **settings: Any) -> Any:
        try:
            return self._cluster.add_node(object_store_memory=OBJECT_STORE_BYTES, **settings)
        except Exception as error:  # Ray raises plain Exception where its processes do not come up in time
            raise not_started(error) from error

    def _end(self, node: Any) -> None:
        """End a node, and its workers, which would notice by themselves a little later."""
        workers = _workers(node)
        self._cluster.remove_node(node, allow_graceful=False)
        _kill(workers)


def _workers(node: Any) -> list[psutil.Process]:
    raylets = node.all_processes.get("raylet", [])
    with suppress(psutil.NoSuchProcess):
        return [child for raylet in raylets for child in psutil.Process(raylet.process.pid).children(recursive=True)]
    return []


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=END_S)


def _left(folder: Path) -> list[psutil.Process]:
    """Processes that name the folder in their command or their variables, and their children."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            names = [*process.cmdline(), process.environ().get("RAY_TMPDIR", "")]
            if process.pid != os.getpid() and any(str(folder) in name for name in names):
                found |= {each.pid: each for each in [process, *process.children(recursive=True)]}
    return list(found.values())


@contextmanager
def own_cluster(head_cpus: int, variables: Mapping[str, str] | None = None) -> Iterator[OwnCluster]:
    """A head with so many logical CPUs, and nodes as they are added. This process is not connected to it.

    variables: for the processes of every node. Raises ServiceError where this process has a Ray already, or none comes up.
    """
    with own_folder() as folder:
        import ray

        (folder / "ray").mkdir()
        tables = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "tables")}
        before = dict(os.environ)
        os.environ.update({"RAY_TMPDIR": str(folder), **tables, **(variables or {})})
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        cluster = OwnCluster(head_cpus, folder)
        try:
            cluster.start_head()
            end_at_sigterm()
            yield cluster
        finally:
            ray.shutdown()
            _kill(_left(folder))
            os.environ.clear()
            os.environ.update(before)
