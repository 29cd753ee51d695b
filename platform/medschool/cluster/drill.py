"""The resume proof: train a slice undisturbed, train it again while workers are killed and their number changes, and compare.

    calm      start ------------------------------------------------> export, ledger, losses
    drilled   start --kill--> start again, 1 worker --kill--> start again, 2 workers --> export, ledger, losses
                                                                     compared with the calm one's: PASS or FAIL

Both are trainings like any other (medschool.train.on_ray.make_checkpoint): the same feed, engine, checkpoints and failure policy.
A start with as many workers as before is Ray Train's own restart within the run; one with another number is a new run on the same
checkpoints, as when a recipe is submitted again on another cluster.

PASS means, with one number of workers: the exported weights are equal byte by byte, and so is every loss. With several: every
global batch held the same rows (the ledgers are equal), every loss is equal until the number changes, and within TOLERANCE from
there on, because other ranks add the same gradients in another order. Either way every kill came and was survived.

What it does not show: faults of nodes, stores and networks (tests/faults has some of these), and a slice is short: a difference
that needs ten thousand steps to grow is seen by its bits, where the number of workers stays.
"""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from medschool import storage
from medschool.artifact import Artifact, Output, digest_of
from medschool.cluster.admission import admitted
from medschool.cluster.fit import trial_needs
from medschool.cluster.kill import Kill, hunting
from medschool.cluster.strike import Said
from medschool.errors import MedschoolError, PlanError
from medschool.ledger import LEDGER
from medschool.tokens.shards import Index
from medschool.track import read_journal
from medschool.train.course import JOURNAL, Course

TOLERANCE = 1e-4
"""Largest relative difference of a loss between two numbers of workers."""
CHECKPOINTS_A_START = 3
"""Checkpoints between two kills, about."""
Rows = dict[str, tuple[Artifact, Index]]


@dataclass(frozen=True)
class Recovered:
    """One kill, and what came after it."""

    step: int
    """Steps done when it came."""
    resumed_step: int
    """Steps done in the checkpoint that training went on from."""
    workers: tuple[int, int]
    """Before and after."""
    seconds: float
    """From the kill to the end of the first step of the new group."""

    def __str__(self) -> str:
        return (
            f"killed       at step {self.step}, went on from step {self.resumed_step} after {self.seconds:.1f} s, "
            f"workers {arrows(self.workers)}"
        )


@dataclass(frozen=True)
class Outcome:
    """What a drill found. `result` is PASS or FAIL, `reasons` say why it is FAIL."""

    result: str
    reasons: tuple[str, ...]
    steps: int
    world_sizes: tuple[int, ...]
    """Workers at each start of the drilled run."""
    zero_stage: int
    dtype: str
    sha256: tuple[str, str]
    """Of the exported weights: calm, drilled."""
    largest_loss_difference: float
    """Relative, over all steps."""
    ledgers_equal: bool
    kills: tuple[Recovered, ...]
    lost_steps: int
    """Steps that had to be trained again."""
    recovery_s: float
    """The longest of all kills."""
    goodput: float
    """Of the drilled run: time in the steps that its result is made of, over its wall time."""
    calm_s: float
    drilled_s: float

    def as_json(self) -> dict[str, Any]:
        """JSON values; a difference that is infinite, because a step is missing, is null."""
        difference = self.largest_loss_difference
        return asdict(self) | {"largest_loss_difference": difference if math.isfinite(difference) else None}

    def lines(self) -> list[str]:
        """The outcome for people."""
        calm, drilled = (sha256[:16] for sha256 in self.sha256)
        return [
            f"{self.result}  {self.steps} steps, workers {arrows(self.world_sizes)}, ZeRO {self.zero_stage}, {self.dtype}",
            *(f"  because      {reason}" for reason in self.reasons),
            f"  weights      {'equal' if calm == drilled else 'differ'}: {calm} undisturbed, {drilled} drilled",
            f"  losses       differ by {self.largest_loss_difference:.1e} at most, relative",
            f"  ledgers      {'equal' if self.ledgers_equal else 'differ'}",
            *(f"  {kill}" for kill in self.kills),
            f"  lost steps   {self.lost_steps}, trained again after {len(self.kills)} kills",
            f"  goodput      {self.goodput:.0%} of {self.drilled_s:.1f} s; undisturbed it took {self.calm_s:.1f} s",
        ]


