"""What is to be done before something that serves is taken away: running answers finish.

    python -m medschool.serve.drain                  the whole application: nothing new, and an end when the last answer is whole
    python -m medschool.serve.drain NODE_ID          one node: others take over first, then its replicas finish what they have

It returns when that is done; then the machine can be stopped. It is meant for the place where a SIGTERM arrives before the
machine ends: a Kubernetes `preStop` hook, `ExecStop` of a systemd unit, the warning of a spot instance. A process of Ray itself
that gets a SIGTERM ends at once, and nothing inside it can change that.

A node is drained by Ray: nothing new is placed on it, Serve starts a replica elsewhere for each of its own and stops these when
the new ones answer. Where no other node has room, its replicas serve on; a while before the deadline, as long as the longest
answer may take, they get no more requests and finish what they have. So a deadline below that time (a spot instance gives two
minutes) stops them at once, and requests wait in the proxies until others have started.
"""

import argparse
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from medschool.cluster.drain import drain_node
from medschool.errors import ServiceError
from medschool.serve.on_ray import APP_NAME

POLL_S = 0.5


def drain_application() -> None:
    """Take the chat application away after its last answer. Needs a connection to Ray; does nothing where it does not run."""
    from ray import serve

    if APP_NAME in serve.status().applications:
        serve.delete(APP_NAME)  # routes go at once, replicas after their answers


def clear_node(address: str, node_id: str, deadline_s: float) -> None:
    """Drain a node and wait until no replica is left on it. Needs a connection to Ray.

    address: of Ray's head, `host:port`. node_id: hex, as `ray list nodes` shows it. deadline_s: longest wait, at least 1 s.
    Raises ServiceError when Ray does not know or drain the node, or replicas are left at the deadline.
    """
    drain_node(address, node_id, datetime.now(UTC) + timedelta(seconds=deadline_s), "medschool.serve.drain")
    deadline = time.monotonic() + deadline_s
    while left := [replica for replica in _replicas() if replica.get("node_id") == node_id]:
        if time.monotonic() > deadline:
            raise ServiceError(f"{len(left)} replicas are left on the node", "add a node, or allow more time", node_id)
        time.sleep(POLL_S)


def _replicas() -> list[dict[str, Any]]:
    """Replicas that live, with their node, as Serve's controller knows them."""
    from ray.serve.context import _get_global_client

    apps = _get_global_client().get_serve_details()["applications"]
    return [replica for app in apps.values() for part in app["deployments"].values() for replica in part["replicas"]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Running answers finish, then it returns.")
    parser.add_argument("node", nargs="?", help="the node's id; the whole application when left out")
    parser.add_argument("--deadline-s", type=float, default=900.0, help="longest wait for a node, in seconds")
    args = parser.parse_args()
    import ray

    context = ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    try:
        if args.node:
            clear_node(context.address_info["gcs_address"], args.node, args.deadline_s)
        else:
            drain_application()
    except ServiceError as error:
        sys.exit(f"error: {error.where}: {error.problem}\nfix: {error.remedy}")


if __name__ == "__main__":
    main()
