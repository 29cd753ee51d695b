"""Ends training workers with SIGKILL at chosen steps, and writes down when.

    striking --asks Ray for this job's training workers--> one of them, drawn by a seed --SIGKILL, on its node--> rank 0 goes on

Only workers of this very Ray job are looked at. It knows nothing of node failures, which take more than one worker at a time
(medschool.cluster.node_drill), and of kills while a worker starts.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray._private.state import actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from medschool.cluster.strike import striking

WORKER = "RayTrainWorker"
"""Class of the actors that Ray Train runs training in."""


@dataclass(frozen=True)
class Kill:
    """One worker that was ended."""

    step: int
    """Steps done when it came."""
    workers: int
    """Workers of the group at that moment."""
    at_s: float
    """time.time()"""


class hunting(striking):
    """Context manager: inside, one worker is killed at each of the `stops`."""

    def __init__(self, stops: Sequence[int], seed: int, say: Callable[[str], None]) -> None:
        super().__init__(dict.fromkeys(stops, self._kill), say)
        self.kills: list[Kill] = []
        self._draw = random.Random(seed)

    def _kill(self, step: int) -> None:
        workers = training_workers()
        node_id, pid = self._draw.choice(workers)
        self.kills.append(Kill(step, len(workers), end_worker(node_id, pid)))
        self._say(f"killed worker {pid}, one of {len(workers)}, after step {step}")


def training_workers() -> list[tuple[str, int]]:
    """(node id, pid) of every living training worker of this Ray job, in a fixed order."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    alive = [found for found in actors(job_id=job, actor_state_name="ALIVE").values() if found["ActorClassName"] == WORKER]
    return sorted((found["Address"]["NodeID"], found["Pid"]) for found in alive)


def end_worker(node_id: str, pid: int) -> float:
    """SIGKILL for a training worker, on its node; when it was sent (time.time). Raises RayError when the node is gone."""
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    end = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_end)
    sent: float = ray.get(end.remote(pid))
    return sent


def _end(pid: int) -> float:
    found: Any = psutil.Process(pid)
    if WORKER not in found.name() + "".join(found.cmdline()):
        raise ProcessLookupError(f"process {pid} is no {WORKER}")
    os.kill(pid, signal.SIGKILL)
    return time.time()
