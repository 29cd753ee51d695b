"""Lets something happen to a training after exactly a chosen step, and hears what the training says before and after.

    rank 0 --"step 9/24 ..."--> Witness, a board that lets rank 0 wait at a step --> striking, a thread of the driver --strike-->
    whatever it is meant for; then rank 0 goes on

Rank 0 waits at its line while the strike is done, so that it comes after exactly that step, however fast steps are; the other
ranks are in the next step by then. The price: a step's line is waited for, at the chosen steps alone.
"""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import ray

from medschool.board import Board, printing, this_node
from medschool.errors import StageError

STEP = re.compile(r"^step (\d+)/")
RESUMES = "resuming at step "
POLL_S = 0.05
Strike = Callable[[int], None]
"""Is given the steps done. What it raises is told; the step then does not count as struck."""


@dataclass(frozen=True)
class Said:
    """A line that a training said."""

    line: str
    at_s: float
    """time.time()"""

    @property
    def step(self) -> int | None:
        found = STEP.match(self.line)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class Witness(Board):
    """A board that makes whoever reports one of the `stops`, steps, wait for the strike."""

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


class striking:
    """Context manager: a board to train with, whose lines `say` is given. Inside, each strike is done after its step."""

    def __init__(self, strikes: Mapping[int, Strike], say: Callable[[str], None]) -> None:
        self.struck: list[int] = []
        """Steps whose strike was done."""
        self.said: list[Said] = []
        """What was said, once the block is left."""
        self._strikes, self._say = dict(strikes), say
        self._printing, self._ended = printing(say), threading.Event()
        self._thread = threading.Thread(target=self._strike, daemon=True)

    def __enter__(self) -> Self:
        self._gate = Gate.options(scheduling_strategy=this_node()).remote()  # type: ignore[attr-defined]
        board = self._printing.__enter__()
        self.board = Witness(board.actor, gate=self._gate, stops=tuple(self._strikes))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(10)
        self._printing.__exit__(*error)
        self.said = ray.get(self._gate.heard.remote())

    def await_line(self, pattern: str, since_s: float, timeout_s: float) -> Said:
        """The first line said after `since_s` (time.time) that begins so, waited for. Raises StageError when none comes."""
        limit_s = time.monotonic() + timeout_s
        while time.monotonic() < limit_s and not self._ended.is_set():
            for said in ray.get(self._gate.heard.remote()):
                if said.at_s >= since_s and re.match(pattern, said.line):
                    return Said(said.line, said.at_s)
            time.sleep(POLL_S)
        raise StageError(f"training did not say {pattern!r} within {timeout_s:g} s", "see what it said last", "drill")

    def _strike(self) -> None:
        while not self._ended.wait(POLL_S):
            for step in ray.get(self._gate.waited_at.remote()):
                try:
                    self._strikes[step](step)
                    self.struck.append(step)
                except Exception as error:  # whatever it is, rank 0 must go on: the drill then says FAIL
                    self._say(f"the strike after step {step} failed: {type(error).__name__}: {error}")
                finally:
                    self._gate.go_on.remote(step)


@dataclass(frozen=True)
class Restart:
    """A worker group that went on where another one had ended."""

    step: int
    """Steps done before."""
    resumed_step: int
    """Steps done in the checkpoint that training went on from."""
    said_s: float
    """time.time() of the last step before."""
    stepped_s: float
    """time.time() of the end of the first step after it."""

    @property
    def lost_steps(self) -> int:
        return self.step - self.resumed_step


def restarts(said: Sequence[Said]) -> list[Restart]:
    """Every restart that steps came after, from all that was said; a group that started without a step is no restart."""
    found, last, resumes = list[Restart](), Said("step 0/", 0.0), False
    for line in sorted(said, key=lambda one: one.at_s):
        resumes = resumes or line.line.startswith(RESUMES)
        if line.step is None:
            continue
        if resumes or line.step <= (last.step or 0):
            found.append(Restart(last.step or 0, line.step - 1, last.at_s, line.at_s))
        last, resumes = line, False
    return found
