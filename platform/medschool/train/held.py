"""What a training cost: how long which workers were held for it, and to what purpose.

    <run>/groups/<when it began>-<id>.json    {"nodes": {"gpu_train": 4}, "began_s": ..., "seconds": ..., "usd_per_hour": ...},
                                              one a worker group
    groups + the finished journal --cost_of--> worker-seconds by node type: used, idle, lost; and their price

    held    workers x seconds, from the moment that all of a group's workers run until the group ends
    lost    of a group that another one followed: its time after the last step that the finished run still has; to a preemption,
            where Ray says that its node was taken away
    used    in steps that the finished run still has
    idle    the rest: starts, waiting for data, checkpoints, the export
    price   of a node an hour (its label, medschool.cluster.offer), of which a worker pays the part that it takes of the node

The file lies in the store beside the checkpoints, so what a training took before its driver was killed is not forgotten. It is
written again every BEAT_S by a thread of Ray's controller: a group whose controller was killed counts until its last beat. A
store that fails costs the record, never a step.

What it does not know: how long anybody waited for a place, because nothing is held then; the logical CPUs that Ray Data reads
with. Steps are put to groups by the clocks of two nodes, which must not differ by more than a start takes. A checkpoint that was
under way when its group ended counts as lost.
"""

import json
import math
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from medschool import storage
from medschool.cluster.price import price_of
from medschool.errors import MedschoolError

GROUPS = "groups"
BEAT_S = 10.0
LAST_BEAT_S = 10.0
"""For the last word of a group, where the store is slow."""
NODE_GROUP = "ray.io/node-group"
"""Ray's label with the node type of cluster.yaml; a node that was not started by an autoscaler has none."""


@dataclass(frozen=True)
class Group:
    """One worker group."""

    nodes: dict[str, int]
    """Workers by node type, or by the resources of their node where it has no type."""
    began_s: float
    """Clock (time.time) at which all of them ran."""
    seconds: float
    """Until it ended, or was last heard of."""
    usd_per_hour: dict[str, float] = field(default_factory=dict)
    """Of one worker, by node type; without the types that have no price."""
    preempted: bool = False
    """Whether it ended because a node was taken away."""

    @property
    def workers(self) -> int:
        return sum(self.nodes.values())


class Held:
    """Keeps the record of the worker groups of one training. Lives in the controller's process; never raises."""

    def __init__(self, run_uri: str) -> None:
        self._folder = storage.join(run_uri, GROUPS)
        self._uri = self._last = ""
        self._group, self._beat_s = Group({}, 0.0, 0.0), 0.0
        self._writing: threading.Thread | None = None

    def begin(self, nodes: Mapping[str, int], usd_per_hour: Mapping[str, float]) -> None:
        """A group runs, with so many workers on each type of node, at these prices of a worker."""
        self._group = Group(dict(nodes), time.time(), 0.0, dict(usd_per_hour))
        self._uri = storage.join(self._folder, f"{self._group.began_s * 1000:.0f}-{uuid.uuid4().hex[:8]}.json")
        self._write()

    def beat(self) -> None:
        """Often, while it runs: at most one write in BEAT_S, and none while another is under way."""
        if self._uri and time.monotonic() - self._beat_s >= BEAT_S:
            self._write()

    def end(self) -> None:
        """The group has ended."""
        if self._uri:
            self._write(LAST_BEAT_S)
        self._last, self._uri = self._uri or self._last, ""

    def preempted(self) -> None:
        """The group that runs, or ended last, lost its node."""
        self._group = replace(self._group, preempted=True)
        if not self._uri and self._last:
            self._put(self._last, LAST_BEAT_S)

    def _write(self, patience_s: float = 0.0) -> None:
        if self._writing is not None:
            self._writing.join(patience_s)
            if self._writing.is_alive():
                return
        self._beat_s = time.monotonic()
        self._group = replace(self._group, seconds=time.time() - self._group.began_s)
        self._put(self._uri, patience_s)

    def _put(self, uri: str, patience_s: float) -> None:
        self._writing = threading.Thread(target=_put, args=(uri, self._group), daemon=True)
        self._writing.start()
        self._writing.join(patience_s)