@dataclass(frozen=True)
class Trained:
    """One finished training."""

    losses: dict[int, float]
    step_s: float
    """Time in its steps, once each."""
    sha256: str
    ledger: bytes
    wall_s: float


def drill_resume(course: Course, rows: Rows, world_sizes: Sequence[int], kills: int, say: Callable[[str], None]) -> Outcome:
    """Run both trainings and compare. `course.run_uri` and `.prefix_uri` are folders of this drill's own; Ray must be connected.

    `world_sizes`: workers at the first start, after the first kill, and so on; the last one holds for all further kills.
    Raises PlanError when the slice is too short for so many kills, and whatever training raises when no kill explains it.
    """
    starts = world_sizes_of(world_sizes, kills)
    every, stops = kill_steps(course.steps, len(starts) - 1)
    say(f"undisturbed: {course.steps} steps with {starts[0]} workers")
    calm, _, _ = _run(course, rows, starts[:1], every, (), "calm", say)
    say(f"drilled: {len(stops)} kills, workers {arrows(starts)}")
    drilled, killed, said = _run(course, rows, starts, every, stops, "drilled", say)
    return judge(course, calm, drilled, starts, killed, said)


def world_sizes_of(world_sizes: Sequence[int], kills: int) -> tuple[int, ...]:
    """Workers at each start: a start more than kills, and enough kills to see every size."""
    starts = max(kills + 1, len(world_sizes))
    return (*world_sizes, *[world_sizes[-1]] * (starts - len(world_sizes)))


