"""Lines that processes of a job want the user to see, in order, wherever in the cluster they run.

    worker, trial --put--> board (an actor on the driver's node) --take, three times a second--> the driver's output

Ray's own copying of worker output to the driver is off: it mixes in every library's chatter.

The other way goes one word: that the job is to stop. Trainings ask for it and save first; the driver waits for those that do.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    stop: Any = None
    """Actor that knows whether the job is to stop; None where nobody can wish for it."""

    def put(self, line: str) -> None:
        self.actor.put.remote(self.before + line)

    def ask_to_stop(self) -> None:
        """Tell everyone who holds the board that the job is to stop."""
        ray.get(self.stop.ask_to_stop.remote())

    def stop_asked(self) -> bool:
        return self.stop is not None and bool(ray.get(self.stop.stop_asked.remote()))

    @contextmanager
    def saving_at_stop(self) -> Iterator[None]:
        """Around work that saves what it has when the job is to stop: the driver waits for it."""
        if self.stop is None:
            yield
            return
        self.stop.enter.remote()
        try:
            yield
        finally:
            self.stop.leave.remote()

    def saves_at_stop(self) -> bool:
        """Whether somebody is about such work."""
        return bool(ray.get(self.stop.inside.remote()))

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
        self._stop, self._inside = False, 0

    def put(self, line: str) -> None:
        self._lines.append(line)

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines

    def ask_to_stop(self) -> None:
        self._stop = True

    def stop_asked(self) -> bool:
        return self._stop

    def enter(self) -> None:
        self._inside += 1

    def leave(self) -> None:
        self._inside -= 1

    def inside(self) -> int:
        return self._inside


class printing:
    """Context manager: a new board, whose lines are printed by `say` while the block runs."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._ended = say, threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Board:
        self._actor = _Lines.options(scheduling_strategy=this_node()).remote()  # type: ignore[attr-defined]
        self._thread.start()
        return Board(self._actor, stop=self._actor)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)

    def _loop(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(POLL_S)
            for line in ray.get(self._actor.take.remote()):
                self._say(line)
