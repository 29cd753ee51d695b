"""What the nodes of a cluster cost, by type, from what Ray remembers of them: no bill of a cloud is asked for.

    Ray's list of nodes, dead ones too --nodes_at, nodes_of_cluster--> Node --bill--> node-hours and USD by type, in a span

A node counts from the moment that Ray runs on it until Ray misses it, at the price of its label (medschool.cluster.offer). So
the minutes in which a machine boots are not counted, nor disks, traffic, the store, and what a cloud rounds up. The head keeps
the last 1,000 dead nodes, and forgets them when it ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medschool.cluster.price import price_of
from medschool.errors import ServiceError
from medschool.train.held import NODE_GROUP, node_type

MOST_NODES = 10_000
TIMEOUT_S = 10
STATES = {0: "ALIVE", 1: "DEAD"}
"""Of a node, by its number in Ray's list (gcs.proto, GcsNodeInfo.GcsNodeState)."""


@dataclass(frozen=True)
class Node:
    """One node of a cluster."""

    type: str
    """Its type in the cluster file, or its resources where it has none."""
    alive: bool
    began_s: float
    """Clock (time.time)."""
    ended_s: float | None
    usd_per_hour: float | None


def nodes_of_cluster() -> list[Node]:
    """Every node that the cluster of this driver has or had. Raises ServiceError where its head does not answer."""
    import ray

    try:
        found = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address).get_all_node_info(timeout=TIMEOUT_S).values()
    except Exception as error:  # Ray raises its own, and plain ones
        raise _silent(error, "") from error
    names = ("is_head_node", "start_time_ms", "end_time_ms", "labels", "resources_total")
    return [node_of({"state": STATES[each.state], **{name: getattr(each, name) for name in names}}) for each in found]


def nodes_at(address: str) -> list[Node]:
    """Every node that a cluster has or had. address: of its job server. Raises ServiceError where it does not answer."""
    import httpx
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    asked = {"detail": "1", "limit": str(MOST_NODES)}
    try:
        answer = httpx.get(
            f"{address}/api/v0/nodes", params=asked, headers=get_auth_headers_if_auth_enabled({}), timeout=TIMEOUT_S
        )
        found = answer.raise_for_status().json()["data"]["result"]["result"]
    except (httpx.HTTPError, httpx.InvalidURL, KeyError, ValueError) as error:
        raise _silent(error, address) from error
    return [node_of(each) for each in found]


def _silent(error: Exception, address: str) -> ServiceError:
    return ServiceError(f"Ray's head does not list its nodes ({error})", "run `medschool doctor`", address)


def node_of(told: Mapping[str, Any]) -> Node:
    """A node from an entry of Ray's list (ray.util.state.common.NodeState, times in milliseconds)."""
    labels, ended_ms = told.get("labels") or {}, told.get("end_time_ms")
    kind = node_type({"Labels": labels, "Resources": told.get("resources_total") or {}})
    return Node(
        type=f"{kind} (head)" if told.get("is_head_node") and NODE_GROUP not in labels else kind,
        alive=told["state"] == "ALIVE",
        began_s=(told.get("start_time_ms") or 0) / 1000,
        ended_s=ended_ms / 1000 if ended_ms else None,
        usd_per_hour=price_of(labels),
    )


def bill(nodes: Sequence[Node], began_s: float, ended_s: float) -> list[dict[str, Any]]:
    """By type: `nodes` that were there between the two moments, how many are `alive`, their `hours` in between, `usd_per_hour` of
    those alive, and `usd`, None where one has no price."""
    found: dict[str, list[tuple[Node, float]]] = {}
    for node in nodes:
        hours = (min(node.ended_s or ended_s, ended_s) - max(node.began_s, began_s)) / 3600
        if hours > 0 and (node.alive or node.ended_s):
            found.setdefault(node.type, []).append((node, hours))
    return [
        {
            "type": name,
            "nodes": len(some),
            "alive": sum(node.alive for node, _ in some),
            "hours": round(sum(hours for _, hours in some), 4),
            "usd_per_hour": _sum([node.usd_per_hour for node, _ in some if node.alive]),
            "usd": _sum([None if node.usd_per_hour is None else node.usd_per_hour * hours for node, hours in some]),
        }
        for name, some in sorted(found.items())
    ]


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known), 4) if len(known) == len(values) else None
