"""Where a replica listens for Serve's other processes: at the node's own address, not at every address of the machine.

Ray Serve 2.60 opens a gRPC server on all interfaces in each replica (`_on_initialized` of serve/_private/replica.py), used or
not, and unpickles what it is sent. With the cluster's token on it asks for that first. On one machine nobody outside needs to
reach it at all: there the node's address is 127.0.0.1. Serve has no setting for it: its one call that opens the port is wrapped.
"""

from typing import Any

import ray
from ray.serve._private import replica

_open_port = replica.add_port_to_grpc_server


def listen_on_own_address() -> None:
    """In this process from now on. Called by a replica while it is built, before Serve opens the port."""
    replica.add_port_to_grpc_server = _at_own_address


def _at_own_address(server: Any, address: str) -> int:
    node = ray.util.get_node_ip_address()
    port: int = _open_port(server, address.replace("[::]", f"[{node}]" if ":" in node else node))
    return port
