"""Admission: a training or scoring of any job begins only when all that it needs has room, first come, first served.

    admitted(who, needs, room) --asks, every ASK_EVERY_S--> the line (one actor, on the head, for all jobs) --> begins, or waits

Ray places a training's workers at once and its readers task by task. Two trainings of two jobs could so take all CPUs for their
workers, leave none to either's readers, and wait for each other. Here each claims its workers and its feed together, and keeps
them until it ends, restarts included; an elastic one counts with the most workers that the cluster could hold. Nobody overtakes,
so a large claim is not starved by small ones. Nothing waits in line while it holds a place, so no two can wait for each other.

What it does not see: CPUs that serving holds, and who does not ask (other programs, the short tasks of Ray Data, which share what
is left). It counts a cluster's CPUs together, as `medschool plan` does; whether a worker finds a whole node is Ray's to say.

A claim lapses LAPSE_S after its owner was last heard of. Price: one process without logical CPUs, and a call a second for each
training under way.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import ray

from medschool.board import Board
from medschool.cluster.room import cluster_room
from medschool.errors import StoppedError
from medschool.repeated import repeated

ASK_EVERY_S = 1.0
LAPSE_S = 8.0
WAITS = "waits in line"
"""Words that say so; `medschool why` looks for them at the end of a log."""
NAME, NAMESPACE = "admission", "medschool"

Needs = Mapping[str, float]


@dataclass
class Claim:
    """What one training or scoring needs, and whether it has it."""

    who: str
    needs: Needs
    admitted: bool
    heard_s: float


@dataclass
class Line:
    """All claims of a cluster, the admitted ones first, then those that wait, in the order in which they came."""

    now_s: Callable[[], float] = time.monotonic
    claims: dict[str, Claim] = field(default_factory=dict)

    def ask(self, token: str, who: str, needs: Needs, room: Needs, admitted: bool) -> list[str]:
        """Who is before `who` as long as it has to wait; empty once it is admitted.

        needs, room: logical resources, of the claim and of the whole cluster. A claim beyond the room counts as all of it.
        admitted: what it was told before; a line that was started again learns so who is at work.
        """
        now_s = self.now_s()
        self.claims = {name: claim for name, claim in self.claims.items() if now_s - claim.heard_s <= LAPSE_S or name == token}
        claim = self.claims.setdefault(token, Claim(who, needs, admitted, now_s))
        claim.heard_s, claim.admitted = now_s, claim.admitted or admitted
        before = [other for other in self.claims.values() if other.admitted and other is not claim]
        if not claim.admitted:
            before += [other for other in self._until(token) if not other.admitted]
        claim.admitted = claim.admitted or all(
            sum(min(each.needs.get(name, 0), most) for each in [*before, claim]) <= most
            for name, most in room.items()
            if claim.needs.get(name)
        )
        return [] if claim.admitted else [other.who for other in before]

    def leave(self, token: str) -> None:
        self.claims.pop(token, None)

    def _until(self, token: str) -> list[Claim]:
        names = list(self.claims)
        return [self.claims[name] for name in names[: names.index(token)]]


@contextmanager
def admitted(who: str, needs: Needs, board: Board) -> Iterator[None]:
    """Wait for the turn of `who`, and keep its place while the block runs. Raises StoppedError at a wish to stop.

    needs: logical CPUs and GPUs at its largest.
    """
    line, token = _line(), uuid.uuid4().hex
    try:
        said = False
        while before := ray.get(line.ask.remote(token, who, dict(needs), cluster_room(), False)):
            if not said:
                wants = ", ".join(f"{value:g} {name}s" for name, value in needs.items() if value)
                board.put(f"{who} {WAITS} for {wants}, behind {', '.join(before)}")
                said = True
            if board.stop_asked():
                raise StoppedError("stopped before its turn", "submit again: it goes on from what is finished", who)
            time.sleep(ASK_EVERY_S)
        if said:
            board.put(f"{who} has its turn")
        with repeated(lambda: line.ask.remote(token, who, dict(needs), {}, True), ASK_EVERY_S, NAME):
            yield
    finally:
        line.leave.remote(token)


def _line() -> "ray.actor.ActorHandle":
    """The one line of this cluster, begun if need be."""
    return (
        ray.remote(Line)
        .options(
            name=NAME,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            max_task_retries=-1,
            num_cpus=0,
            resources={"node:__internal_head__": 0.001},
            scheduling_strategy="DEFAULT",  # else a trial of Ray Tune would have it in its own placement group
        )
        .remote()
    )
