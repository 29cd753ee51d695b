"""The cloud's notice that a spot node will be taken away, passed on to Ray as a drain with its deadline.

AWS tells an instance two minutes ahead, on the metadata service that only the instance itself reaches. Ray's launcher for
virtual machines does not read it, and would learn of the loss when the node is gone. Told in time, Ray starts nothing new there,
Ray Train saves what it has, and the loss counts as a preemption, not as a failure.

    python -m medschool.cluster.spot_notice --head ADDRESS      one on each node, beside `ray start`; cluster.yaml starts it

Source: Amazon EC2 User Guide, "Spot Instance interruption notices": `spot/instance-action` answers 404 until there is a notice,
and should be asked every five seconds; the token is version 2 of the metadata service.
"""

import argparse
import time
from datetime import UTC, datetime

import httpx
import ray

from medschool.cluster.drain import drain_node, worker_nodes
from medschool.errors import ServiceError

METADATA = "http://169.254.169.254"
ASK_EVERY_S = 5.0
ANSWER_S = 2.0


def notice(metadata: str) -> datetime | None:
    """When this node will be taken away; None while nothing says so. Raises httpx.HTTPError when it does not answer."""
    with httpx.Client(base_url=metadata, timeout=ANSWER_S, trust_env=False) as client:
        token = client.put("/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}).raise_for_status().text
        answer = client.get("/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token})
    if answer.status_code == httpx.codes.NOT_FOUND:
        return None
    return datetime.fromisoformat(answer.raise_for_status().json()["time"])


def drain(head: str, own_address: str, at: datetime) -> str:
    """Tell Ray that the node at `own_address` will be gone at that moment; the node's id.

    Raises LookupError when Ray knows no living node there, ServiceError when it does not accept the drain.
    """
    found = next((node_id for node_id, address in worker_nodes(head).items() if address == own_address), None)
    if found is None:
        raise LookupError(f"Ray knows no node at {own_address}")
    drain_node(head, found, at, "spot interruption notice")
    return found


def watch(head: str, own_address: str, metadata: str) -> None:
    """Ask until there is a notice, pass it on, and end. A metadata service that does not answer is asked again."""
    while True:
        try:
            if at := notice(metadata):
                node = drain(head, own_address, at)
                left_s = (at - datetime.now(UTC)).total_seconds()
                print(f"spot notice: node {node} is gone in {left_s:.0f} s, Ray drains it", flush=True)
                return
        except (httpx.HTTPError, LookupError, RuntimeError, ServiceError, ValueError) as error:
            print(f"spot notice: {type(error).__name__}: {error}; asked again", flush=True)
        time.sleep(ASK_EVERY_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--head", required=True, help="address of Ray's head, as in 10.0.0.1:6379")
    asked = parser.parse_args()
    watch(asked.head, ray.util.get_node_ip_address(), METADATA)


if __name__ == "__main__":
    main()
