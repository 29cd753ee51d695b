"""Whether the workers of a group still get on, judged from outside of them.

    worker: beat("...")  a variable of its process <--asked every few seconds-- Progress, in the process of Ray's controller

A stopped process, a hanging collective and a hanging read look alike to the ranks that wait for it, and the one that hangs cannot
say so. So each worker only notes when it last got on, and somebody else asks. A rank that does not answer is named first, else
the one that is furthest behind: the others wait for it.

Price: two assignments a step, and one small call to each worker every `look_every_s`.

What it does not know: whether a worker would have got on. An update that honestly takes longer than the time allowed is taken for
a stall. Until its first update a group loads and compiles, and has the time of its start if that is longer.
"""

import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

LOOKS_A_TIMEOUT = 10
"""Looks within the time that a worker may take: a stall is found at most a tenth of it late."""
SLOWEST_LOOK_S = 10.0
SILENT_LOOKS = 3
"""A worker that has answered none of so many looks is silent."""
PY_SPY_S = 20.0

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Pulse:
    """What a worker says of itself."""

    beats: int
    """Times it got on; all ranks of a group go through the same ones, so fewer means behind."""
    age_s: float
    """Since the last time, by its own clock."""
    step: int
    """Optimizer steps done."""
    doing: str
    updates: int = 0
    """Of those, the ones that this process has done."""


# ---- in the worker ------------------------------------------------------------------------------------------------------------

_beats, _at_s, _step, _doing, _updates = 0, time.monotonic(), 0, "starting", 0


def beat(doing: str, step: int | None = None) -> None:
    """Note that this process got on. doing: what it does from now on; step: optimizer steps done, as before if left out."""
    global _beats, _at_s, _step, _doing
    _beats, _at_s, _step, _doing = _beats + 1, time.monotonic(), _step if step is None else step, doing


def updated(step: int) -> None:
    """Note that this process has done optimizer step `step`."""
    global _updates
    _updates += 1
    beat("between two updates", step)


def fed(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches, with a beat before and after each one is waited for."""
    beat("waiting for data")
    for batch in batches:
        beat("computing an update")
        yield batch
        beat("waiting for data")


def pulse() -> Pulse:
    """What this process says of itself."""
    return Pulse(_beats, time.monotonic() - _at_s, _step, _doing, _updates)


def stacks() -> str:
    """Python stacks of all threads of this process."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"Thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


def stacks_from_outside(pid: int) -> str:
    """Python stacks of another process of this node, which may be stopped; or why there are none.

    py-spy reads its memory without stopping it (`--nonblocking`): it cannot stop what is stopped already.
    """
    program = Path(sys.executable).with_name("py-spy")
    if not program.exists():
        return f"process {pid} does not answer, and py-spy, which could read its stacks from outside, is not installed"
    try:
        found = subprocess.run(
            [program, "dump", "--nonblocking", "--pid", str(pid)], capture_output=True, text=True, timeout=PY_SPY_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"process {pid} does not answer, and py-spy took longer than {PY_SPY_S:g} s"
    return found.stdout if found.returncode == 0 else f"py-spy could not read process {pid}: {found.stderr.strip()}"


# ---- outside ------------------------------------------------------------------------------------------------------------------


@dataclass
class _Rank:
    progress_s: float
    """When it last got on, by the watcher's clock."""
    answered_s: float
    pulse: Pulse | None = None


@dataclass
class Progress:
    """The ranks of one worker group, all times by the watcher's clock in seconds."""

    world_size: int
    stall_timeout_s: float
    start_timeout_s: float
    began_s: float
    _ranks: list[_Rank] = field(init=False)

    def __post_init__(self) -> None:
        self._ranks = [_Rank(self.began_s, self.began_s) for _ in range(self.world_size)]

    @property
    def look_every_s(self) -> float:
        return min(SLOWEST_LOOK_S, self.stall_timeout_s / LOOKS_A_TIMEOUT)

    def heard(self, rank: int, found: Pulse, now_s: float) -> None:
        """Rank `rank` has answered."""
        if found.beats:  # none yet: it has not come to its first line, and its clock says nothing
            self._ranks[rank].progress_s = now_s - found.age_s
        self._ranks[rank].answered_s, self._ranks[rank].pulse = now_s, found

    def allowed_s(self) -> float:
        """Time that a rank may take now."""
        if any(one.pulse and one.pulse.updates for one in self._ranks):
            return self.stall_timeout_s
        return max(self.stall_timeout_s, self.start_timeout_s)

    def late_s(self, now_s: float) -> float:
        """How long the rank that waits longest has not got on, where that is longer than allowed; else 0."""
        longest = max(now_s - one.progress_s for one in self._ranks)
        return longest if longest > self.allowed_s() else 0.0

    def silent(self, now_s: float) -> list[int]:
        """Ranks that do not answer."""
        patience_s = max(2.0, SILENT_LOOKS * self.look_every_s)
        return [rank for rank, one in enumerate(self._ranks) if now_s - one.answered_s > patience_s]

    def behind(self, now_s: float) -> list[int]:
        """The ranks that the others wait for: those that are silent, else those with the fewest beats."""
        beats = [one.pulse.beats if one.pulse else 0 for one in self._ranks]
        return self.silent(now_s) or [rank for rank, count in enumerate(beats) if count == min(beats)]

    def all_are(self, doing: str) -> bool:
        return all(one.pulse is not None and one.pulse.doing == doing for one in self._ranks)

    def described(self, now_s: float) -> str:
        """`rank 1 of 2 does not answer (step 12, computing an update)`."""
        ranks, silent = self.behind(now_s), self.silent(now_s)
        last = self._ranks[ranks[0]].pulse
        where = f"step {last.step}, {last.doing}" if last else "before its first line"
        named = f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))} of {self.world_size}"
        verb = "not answer" if silent else "not get on"
        return f"{named} {'does' if len(ranks) == 1 else 'do'} {verb} ({where})"
