"""Where a worker group starts: decided once, from what is in the store, and given to the data feed and to every rank alike."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from medschool.train.checkpoint import Position, newest_whole
from medschool.train.course import Course
from medschool.train.memory import Shortage, shortages
from medschool.train.skips import passed_over


@dataclass(frozen=True)
class Start(Position):
    """A position, and what this run has learnt on its way there."""

    passed_over: tuple[int, ...] = ()
    """Batches that are not fed, ascending; of those behind the position the ledger knows."""
    shortages: tuple[Shortage, ...] = ()
    """How often memory ran out in this attempt, where the recipe allows to go on with smaller micro-batches."""


def decide(course: Course, say: Callable[[str], None]) -> Start:
    """The newest whole state of the run, the batches to pass over, and the shortages of memory until now."""
    position = newest_whole(course.run_uri, say)
    return Start(**asdict(position), passed_over=passed_over(course.run_uri), shortages=shortages(course))
