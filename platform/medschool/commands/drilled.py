"""What a drill found, printed: with --json alone on stdout, whatever the drill and Ray have to say meanwhile."""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Any, Protocol

Say = Callable[[str], None]


class Outcome(Protocol):
    """What a drill gives back."""

    @property
    def result(self) -> str:
        """PASS or FAIL."""

    def as_json(self) -> dict[str, Any]: ...

    def lines(self) -> list[str]: ...


def shown(drill: Callable[[Say], Outcome], as_json: bool) -> int:
    """Run it, and print what it found; the exit code."""
    from medschool.train.live import Screen

    with redirect_stdout(sys.stderr) if as_json else nullcontext():  # Ray's warnings are printed there
        outcome = drill(Screen())
    for line in [json.dumps(outcome.as_json(), indent=1)] if as_json else outcome.lines():
        print(line, flush=True)
    return 0 if outcome.result == "PASS" else 1


def json_in(lines: Sequence[str]) -> list[str]:
    """The lines of the last outcome that `shown` has printed as JSON among others; none where there is none."""
    begins = [place for place, line in enumerate(lines) if line == "{"]
    block = list(lines[begins[-1] :]) if begins else []
    return block[: block.index("}") + 1] if "}" in block else []
