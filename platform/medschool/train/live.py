"""The line that says how training goes, and a terminal on which it stays one line.

    step 1200/4068  loss 1.8312  lr 1.9e-05  41,260 tokens/s  2 h 13 min left  waiting for data 31%  skipped 2  goodput 94%

What is as it should be is not mentioned: waiting under a tenth, no batch skipped, no restart. A log gets every line; a terminal
writes each over the one before, as long as they are of the same training.
"""

import re
import shutil
import sys
from typing import TextIO

from medschool.train.throughput import Meter

WAITING_IS_TOLD = 0.1
STEP = re.compile(r"^(?P<who>.*)\bstep \d+/\d+  loss ")


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
