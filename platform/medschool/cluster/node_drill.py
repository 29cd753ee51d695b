"""A node is lost while a tiny model trains: with notice (`preempt`), or without (`node`). Then another node comes.

    calm       2 workers ---------------------------------------------------------> losses, ledger
    drilled    2 workers --a node is lost--> 1 worker --a node comes--> 2 workers -> losses, ledger     PASS or FAIL

    preempt    Ray is told that a node will be gone in DEADLINE_S, and then it is. The training saves, moves, and loses no step;
               nothing is charged to `cluster.max_failures`
    node       SIGKILL for all processes of the node, after the checkpoint that was due before is whole: no more steps are lost
               than lie between two checkpoints

Both: every loss is equal until the number of workers changes, and within TOLERANCE from there on, since other ranks add the same
gradients in another order; the ledgers are equal, so every global batch held the rows of the undisturbed run.

What the growing costs is counted apart: a group that grows loses the steps since its last checkpoint. On a running cluster only
`preempt` is done, nobody brings another node but the autoscaler, and the number of workers afterwards is told, not judged.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from threading import Timer
from typing import Literal

import ray

from medschool import storage
from medschool.cluster.drain import drain_node, worker_nodes
from medschool.cluster.drill import TOLERANCE, Rows, Trained, largest_difference, trained
from medschool.cluster.fault_outcome import FaultOutcome
from medschool.cluster.kill import training_workers
from medschool.cluster.own_cluster import OwnCluster
from medschool.cluster.strike import Restart, Said, restarts, striking
from medschool.errors import MedschoolError, PlanError, StageError
from medschool.recipe import Recipe
from medschool.train import on_ray
from medschool.train.course import Course
from medschool.train.held import read_groups

Loss = Literal["preempt", "node"]
DEADLINE_S = 30
"""From the notice of a preemption until the node is gone."""
NODE_CPUS = 2
"""Logical CPUs of a node of the drill's own cluster, and of a worker: a node holds one. The head has one, for Ray Data."""
LOOK_FOR_ROOM_S = 5.0
"""How often the drilled training looks for room for more workers, in place of on_ray.RESIZE_EVERY_S."""
SAVED_S, GROWN_S = 60.0, 180.0
"""Longest waits for a checkpoint, and for a group to grow."""
LEAST_STEPS = 8
NOTICED = "a node is about to be taken away"
PREEMPTED, FAILED = "workers restart after a preempted node", "workers restart after a failure"


@dataclass(frozen=True)
class Times:
    """Optimizer steps after which something happens."""

    every: int
    """Between two checkpoints."""
    lost_at: int
    """The node is lost."""
    back_at: int
    """Another one comes."""


