"""The head of a cluster is lost while an echo is served from another node, and started again on the tables that it kept.

    requests ----> proxy on a node ----> its replicas               must all be answered, all the time
    requests ----> proxy on the head --> the same replicas          end with the head, and come back with it
    head: SIGKILL for the GCS, the raylet, Serve's controller and proxy --> AWAY_S --> a new head, same port, same tables

    goes on       answers of every replica and proxy on other nodes
    waits         whatever needs the head: a replica that dies is replaced, and a job is taken, once it is back
    ends          what ran on the head itself: its proxy, and job drivers. A training whose driver ended goes on from its newest
                  checkpoint when its recipe is submitted again

That the head is really back is tried: a replica is killed, and Ray must start another.

It needs `RAY_gcs_storage=rocksdb` and a folder that outlives the head (`own_cluster` sets them; in Kubernetes it is
KubeRay's `gcsFaultToleranceOptions`). Without it a new head knows nothing of the cluster before it. The drill is
done on a cluster of its own: on one that runs it would end other people's drivers.
"""

import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import httpx
import psutil

from medschool.cluster.fault_outcome import FaultOutcome
from medschool.cluster.own_cluster import OwnCluster, own_cluster
from medschool.cluster.ray_head import SERVE
from medschool.cluster.traffic import CHAT, PLACES, Outcome, Traffic
from medschool.errors import ServiceError

REPLICAS = 2
AWAY_S = 5.0
"""How long the head is away, before its start."""
CALM_S = 2.0
"""Traffic before the loss, and again after the return."""
BACK_S = 120.0
"""Longest wait for the head, and for a new replica."""
PER_S = 20.0
"""Requests a second, at each of the two proxies."""
HOST = "127.0.0.1"
FATES = {
    "goes_on": "replicas and proxies on other nodes",
    "waits": "new replicas and new jobs, for the head",
    "ends": "the head's proxy and the job drivers there; a training goes on from its newest checkpoint when submitted again",
}


