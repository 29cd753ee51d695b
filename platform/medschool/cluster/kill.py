"""Ends training workers with SIGKILL at chosen steps, and writes down when, and when training went on.

    rank 0 --"step 9/24 ..."--> Witness, a board that lets rank 0 wait at a step --> hunter, a thread of the driver
    hunter --asks Ray for this job's training workers--> one of them, drawn by a seed --SIGKILL, on its node--> rank 0 goes on

Rank 0 waits at its line while somebody is killed, so that the kill comes after exactly that step, however fast steps are; the
other ranks are in the next step by then. Only workers of this very Ray job are looked at. The price: a step's line is waited for,
at the chosen steps alone.

It knows nothing of node failures, which take more than one worker at a time, and of kills while a worker starts.
"""

import asyncio
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray._private.state import actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from medschool.board import Board, printing, this_node

STEP = re.compile(r"^step (\d+)/")
WORKER = "RayTrainWorker"
"""Class of the actors that Ray Train runs training in."""
POLL_S = 0.05


@dataclass(frozen=True)
class Kill:
    """One worker that was ended."""

    step: int
    """Steps done when it came."""
    workers: int
    """Workers of the group at that moment."""
    at_s: float
    """time.time()"""


@dataclass(frozen=True)
class Said:
    """A line that a training said."""

    line: str
    at_s: float

    @property
    def step(self) -> int | None:
        found = STEP.match(self.line)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class Witness(Board):
    """A board that makes whoever reports one of the `stops`, steps, wait for the hunter."""

    gate: Any = None
    stops: tuple[int, ...] = ()

    def put(self, line: str) -> None:
        super().put(line)
        said = Said(line, time.time())
        self.gate.hear.remote(said)
        if said.step in self.stops:
            ray.get(self.gate.wait_at.remote(said.step))


@ray.remote(num_cpus=0)
class Gate:
    """What was said and when, and who waits. A step is waited at once: after a restart it is trained again, and passes."""

    def __init__(self) -> None:
        self._said: list[Said] = []
        self._waits: dict[int, asyncio.Event] = {}

    async def hear(self, said: Said) -> None:
        self._said.append(said)

    async def heard(self) -> list[Said]:
        return self._said

    async def wait_at(self, step: int) -> None:
        if step not in self._waits:
            self._waits[step] = asyncio.Event()
            await self._waits[step].wait()

    async def waited_at(self) -> list[int]:
        return [step for step, event in self._waits.items() if not event.is_set()]

    async def go_on(self, step: int) -> None:
        self._waits[step].set()


class hunting:
    """Context manager: a board to train with, whose lines `say` is given. Inside, one worker is killed at each of the `stops`."""

    def __init__(self, stops: Sequence[int], seed: int, say: Callable[[str], None]) -> None:
        self.kills: list[Kill] = []
        self.said: list[Said] = []
        """What was said, once the block is left."""
        self._stops, self._draw, self._say = tuple(stops), random.Random(seed), say
        self._printing, self._ended = printing(say), threading.Event()
        self._thread = threading.Thread(target=self._hunt, daemon=True)

    def __enter__(self) -> Witness:
        self._gate = Gate.options(scheduling_strategy=this_node()).remote()  # type: ignore[attr-defined]
        board = self._printing.__enter__()
        self._thread.start()
        return Witness(board.actor, gate=self._gate, stops=self._stops)

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(10)
        self._printing.__exit__(*error)
        self.said = ray.get(self._gate.heard.remote())

    def _hunt(self) -> None:
        while not self._ended.wait(POLL_S):
            for step in ray.get(self._gate.waited_at.remote()):
                try:
                    workers = training_workers()
                    node_id, pid = self._draw.choice(workers)
                    self.kills.append(Kill(step, len(workers), end_worker(node_id, pid)))
                    self._say(f"killed worker {pid}, one of {len(workers)}, after step {step}")
                except (ray.exceptions.RayError, IndexError) as error:
                    self._say(f"nobody was killed after step {step}: {type(error).__name__}")  # and the drill will say FAIL
                finally:
                    self._gate.go_on.remote(step)


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