def kill_steps(steps: int, kills: int) -> tuple[int, tuple[int, ...]]:
    """(Steps between checkpoints, the steps after which a worker is killed): spread out, each between two checkpoints.

    Raises PlanError when there are too few steps to train some, save them and lose some before every kill.
    """
    every = max(2, steps // (CHECKPOINTS_A_START * (kills + 1)))
    needed = (2 * kills + 1) * 2
    if steps < needed:
        raise PlanError(f"{steps} steps are too few for {kills} kills", f"train at least {needed}, or kill fewer", "--steps")
    spots = [round(steps * (kill + 1) / (kills + 1)) for kill in range(kills)]
    return every, tuple(spot // every * every + (every + 1) // 2 for spot in spots)


def _run(
    course: Course, rows: Rows, starts: Sequence[int], every: int, stops: tuple[int, ...], name: str, say: Callable[[str], None]
) -> tuple[Trained, list[Kill], list[Said]]:
    """Train to the end, one run for each stretch of equal numbers of workers; a kill ends a stretch."""
    from medschool.train.on_ray import make_checkpoint

    began, output = time.monotonic(), Output(())
    prefix_uri = storage.join(course.prefix_uri, name)
    stretches = [(size, len(list(same))) for size, same in itertools.groupby(starts)]
    hunter, due = hunting(stops, course.recipe.seed, lambda line: say(f"{name}: {line}")), 0
    with hunter:
        for number, (size, count) in enumerate(stretches, 1):
            cluster = {"num_workers": size, "checkpoint_every_steps": every, "max_failures": count - 1}
            recipe = course.recipe.model_copy(update={"cluster": course.recipe.cluster.model_copy(update=cluster)})
            due += count if number < len(stretches) else count - 1
            here = replace(course, recipe=recipe, run_uri=storage.join(course.run_uri, name), prefix_uri=prefix_uri)
            try:
                with admitted(f"{recipe.name}: drill, {name}", trial_needs(recipe.cluster), hunter.board):
                    output = make_checkpoint(here, rows, hunter.board)
            except MedschoolError:
                if number == len(stretches) or len(hunter.kills) < due:
                    raise
    return trained(prefix_uri, output, time.monotonic() - began), hunter.kills, hunter.said


def trained(prefix_uri: str, output: Output, wall_s: float) -> Trained:
    """What a finished training has left below `prefix_uri`."""
    journal = read_journal(storage.read_bytes(storage.join(prefix_uri, JOURNAL)))
    weights = sorted([file.path, file.sha256] for file in output.files if file.path.endswith(".safetensors"))
    return Trained(
        losses={int(point["step"]): point["loss"] for point in journal},
        step_s=sum({point["step"]: point["step_s"] for point in journal}.values()),
        sha256=weights[0][1] if len(weights) == 1 else digest_of(weights),
        ledger=storage.read_bytes(storage.join(prefix_uri, LEDGER)),
        wall_s=wall_s,
    )


def judge(
    course: Course, calm: Trained, drilled: Trained, starts: Sequence[int], kills: Sequence[Kill], said: Sequence[Said]
) -> Outcome:
    """Compare the two trainings."""
    recovered, same_size = recoveries(kills, said, starts), len(set(starts)) == 1
    exact = next((kill.resumed_step for kill in recovered if kill.workers[1] != starts[0]), course.steps if same_size else 0)
    difference = largest_difference(calm.losses, drilled.losses, range(1, course.steps + 1))
    before = largest_difference(calm.losses, drilled.losses, range(1, exact + 1))
    reasons = []
    if len(recovered) < len(starts) - 1:
        reasons.append(f"{len(recovered)} of {len(starts) - 1} kills came and were survived")
    if calm.ledger != drilled.ledger:
        reasons.append("the ledgers differ: other rows were trained on")
    if same_size and calm.sha256 != drilled.sha256:
        reasons.append("the weights differ, with as many workers as before")
    if before > 0:
        reasons.append(f"a loss differs by {before:.1e} before the number of workers changed: none may")
    elif difference > TOLERANCE:
        reasons.append(f"a loss differs by {difference:.1e}, allowed are {TOLERANCE:g}")
    return Outcome(
        result="FAIL" if reasons else "PASS",
        reasons=tuple(reasons),
        steps=course.steps,
        world_sizes=tuple(starts),
        zero_stage=course.recipe.cluster.zero_stage,
        dtype=course.recipe.model.dtype,
        sha256=(calm.sha256, drilled.sha256),
        largest_loss_difference=difference,
        ledgers_equal=calm.ledger == drilled.ledger,
        kills=recovered,
        lost_steps=sum(kill.step - kill.resumed_step for kill in recovered),
        recovery_s=max((kill.seconds for kill in recovered), default=0.0),
        goodput=drilled.step_s / drilled.wall_s,
        calm_s=calm.wall_s,
        drilled_s=drilled.wall_s,
    )


def largest_difference(calm: dict[int, float], drilled: dict[int, float], steps: Sequence[int]) -> float:
    """Largest relative difference of a step's loss; infinite where one of them has no such step, or no number."""
    pairs = [(calm.get(step, math.nan), drilled.get(step, math.nan)) for step in steps]
    differences = [abs(b - a) / abs(a) for a, b in pairs]
    return math.inf if any(map(math.isnan, differences)) else max(differences, default=0.0)


def recoveries(kills: Sequence[Kill], said: Sequence[Said], starts: Sequence[int]) -> tuple[Recovered, ...]:
    """What came after each kill, from the steps that were said afterwards; kills that nothing came after are left out."""
    found = []
    for number, kill in enumerate(kills):
        after = [line for line in said if line.step is not None and line.at_s > kill.at_s]
        if after and after[0].step is not None:
            workers = (kill.workers, starts[number + 1])
            found.append(Recovered(kill.step, after[0].step - 1, workers, after[0].at_s - kill.at_s))
    return tuple(found)


def arrows(sizes: Sequence[int]) -> str:
    return " -> ".join(map(str, sizes))
