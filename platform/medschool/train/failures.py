"""What is said and decided when a worker group fails, or finds no place: plain values, without Ray.

    budget          counted                                                     cluster.
    failure         a worker died, raised, stalled, or its group did not start   max_failures
    preemption      a node was taken away, with notice or without                max_preemptions
    placement       seconds until the group has its place                        start_timeout_s

A request that the cluster can never hold fails within NEVER_AFTER_S; Ray alone would wait for ever and say nothing. That takes a
little patience: of a cluster without autoscaler nobody knows whether a node that is gone is only starting again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medschool.errors import PlanError, StageError, StoppedError

NEVER_AFTER_S = 30.0
SAY_AFTER_S, SAY_EVERY_S = 10.0, 60.0


@dataclass(frozen=True)
class Nodes:
    """Nodes of one kind."""

    resources: Mapping[str, float]
    """Logical resources of one of them."""
    count: float
    """How many; infinite where an autoscaler has no limit."""
    name: str = ""

    def __str__(self) -> str:
        count = "any number" if math.isinf(self.count) else f"{self.count:g}"
        return f"{count} x {self.name + ' ' if self.name else ''}({amounts(self.resources)})"


@dataclass(frozen=True)
class Request:
    """The place that a worker group asks for."""

    workers: int
    """The fewest that can start."""
    per_worker: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    """That a node must have."""

    def __str__(self) -> str:
        labels = " on nodes with " + ", ".join(f"{name}={value}" for name, value in self.labels.items()) if self.labels else ""
        return f"{self.workers} {'worker' if self.workers == 1 else 'workers'} of {amounts(self.per_worker)} each{labels}"


def amounts(resources: Mapping[str, float]) -> str:
    """`4 CPUs, 1 GPU`: logical CPUs and GPUs."""
    return (
        ", ".join(
            f"{resources[name]:g} {name}{'' if resources[name] == 1 else 's'}" for name in ("CPU", "GPU") if resources.get(name)
        )
        or "no CPU"
    )


def workers_that_fit(nodes: Sequence[Nodes], per_worker: Mapping[str, float]) -> float:
    """Workers that nodes hold when nothing else is on them. A worker stands on one node: halves on two nodes do not add up."""
    return sum(
        kind.count * min(kind.resources.get(name, 0) // need for name, need in per_worker.items() if need)
        for kind in nodes
        if kind.count
    )


def said_of(nodes: Sequence[Nodes]) -> str:
    """`1 x (8 CPUs), 2 x (4 CPUs, 1 GPU)`: equal nodes counted together."""
    counts: dict[tuple[str, str], tuple[Nodes, float]] = {}
    for kind in nodes:
        key = (kind.name, amounts(kind.resources))
        counts[key] = (kind, counts.get(key, (kind, 0.0))[1] + kind.count)
    return ", ".join(str(Nodes(kind.resources, count, kind.name)) for kind, count in counts.values()) or "no node"


def placed_or_raise(
    request: Request, alive: Sequence[Nodes], grown: Sequence[Nodes], waited_s: float, start_timeout_s: float
) -> str:
    """The line to say about a group that has waited so long for its place, '' for none yet.

    alive: nodes that are there; grown: what the autoscaler may bring, empty without one. Raises PlanError for a request that can
    never be held, after NEVER_AFTER_S, and for one that was not held within `start_timeout_s`.
    """
    there, could = workers_that_fit(alive, request.per_worker), workers_that_fit(grown, request.per_worker)
    has = f"the cluster has {said_of(alive)}" + (f" and may grow to {said_of(grown)}" if grown else ", and no autoscaler")
    if max(there, could) < request.workers:
        if waited_s >= NEVER_AFTER_S:
            raise PlanError(
                f"{request} can never be placed: {has}",
                "lower cluster.num_workers, cpus_per_worker or gpus_per_worker, or add nodes that hold a whole worker",
                "cluster.num_workers",
            )
        return f"no place for {request}: {has}; given up {NEVER_AFTER_S - waited_s:.0f} s from now unless a node comes"
    if waited_s >= start_timeout_s:
        raise PlanError(
            f"{request} found no place within {start_timeout_s:g} s: {has}",
            "raise cluster.start_timeout_s, or see why nodes do not come or who holds them: `medschool why`",
            "cluster.start_timeout_s",
        )
    if waited_s < SAY_AFTER_S:
        return ""
    why = "others hold them" if there >= request.workers else f"room for {there:g} so far, more nodes can come"
    return f"waiting for {request}: {has}; {why}; {start_timeout_s - waited_s:.0f} s left"


def restart_line(preempted: bool, count: int, most: int | None, reason: str) -> str:
    """`workers restart after a failure (1 of 3): rank 1 ...`: why a group starts again, and what that is charged to."""
    kind = "a preempted node" if preempted else "a failure"
    return f"workers restart after {kind} ({count}{'' if most is None else f' of {most}'}): {reason}"


def given_up(preempted: bool, most: int | None, reason: str, name: str) -> StageError:
    """The error of a training whose budget of failures, or of preemptions, is used up."""
    if preempted:
        return StageError(
            f"a node was preempted, after {most} restarts for that: {reason}",
            "submit again: it goes on from its newest checkpoint; cluster.max_preemptions allows more",
            name,
        )
    return StageError(
        f"training failed after {most} restarts: {reason}", "the workers' logs in Ray's dashboard have the stack", name
    )


def stopped_by_wish(step: int, saved: int, steps: int, name: str) -> StoppedError:
    """The error of a training that was told to stop. step: where it stood; saved: step of its newest checkpoint."""
    kept = "which is saved" if saved == step else f"of which step {saved} is saved" if saved else "and nothing is saved"
    return StoppedError(f"stopped at step {step} of {steps}, {kept}", "submit again to go on", name)
