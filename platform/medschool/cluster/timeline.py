"""What stood when: nodes by type, nodes on their way, and what was asked for and had no place, from beginning to end of a job.

    head (GCS) --one request a second--> Recorder --on change--> Moment, Moment, ... --Timeline--> timeline.json of the results

One request gives all of it: the report that the autoscaler (version 2) leaves in the GCS, which `ray status` prints. The thread
keeps a moment only where something is different from the one before, so an hour in which nothing happens costs one line.

Price: one small request a second, some kilobytes for a run. What it does not know: what happens within a second; nodes that the
cloud bills before they join, beyond the time that the autoscaler calls them coming; how long it took until a pending request was
reported. A head that does not answer leaves no moment: the one before is taken to last.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from medschool import storage

FILE = "timeline.json"
LOOK_EVERY_S = 1.0
HEAD = "head"


@dataclass(frozen=True)
class Moment:
    """What holds from `at_s` until the next moment."""

    at_s: float
    """Clock (time.time)."""
    nodes: dict[str, int]
    """Nodes that run, by type."""
    coming: dict[str, int]
    """Nodes that were asked for and do not run yet, by type."""
    waiting: dict[str, float]
    """Logical CPUs and GPUs of all tasks, actors and placement groups that have no place."""


@dataclass(frozen=True)
class Span:
    """Something that took its time: a stage, or a step of a job that leaves no artifact."""

    name: str
    began_s: float
    ended_s: float


@dataclass(frozen=True)
class Timeline:
    """From the first look until the last one."""

    began_s: float
    ended_s: float
    moments: tuple[Moment, ...]
    """In order; at least one."""
    spans: tuple[Span, ...] = ()

    @property
    def types(self) -> list[str]:
        """Node types but the head's, in the order in which they were first asked for."""
        named = [name for moment in self.moments for name in (*moment.nodes, *moment.coming)]
        return [name for name in dict.fromkeys(named) if name != HEAD]

    def counts(self, kind: str) -> list[int]:
        """Nodes of one type that run, moment by moment."""
        return [moment.nodes.get(kind, 0) for moment in self.moments]

    def node_seconds(self) -> dict[str, float]:
        """Nodes times the seconds that they ran, by type, the head's included."""
        found: dict[str, float] = {}
        for moment, seconds in zip(self.moments, self.lasted_s(), strict=True):
            for name, count in moment.nodes.items():
                found[name] = found.get(name, 0.0) + count * seconds
        return found

    def lasted_s(self) -> list[float]:
        """How long each moment held."""
        ends = [*(moment.at_s for moment in self.moments[1:]), self.ended_s]
        return [max(0.0, end - moment.at_s) for moment, end in zip(self.moments, ends, strict=True)]

    def with_spans(self, spans: Iterable[Span]) -> "Timeline":
        """With these spans beside its own, the earliest first; what ended before the first look is left out."""
        some = [span for span in (*self.spans, *spans) if span.ended_s > self.began_s]
        return replace(self, spans=tuple(sorted(some, key=lambda span: (span.began_s, span.name))))


class Recorder:
    """Looks once a second while the block runs. `look` gives the present moment; what it raises is no moment."""

    def __init__(self, look: Callable[[], Moment]) -> None:
        self._look, self._ended = look, threading.Event()
        self._moments: list[Moment] = []
        self._began_s = time.time()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> "Recorder":
        self._note()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(2 * LOOK_EVERY_S)
        self._note()

    def so_far(self) -> Timeline:
        """What was seen until now. It begins with an empty moment where the head has not answered yet."""
        moments = tuple(self._moments) or (Moment(self._began_s, {}, {}, {}),)
        return Timeline(moments[0].at_s, time.time(), moments)

    def _loop(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            self._note()

    def _note(self) -> None:
        with suppress(Exception):  # whatever it is: a look that failed must not end a job
            now = self._look()
            if not self._moments or replace(now, at_s=self._moments[-1].at_s) != self._moments[-1]:
                self._moments.append(now)


def looking_at(gcs_address: str) -> Callable[[], Moment]:
    """What Recorder calls, for the cluster whose GCS listens there; RAY_AUTH_* of this process must open it."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.autoscaler.v2.schema import Stats
    from ray.autoscaler.v2.utils import ClusterStatusParser
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    client = GcsClient(gcs_address)

    def look() -> Moment:
        reply = GetClusterStatusReply()
        reply.ParseFromString(client.get_cluster_status(timeout_s=5))
        return moment_of(ClusterStatusParser.from_get_cluster_status_reply(reply, Stats()))

    return look


def moment_of(status: Any) -> Moment:
    """The autoscaler's report (ray.autoscaler.v2.schema.ClusterStatus) as a moment of now."""
    nodes = Counter(_type_of(node) for node in (*status.active_nodes, *status.idle_nodes))
    coming: Counter[str] = Counter()
    for launch in status.pending_launches:
        coming[launch.ray_node_type_name] += launch.count
    coming.update(node.ray_node_type_name for node in status.pending_nodes)
    demands = status.resource_demands
    waiting: Counter[str] = Counter()
    for demand in (*demands.ray_task_actor_demand, *demands.placement_group_demand):
        for request in demand.bundles_by_count:
            waiting.update({name: request.bundle.get(name, 0) * request.count for name in ("CPU", "GPU")})
    return Moment(
        time.time(), dict(sorted(nodes.items())), dict(sorted(coming.items())),
        {name: round(value, 4) for name, value in sorted(waiting.items()) if value},
    )  # fmt: skip


def _type_of(node: Any) -> str:
    """The type in the cluster file; `head`, or `node`, of one that was started by hand: Ray then names it by its id."""
    if not node.ray_node_type_name.startswith(f"node_{node.node_id}"):
        return str(node.ray_node_type_name)
    return HEAD if "node:__internal_head__" in node.total_resources() else "node"


def write(folder_uri: str, timeline: Timeline) -> None:
    """Put it into the folder of a run's results."""
    storage.write_bytes(storage.join(folder_uri, FILE), json.dumps(asdict(timeline), indent=1).encode())


def read(folder_uri: str) -> Timeline | None:
    """The timeline of a run's results; None where there is none, or none that can be read."""
    try:
        raw = json.loads(storage.read_bytes(storage.join(folder_uri, FILE)))
        moments = tuple(Moment(**moment) for moment in raw["moments"])
        return Timeline(raw["began_s"], raw["ended_s"], moments, tuple(Span(**span) for span in raw["spans"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
