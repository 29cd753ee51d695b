"""Lines that processes of a job want the user to see, in order, wherever in the cluster they run.

    worker, trial --put--> board (an actor on the driver's node) --take, three times a second--> the driver's output

Ray's own copying of worker output to the driver is off: it mixes in every library's chatter.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

POLL_S = 0.3


@dataclass(frozen=True)
class Board:
    """A place to put lines; travels to other processes."""

    actor: Any
    before: str = ""
    """What stands before each line."""

    def put(self, line: str) -> None:
        self.actor.put.remote(self.before + line)

    def within(self, before: str) -> "Board":
        """The same board, with more before each line."""
        return replace(self, before=self.before + before)


def this_node() -> NodeAffinitySchedulingStrategy:
    """For actors that must live as long as the job: not on a node that may vanish."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


@ray.remote(num_cpus=0)
class _Lines:
    def __init__(self) -> None:
        self._lines: list[str] = []

    def put(self, line: str) -> None:
        self._lines.append(line)

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


class printing:
    """Context manager: a new board, whose lines are printed by `say` while the block runs."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._ended = say, threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Board:
        self._actor = _Lines.options(scheduling_strategy=this_node()).remote()  # type: ignore[attr-defined]
        self._thread.start()
        return Board(self._actor)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)

    def _loop(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(POLL_S)
            for line in ray.get(self._actor.take.remote()):
                self._say(line)