def _put(uri: str, group: Group) -> None:
    with suppress(MedschoolError, OSError):
        storage.write_bytes(uri, json.dumps(asdict(group)).encode())


def node_type(node: Mapping[str, Any]) -> str:
    """`gpu_train`, or `16 CPU, 1 GPU` of a node without a type; `node` as an entry of ray.nodes()."""
    resources = node.get("Resources", {})
    said = ", ".join(f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name))
    return str(node.get("Labels", {}).get(NODE_GROUP) or said or "node")


def worker_price(node: Mapping[str, Any], needs: Mapping[str, float]) -> float | None:
    """USD an hour of a worker that needs so many CPUs and GPUs of a node (an entry of ray.nodes()); None without a price.

    It pays the largest of its shares in the node: eight workers of one GPU each pay for all of a node with eight.
    """
    price, has = price_of(node.get("Labels", {})), node.get("Resources", {})
    shares = [need / has[name] for name, need in needs.items() if need and has.get(name)]
    return None if price is None or not shares else price * min(1.0, max(shares))


def read_groups(run_uri: str) -> list[Group]:
    """Every group that was recorded, the oldest first; what cannot be read is left out."""
    found = []
    with suppress(MedschoolError, OSError):
        for info in storage.list_files(storage.join(run_uri, GROUPS)):
            with suppress(ValueError, TypeError, FileNotFoundError):
                found.append(Group(**json.loads(storage.read_bytes(info.uri))))
    return sorted(found, key=lambda group: group.began_s)


def cost_of(groups: Sequence[Group], points: Sequence[Mapping[str, float]], gpus_per_worker: float) -> dict[str, Any]:
    """Facts of a finished training: `groups` oldest first, `points` the lines of its journal. Empty where nothing was recorded.

    workers: of the last group. worker_seconds: held, by node type; idle_worker_seconds and lost_worker_seconds are parts of it.
    by_node_type: used, idle and lost worker-seconds, those of the lost that went to preemptions, and the price of all, None where
    a group there had none.
    """
    if not groups:
        return {}
    by_type = _by_type(groups, points)
    return {
        "workers": groups[-1].workers,
        "gpus_per_worker": gpus_per_worker,
        "groups": len(groups),
        "worker_seconds": {name: round(one["used"] + one["idle"] + one["lost"], 1) for name, one in by_type.items()},
        "idle_worker_seconds": round(sum(one["idle"] for one in by_type.values()), 1),
        "lost_worker_seconds": round(sum(one["lost"] for one in by_type.values()), 1),
        "by_node_type": {
            name: {part: None if math.isnan(value) else round(value, 6 if part == "usd" else 1) for part, value in one.items()}
            for name, one in by_type.items()
        },
    }


def _by_type(groups: Sequence[Group], points: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """By node type worker-seconds used, idle, lost, of these to preemptions, and USD: no number (NaN) where it is not known."""
    found: dict[str, dict[str, float]] = {}
    for group, mine in _by_group(groups, points):
        kept_s = mine[-1]["time_ms"] / 1000 - group.began_s if mine else 0.0
        lost_s = 0.0 if group is groups[-1] else min(group.seconds, max(0.0, group.seconds - kept_s))
        used_s = min(sum(point["step_s"] for point in mine), group.seconds - lost_s)
        parts = {"used": used_s, "idle": group.seconds - used_s - lost_s, "lost": lost_s, "preempted": lost_s * group.preempted}
        for name, workers in group.nodes.items():
            one = found.setdefault(name, dict.fromkeys((*parts, "usd"), 0.0))
            for part, seconds in parts.items():
                one[part] += workers * seconds
            one["usd"] += workers * group.seconds / 3600 * group.usd_per_hour.get(name, float("nan"))
    return dict(sorted(found.items()))


def _by_group(groups: Sequence[Group], points: Sequence[Mapping[str, float]]) -> list[tuple[Group, list[Mapping[str, float]]]]:
    """Each group with the steps that it did and that were kept: those between its beginning and the next one's."""
    begins_s = [float("-inf"), *(group.began_s for group in groups[1:]), float("inf")]
    return [
        (group, [point for point in points if begins_s[place] <= point["time_ms"] / 1000 < begins_s[place + 1]])
        for place, group in enumerate(groups)
    ]