def variables(worker_port: int) -> dict[str, str]:
    """For the nodes: what `medschool up` sets for Serve, and a port of its own for the proxy of a second node on one machine."""
    return {**SERVE, "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(worker_port)}


@dataclass(frozen=True)
class Moments:
    """When what happened, by time.monotonic(); None for what never came."""

    lost_s: float
    started_s: float
    """The head was started again."""
    killed_s: float
    """A replica was ended, after the return."""
    answers_s: float | None
    """The head's proxy answers again."""
    healed_s: float | None
    """Another replica runs."""


def drill_head(away_s: float, say: Callable[[str], None]) -> FaultOutcome:
    """Serve, lose the head for `away_s`, start it again, and count. Raises ServiceError when Ray or the echo does not start."""
    head_port, worker_port = _free_port(), _free_port()
    with own_cluster(head_cpus=0, variables=variables(worker_port)) as cluster:
        node_id = cluster.add_node(REPLICAS)
        key = secrets.token_urlsafe(16)
        say(f"an echo of {REPLICAS} replicas is started on a node beside the head")
        _serve(cluster, head_port, key)
        at_head, at_node = (Traffic(f"http://{HOST}:{port}", key, PER_S) for port in (head_port, worker_port))
        if _until(lambda: _answers(worker_port, key)) is None:
            raise ServiceError("the proxy of the node does not answer", "try again when this machine is less busy", "drill")
        with at_head, at_node:
            time.sleep(CALM_S)
            found = _lose(cluster, node_id, away_s, (head_port, key), say)
            time.sleep(CALM_S)
    return judge(*found, at_head.outcomes, at_node.outcomes)


def _lose(
    cluster: OwnCluster, node_id: str, away_s: float, head: tuple[int, str], say: Callable[[str], None]
) -> tuple[Moments, set[int], set[int]]:
    """What happens while the traffic runs: when, and the processes of the replicas before and after the head was away."""
    before = _replicas(cluster, node_id)
    say("the head is lost")
    lost_s = time.monotonic()
    cluster.lose_head()
    time.sleep(away_s)
    say("the head is started again")
    cluster.start_head()
    started_s = time.monotonic()
    answers_s = _until(lambda: _answers(*head))
    after = _replicas(cluster, node_id)
    say("a replica is killed: the head must start another")
    killed = min(before)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(killed).kill()
    killed_s = time.monotonic()
    healed_s = _until(lambda: len(_replicas(cluster, node_id) - {killed}) == REPLICAS)
    return Moments(lost_s, started_s, killed_s, answers_s, healed_s), before, after


def judge(at: Moments, before: set[int], after: set[int], at_head: list[Outcome], at_node: list[Outcome]) -> FaultOutcome:
    """Hold what was seen against what is promised.

    before, after: processes of the replicas when the head was lost, and was back.
    """
    until_kill = [outcome for outcome in at_node if outcome.began_s < at.killed_s]
    while_away = [outcome for outcome in until_kill if at.lost_s < outcome.began_s < at.started_s]
    missed = [outcome for outcome in until_kill if outcome.status != 200]
    missed_at_head = [outcome for outcome in at_head if outcome.status != 200 and outcome.began_s < at.killed_s]
    reasons = {
        "no request was asked while the head was away": not while_away,
        "the head's own proxy missed no request: it was not away": not missed_at_head,
        f"{len(missed)} requests failed on a node that was not lost, {_codes(missed)}": bool(missed),
        f"replicas ended with the head: {sorted(before - after)}": not before or bool(before - after),
        f"the head's proxy did not answer within {BACK_S:g} s": at.answers_s is None,
        f"a replica that died afterwards was not replaced within {BACK_S:g} s": at.healed_s is None,
    }
    return FaultOutcome(
        fault="head",
        reasons=tuple(reason for reason, holds in reasons.items() if holds),
        recovery_s=None if at.answers_s is None else at.answers_s - at.lost_s,
        requests=len(until_kill),
        requests_failed=len(missed),
        seen={
            "away_s": at.started_s - at.lost_s,
            "requests_while_away": len(while_away),
            "slowest_request_s": max((outcome.seconds for outcome in until_kill), default=None),
            "requests_failed_at_the_head": len(missed_at_head),
            "replicas_kept": len(before & after),
            "replica_replaced_s": None if at.healed_s is None else at.healed_s - at.killed_s,
            **(FATES if not missed else {}),
        },
    )


def _serve(cluster: OwnCluster, port: int, key: str) -> None:
    """Deploy the echo as any model, and disconnect."""
    import ray

    from medschool.serve.keys import hash_key
    from medschool.serve.on_ray import ChatArgs, deploy

    cluster.connect()
    try:
        args = ChatArgs(
            engine="echo",
            served_name="echo",
            api_key_sha256=(hash_key(key),),
            max_context_tokens=256,
            max_waiting_requests=PLACES,  # a machine that stands still for a while must not be taken for a lost request
            min_replicas=REPLICAS,
            max_replicas=REPLICAS,
            start_timeout_s=BACK_S,
        )
        deploy(args, port)
    finally:
        ray.shutdown()


def _replicas(cluster: OwnCluster, node_id: str) -> set[int]:
    """Processes of the echo's replicas."""
    found = set()
    for worker in cluster.workers(node_id):
        with suppress(psutil.Error):
            if "ServeReplica" in " ".join(worker.cmdline()):
                found.add(worker.pid)
    return found


def _answers(port: int, key: str) -> bool:
    body = {"model": "echo", "messages": [{"role": "user", "content": "well"}], "max_tokens": 4}
    with suppress(httpx.HTTPError):
        url, headers = f"http://{HOST}:{port}{CHAT}", {"authorization": f"Bearer {key}"}
        return httpx.post(url, headers=headers, json=body, timeout=5).status_code == 200
    return False


def _until(holds: Callable[[], bool]) -> float | None:
    """time.monotonic() once it holds; None when it never does."""
    limit_s = time.monotonic() + BACK_S
    while not holds():
        if time.monotonic() > limit_s:
            return None
        time.sleep(0.2)
    return time.monotonic()


def _codes(failed: list[Outcome]) -> str:
    """`first: ReadError: ...`"""
    return f"first: {failed[0].status} {failed[0].code}" if failed else ""


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
    return port