def times(steps: int) -> Times:
    """For a training of so many steps; each happens between two checkpoints. Raises PlanError when there are too few."""
    if steps < LEAST_STEPS:
        raise PlanError(f"{steps} steps are too few", f"train at least {LEAST_STEPS}", "--steps")
    every = max(2, steps // 8)
    middle = (every + 1) // 2
    return Times(every, steps * 3 // 8 // every * every + middle, steps * 3 // 4 // every * every + middle)


def for_own_cluster(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with what the drill's own cluster can hold: one or two workers, each on a node of its own."""
    here = {"num_workers": (1, 2), "cpus_per_worker": NODE_CPUS, "gpus_per_worker": 0, "data_cpus": 1, "score_workers": 1}
    return _with(recipe, **here, checkpoint_every_steps=times(steps).every)


def for_cluster(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with as many workers as it has, or fewer, so that it goes on whatever node is lost."""
    most = recipe.cluster.most_workers
    return _with(recipe, num_workers=(1, most), checkpoint_every_steps=times(steps).every)


def undisturbed(course: Course, rows: Rows, say: Callable[[str], None]) -> Trained:
    """Train with as many workers as the recipe has at most."""
    say(f"undisturbed: {course.steps} steps with {course.recipe.cluster.most_workers} workers")
    calm = replace(course, recipe=_with(course.recipe, num_workers=course.recipe.cluster.most_workers))
    found, _ = _train(within(calm, "calm"), rows, striking({}, lambda line: say(f"undisturbed: {line}")))
    return found


def drill_loss(
    loss: Loss, course: Course, rows: Rows, calm: Trained, cluster: OwnCluster | None, say: Callable[[str], None]
) -> FaultOutcome:
    """Train once more while a node is lost and another one comes, and compare. Ray must be connected.

    cluster: the drill's own, with two nodes of NODE_CPUS; None for one that runs, where nothing comes back by our doing.
    A training that ends with an error is a FAIL that says why.
    """
    head = ray.get_runtime_context().gcs_address
    losing = Losing(loss, course, head, cluster, lambda line: say(f"{loss}: {line}"))
    try:
        drilled, said = _train(within(course, loss), rows, losing)
    except MedschoolError as error:
        return FaultOutcome(loss, (f"training ended: {error}",), None)
    sizes = _changes([group.workers for group in read_groups(within(course, loss).run_uri)])
    return judge(loss, course, calm, drilled, losing, said, sizes, grows=cluster is not None)


class Losing(striking):
    """Context manager: inside, a node with a worker is lost, and later another one comes."""

    def __init__(self, loss: Loss, course: Course, head: str, cluster: OwnCluster | None, say: Callable[[str], None]) -> None:
        self.times = times(course.steps)
        strikes = {self.times.lost_at: self._lose, **({self.times.back_at: self._come} if cluster else {})}
        super().__init__(strikes, say)
        self._loss, self._head, self._cluster = loss, head, cluster
        self._run_uri = within(course, loss).run_uri
        self._gone: Timer | None = None
        self.lost_s: float | None = None
        """time.time() of the notice or the kill."""

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self._gone:
            self._gone.cancel()

    def _lose(self, step: int) -> None:
        await_state(self._run_uri, step // self.times.every * self.times.every)
        away = [node_id for node_id, _ in training_workers() if node_id in worker_nodes(self._head)]
        if not away:
            raise PlanError("all workers are on the head", "drill on a cluster of several nodes", "--cluster")
        node_id = away[-1]
        self._say(f"node {node_id[:8]} is lost after step {step}")
        self.lost_s = time.time()
        if self._loss == "preempt":
            drain_node(self._head, node_id, datetime.now(UTC) + timedelta(seconds=DEADLINE_S), "medschool drill")
            if self._cluster:
                self._gone = Timer(DEADLINE_S, self._cluster.lose_node, [node_id])
                self._gone.start()
            self.await_line(NOTICED, self.lost_s, DEADLINE_S)
        elif self._cluster:
            self._cluster.lose_node(node_id)

    def _come(self, step: int) -> None:
        """Rank 0 is not let go before its group is started again: the tiny training would be over."""
        assert self._cluster
        self._say(f"another node comes after step {step}")
        came_s = time.time()
        self._cluster.add_node(NODE_CPUS)
        self.await_line("resuming at step", came_s, GROWN_S)


def await_state(run_uri: str, step: int) -> str:
    """The manifest of a checkpoint, once it is whole. Raises StageError when it does not come."""
    uri, limit_s = storage.join(run_uri, "state", f"{step:08}", "manifest.json"), time.monotonic() + SAVED_S
    while not storage.exists(uri):
        if time.monotonic() > limit_s:
            raise StageError(f"the checkpoint of step {step} is not whole after {SAVED_S:g} s", "see the log", uri)
        time.sleep(0.1)
    return uri


def judge(
    loss: Loss,
    course: Course,
    calm: Trained,
    drilled: Trained,
    losing: Losing,
    said: Sequence[Said],
    sizes: Sequence[int],
    grows: bool,
) -> FaultOutcome:
    """Hold what was seen against what is promised. sizes: workers of each group, changes only; grows: another node came."""
    found, most = restarts(said), course.recipe.cluster.most_workers
    lost, rest = (found[0], found[1:]) if found else (Restart(0, 0, 0.0, 0.0), [])
    moved = next((line.at_s for line in said if line.line.startswith(PREEMPTED)), None)
    difference = largest_difference(calm.losses, drilled.losses, range(1, course.steps + 1))
    before = largest_difference(calm.losses, drilled.losses, range(1, lost.resumed_step + 1))
    allowed = 0 if loss == "preempt" else losing.times.every
    reasons = {
        f"the node was not lost, or none came back (done: {losing.struck})": len(losing.struck) < 1 + grows,
        "training did not go on": not found,
        f"{lost.lost_steps} steps were lost, allowed are {allowed}": lost.lost_steps > allowed,
        "the ledgers differ: other rows were trained on": calm.ledger != drilled.ledger,
        f"a loss differs by {before:.1e} before the number of workers changed: none may": before > 0,
        f"a loss differs by {difference:.1e}, allowed are {TOLERANCE:g}": difference > TOLERANCE,
        f"the groups had {sizes} workers, not {most}, fewer, {most}": grows and list(sizes) != [most, most - 1, most],
    }
    if loss == "preempt":
        late = moved is None or losing.lost_s is None or moved - losing.lost_s > DEADLINE_S
        reasons |= {
            "the loss was charged to cluster.max_failures": any(line.line.startswith(FAILED) for line in said),
            f"it had not moved when the node was gone, {DEADLINE_S} s after the notice": late,
        }
    return FaultOutcome(
        fault=loss,
        reasons=tuple(reason for reason, holds in reasons.items() if holds),
        recovery_s=lost.stepped_s - losing.lost_s if found and losing.lost_s else None,
        lost_steps=lost.lost_steps,
        lost_tokens=lost.lost_steps * course.order.batch_rows * course.recipe.tokens.row_tokens,
        seen={
            "steps": course.steps,
            "workers": list(sizes),
            "checkpoint_every_steps": losing.times.every,
            "lost_growing_steps": sum(restart.lost_steps for restart in rest),
            "ledgers_equal": calm.ledger == drilled.ledger,
            "largest_loss_difference": difference if difference < float("inf") else None,
        },
    )


def _train(course: Course, rows: Rows, about: striking) -> tuple[Trained, list[Said]]:
    began, usual = time.monotonic(), on_ray.RESIZE_EVERY_S
    on_ray.RESIZE_EVERY_S = LOOK_FOR_ROOM_S
    try:
        with about:
            output = on_ray.make_checkpoint(course, rows, about.board)
    finally:
        on_ray.RESIZE_EVERY_S = usual
    return trained(course.prefix_uri, output, time.monotonic() - began), about.said


def within(course: Course, name: str) -> Course:
    """The same course in folders of its own."""
    return replace(course, run_uri=storage.join(course.run_uri, name), prefix_uri=storage.join(course.prefix_uri, name))


def _with(recipe: Recipe, **cluster: object) -> Recipe:
    return recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update=cluster)})


def _changes(sizes: Sequence[int]) -> list[int]:
    """`2, 2, 1` as `2, 1`."""
    return [size for place, size in enumerate(sizes) if not place or size != sizes[place - 1]]
