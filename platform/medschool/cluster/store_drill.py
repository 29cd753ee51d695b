"""The object store is lost while a tiny model trains, and comes back.

    calm       -------------------------------------------------------> weights, losses, ledger
    drilled    ---the store is ended...........started again on its data---> the same, bit by bit          PASS or FAIL
                  steps go on until a second checkpoint is due; then they wait

The store is the product's own, in a process of this drill's, and ends by SIGKILL. A checkpoint that falls due while it is away
is written once it is back (s3.PATIENCE_S is how long that may take), and its hashes must be right. No step is trained twice,
no worker starts again.

What it does not show: an outage longer than the patience, after which a checkpoint counts as failed
(`cluster.max_failed_checkpoints`); a store that loses what it had acknowledged, which the hashes find at the next start.
"""

import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from medschool import storage
from medschool.cluster.drill import Rows, Trained, largest_difference, trained
from medschool.cluster.fault_outcome import FaultOutcome
from medschool.cluster.node_drill import await_state, undisturbed, within
from medschool.cluster.own_store import OwnStore
from medschool.cluster.strike import Said, restarts, striking
from medschool.errors import MedschoolError, PlanError
from medschool.recipe import Recipe
from medschool.train.checkpoint import fetch_state, read_state
from medschool.train.course import Course
from medschool.train.on_ray import make_checkpoint

LEAST_STEPS = 6


def every_of(steps: int) -> int:
    """Steps between two checkpoints. Raises PlanError when there are too few steps for one before and one in the outage."""
    if steps < LEAST_STEPS:
        raise PlanError(f"{steps} steps are too few", f"train at least {LEAST_STEPS}", "--steps")
    return max(2, steps // 6)


def for_own_ray(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with two workers, and every checkpoint kept."""
    here = {"num_workers": 2, "cpus_per_worker": 1, "gpus_per_worker": 0, "score_workers": 1, "kept_checkpoints": steps}
    settings = {**here, "checkpoint_every_steps": every_of(steps)}
    return recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update=settings)})


def drill_store(
    course: Course, rows: Rows, calm: Trained | None, store: OwnStore, away_s: float, say: Callable[[str], None]
) -> FaultOutcome:
    """Train while the store is away for `away_s`, and compare. Ray must be connected, and the course's folders lie in the store.

    calm: the same training undisturbed, done first when None. A training that ends with an error is a FAIL that says why.
    """
    calm = calm or undisturbed(course, rows, say)
    course, began = within(course, "store"), time.monotonic()
    silencing = Silencing(course, store, away_s, lambda line: say(f"store: {line}"))
    try:
        with silencing:
            output = make_checkpoint(course, rows, silencing.board)
    except MedschoolError as error:
        return FaultOutcome("store", (f"training ended: {error}",), None)
    drilled = trained(course.prefix_uri, output, time.monotonic() - began)
    return judge(course, calm, drilled, silencing, silencing.said, damaged(course))


class Silencing(striking):
    """Context manager: inside, the store is away for a while, between two checkpoints."""

    def __init__(self, course: Course, store: OwnStore, away_s: float, say: Callable[[str], None]) -> None:
        self.every = course.recipe.cluster.checkpoint_every_steps
        self.lost_at = course.steps // 2 // self.every * self.every + (self.every + 1) // 2
        self.due = (self.lost_at // self.every + 1) * self.every
        """The checkpoint that falls due while the store is away."""
        super().__init__({self.lost_at: self._lose}, say)
        self._run_uri, self._store, self._away_s = course.run_uri, store, away_s
        self._return = threading.Thread(target=self._come_back, daemon=True)
        self.problem = ""
        """What a client heard of the store while it was away."""
        self.lost_s = self.back_s = self.written_s = 0.0
        """time.time(): the store was ended, answers again, has the checkpoint that fell due; 0.0 for what never came."""

    def __exit__(self, *error: object) -> None:
        if self._return.ident:
            self._return.join(self._away_s + 120)
        super().__exit__(*error)

    def _lose(self, step: int) -> None:
        await_state(self._run_uri, step // self.every * self.every)
        self._say(f"the store is lost after step {step}")
        self.lost_s = time.time()
        self._store.lose()
        self.problem = self._store.problem()
        self._return.start()

    def _come_back(self) -> None:
        time.sleep(self._away_s)
        self._store.start()
        self.back_s = time.time()
        self._say("the store is back")
        await_state(self._run_uri, self.due)
        self.written_s = time.time()


def damaged(course: Course) -> list[str]:
    """Checkpoints that should be in the store and are not, or differ from their hashes; a line each."""
    every, found = course.recipe.cluster.checkpoint_every_steps, []
    for step in range(every, course.steps, every):
        try:
            with tempfile.TemporaryDirectory() as folder:
                fetch_state(read_state(storage.join(course.run_uri, "state", f"{step:08}", "manifest.json")), Path(folder))
        except (MedschoolError, FileNotFoundError) as error:
            found.append(f"the checkpoint of step {step}: {error}")
    return found


def judge(
    course: Course, calm: Trained, drilled: Trained, silencing: Silencing, said: Sequence[Said], damaged: Sequence[str]
) -> FaultOutcome:
    """Hold what was seen against what is promised. damaged: checkpoints that are missing or differ from their hashes."""
    again, away = restarts(said), (silencing.lost_s, silencing.back_s)
    steps = [line for line in said if line.step is not None]
    meanwhile = [line for line in steps if away[0] < line.at_s < away[1]]
    pauses = [after.at_s - before.at_s for before, after in itertools.pairwise(steps)]
    difference = largest_difference(calm.losses, drilled.losses, range(1, course.steps + 1))
    reasons = {
        "the store was not lost, or did not come back": not silencing.struck or not silencing.back_s,
        "the store answered while it was away": not silencing.problem,
        f"no checkpoint fell due while it was away: step {silencing.due}": not any(
            line.step is not None and line.step >= silencing.due for line in meanwhile
        ),
        f"workers started again {len(again)} times": bool(again),
        "a checkpoint was given up": any("not saved" in line.line for line in said),
        "the ledgers differ: other rows were trained on": calm.ledger != drilled.ledger,
        "the weights differ": calm.sha256 != drilled.sha256,
        f"a loss differs by {difference:.1e}": difference > 0,
        "the checkpoint that fell due was not written afterwards": not silencing.written_s,
        **dict.fromkeys(damaged, True),
    }
    lost = sum(restart.lost_steps for restart in again)
    return FaultOutcome(
        fault="store",
        reasons=tuple(reason for reason, holds in reasons.items() if holds),
        recovery_s=silencing.written_s - silencing.back_s if silencing.written_s else None,
        lost_steps=lost,
        lost_tokens=lost * course.order.batch_rows * course.recipe.tokens.row_tokens,
        seen={
            "steps": course.steps,
            "away_s": silencing.back_s - silencing.lost_s,
            "steps_while_away": len(meanwhile),
            "longest_pause_s": max(pauses, default=0.0),
            "checkpoint_due_and_written_later": silencing.due,
            "weights_equal": calm.sha256 == drilled.sha256,
            "ledgers_equal": calm.ledger == drilled.ledger,
        },
    )
