"""Tell Ray that a node will be taken away: the one way of this product to drain a node.

    drain_node --GCS: reason PREEMPTION, deadline--> nothing new is placed there; Ray Train and Ray Serve move what runs there

Ray's own command `ray drain-node` sends the same message. Ray does not end the node at the deadline: whoever gave it does. A node
that has nothing left to run ends by itself.
"""

from datetime import datetime
from typing import Any

import ray
from ray.core.generated import autoscaler_pb2, gcs_pb2

from medschool.errors import ServiceError

ANSWER_S = 30


def worker_nodes(head: str) -> dict[str, str]:
    """Living nodes but the head: hex id -> address. head: of Ray's head, `host:port`."""
    nodes: list[Any] = list(ray._raylet.GcsClient(address=head).get_all_node_info(timeout=ANSWER_S).values())
    alive = [node for node in nodes if node.state == gcs_pb2.GcsNodeInfo.ALIVE and not node.is_head_node]
    return {node.node_id.hex(): str(node.node_manager_address) for node in alive}


def drain_node(head: str, node_id: str, at: datetime, message: str) -> None:
    """Tell Ray that a node will be gone at that moment, which has a time zone. message: why, for Ray's own records.

    Raises ServiceError when no such node lives beside the head, or Ray does not accept the drain.
    """
    if node_id not in worker_nodes(head):  # Ray accepts the drain of a node that never was
        raise ServiceError("Ray knows no living node of this id beside the head", "see `ray list nodes`", node_id)
    reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    accepted, why = ray._raylet.GcsClient(address=head).drain_node(node_id, reason, message, int(at.timestamp() * 1000))
    if not accepted:
        raise ServiceError(f"Ray does not drain the node ({why})", "see `ray list nodes`", node_id)
