"""The line that says how training goes, and a terminal on which it stays one line.

    step 1200/4068  loss 1.8312  lr 1.9e-05  41,260 tokens/s  2 h 13 min left  waiting for data 31%  skipped 2  goodput 94%

What is as it should be is not mentioned: waiting under a tenth, no batch skipped, no restart. A log gets every line; a terminal
writes each over the one before, as long as they are of the same training. `read_line` takes it apart
again, for `medschool status`.
"""

import re
import shutil
import sys
from dataclasses import dataclass
from typing import TextIO

from medschool.train.throughput import Meter

WAITING_IS_TOLD = 0.1
STEP = re.compile(r"^(?P<who>.*)\bstep \d+/\d+  loss ")
LINE = re.compile(
    r"^(?P<who>.*)\bstep (?P<step>\d+)/(?P<steps>\d+)  loss (?P<loss>\S+)  lr \S+  (?P<speed>[\d,]+) tokens/s"
    r"(  (?P<left>[\w ]+) left)?"
    r"(  waiting for data (?P<waiting>\d+)%)?(  skipped (?P<skipped>\d+))?(  goodput (?P<goodput>\d+)%)?$"
)
LEFT = re.compile(r"(\d+) (s|min|h|d)\b")
UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def step_line(step: int, steps: int, loss: float, lr: float, meter: Meter, skipped: int, goodput: float | None) -> str:
    """The line of one step; `goodput` only after a restart."""
    words = [
        f"step {step}/{steps}",
        f"loss {loss:.4f}",
        f"lr {lr:.2e}",
        f"{meter.tokens_per_s:,.0f} tokens/s",
        f"{duration((steps - step) * meter.lap_s)} left" if step < steps else "",
        f"waiting for data {meter.waiting:.0%}" if meter.waiting > WAITING_IS_TOLD else "",
        f"skipped {skipped}" if skipped else "",
        f"goodput {goodput:.0%}" if goodput is not None else "",
    ]
    return "  ".join(word for word in words if word)


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `2 h 13 min`, `3 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes // 1440} d {minutes % 1440 // 60} h"


@dataclass(frozen=True)
class Shown:
    """What a step's line says. None where it does not say it."""

    who: str
    """What stands before it: the trial."""
    step: int
    steps: int
    loss: float
    tokens_per_s: float
    left_s: float | None
    waiting: float | None
    """Share of the time spent waiting for data."""
    skipped: int | None
    goodput: float | None


def read_line(line: str) -> Shown | None:
    """What `step_line` said, with whatever stands before it; None for another line."""
    found = LINE.match(line)
    if found is None:
        return None
    left = found["left"] and sum(int(number) * UNITS_S[unit] for number, unit in LEFT.findall(found["left"]))
    waiting, goodput = (int(found[name]) / 100 if found[name] else None for name in ("waiting", "goodput"))
    return Shown(
        who=found["who"].strip(),
        step=int(found["step"]),
        steps=int(found["steps"]),
        loss=float(found["loss"]),
        tokens_per_s=float(found["speed"].replace(",", "")),
        left_s=float(left) if left else None,
        waiting=waiting,
        skipped=int(found["skipped"]) if found["skipped"] else None,
        goodput=goodput,
    )


class Screen:
    """Writes lines; on a terminal a step's line replaces the one before it when that was a step of the same training."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._in_place = self._out.isatty()
        self._last: str | None = None

    def __call__(self, line: str) -> None:
        found = STEP.match(line) if self._in_place else None
        who = found["who"] if found else None
        if who is not None and who == self._last:
            self._out.write("\x1b[1A\x1b[2K")  # up one line, and clear it
        if who is not None:
            line = line[: shutil.get_terminal_size().columns - 1]  # a line that breaks in two is two lines to go up
        self._last = who
        self._out.write(line + "\n")
        self._out.flush()
