"""What a training cost: how long which workers were held for it, and to what purpose.

    <run>/groups/<when it began>-<id>.json    {"nodes": {"gpu_train": 4}, "began_s": ..., "seconds": ...}, one a worker group
    groups + the finished journal --cost_of--> worker-seconds: held, of which idle, of which lost

    held    workers x seconds, from the moment that all of a group's workers run until the group ends
    lost    of a group that another one followed: its time after the last step that the finished run still has
    idle    the rest that no step took: starts, waiting for data, checkpoints, the export

The file lies in the store beside the checkpoints, so what a training took before its driver was killed is not forgotten. It is
written again every BEAT_S by a thread of Ray's controller: a group whose controller was killed counts until its last beat. A
store that fails costs the record, never a step.

What it does not know: how long anybody waited for a place, because nothing is held then; the logical CPUs that Ray Data reads
with. Steps are put to groups by the clocks of two nodes, which must not differ by more than a start takes. A checkpoint that was
under way when its group ended counts as lost.
"""

import json
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from medschool import storage
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

    @property
    def workers(self) -> int:
        return sum(self.nodes.values())


class Held:
    """Keeps the record of the worker groups of one training. Lives in the controller's process; never raises."""

    def __init__(self, run_uri: str) -> None:
        self._folder = storage.join(run_uri, GROUPS)
        self._uri, self._nodes = "", dict[str, int]()
        self._began_s = self._beat_s = 0.0
        self._writing: threading.Thread | None = None

    def begin(self, nodes: Mapping[str, int]) -> None:
        """A group runs, with so many workers on each type of node."""
        self._nodes, self._began_s = dict(nodes), time.time()
        self._uri = storage.join(self._folder, f"{self._began_s * 1000:.0f}-{uuid.uuid4().hex[:8]}.json")
        self._write()

    def beat(self) -> None:
        """Often, while it runs: at most one write in BEAT_S, and none while another is under way."""
        if self._uri and time.monotonic() - self._beat_s >= BEAT_S:
            self._write()

    def end(self) -> None:
        """The group has ended."""
        if self._uri:
            self._write(LAST_BEAT_S)
        self._uri = ""

    def _write(self, patience_s: float = 0.0) -> None:
        if self._writing is not None:
            self._writing.join(patience_s)
            if self._writing.is_alive():
                return
        self._beat_s = time.monotonic()
        group = Group(self._nodes, self._began_s, time.time() - self._began_s)
        self._writing = threading.Thread(target=_put, args=(self._uri, group), daemon=True)
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
    """
    if not groups:
        return {}
    by_type: dict[str, float] = {}
    stepping = lost = 0.0
    for group, mine in _by_group(groups, points):
        for name, workers in group.nodes.items():
            by_type[name] = by_type.get(name, 0.0) + workers * group.seconds
        stepping += group.workers * sum(point["step_s"] for point in mine)
        if group is not groups[-1]:
            kept_s = mine[-1]["time_ms"] / 1000 - group.began_s if mine else 0.0
            lost += group.workers * max(0.0, group.seconds - kept_s)
    held = sum(by_type.values())
    return {
        "workers": groups[-1].workers,
        "gpus_per_worker": gpus_per_worker,
        "groups": len(groups),
        "worker_seconds": {name: round(seconds, 1) for name, seconds in sorted(by_type.items())},
        "idle_worker_seconds": round(max(0.0, held - stepping - lost), 1),
        "lost_worker_seconds": round(lost, 1),
    }


def _by_group(groups: Sequence[Group], points: Sequence[Mapping[str, float]]) -> list[tuple[Group, list[Mapping[str, float]]]]:
    """Each group with the steps that it did and that were kept: those between its beginning and the next one's."""
    begins_s = [float("-inf"), *(group.began_s for group in groups[1:]), float("inf")]
    return [
        (group, [point for point in points if begins_s[place] <= point["time_ms"] / 1000 < begins_s[place + 1]])
        for place, group in enumerate(groups)
    ]
