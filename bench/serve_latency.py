"""What Ray Serve adds to an answer: our API through its proxy and replica, beside the same API on a bare uvicorn.

The engine is the echo, which costs nothing, so what is measured is the way of a request: 64 tokens are asked for and come back,
whole or as 66 events. One client keeps one connection to each arm and asks them in turn, request by request, so whatever else
the machine does falls on both. Both arms say the same text, which is checked first.

    bare    uvicorn with our protocol, one process, gate and API in it
    serve   Ray Serve as `medschool` deploys it: proxy, router, replica; the same gate and API in the replica

Then requests a second at several clients, arm after arm. Aims: at one client at most 4 ms more at the median; the figures are
printed and nothing is asserted. Times in ms; `added` is the difference of the medians of one repetition.

`python bench/serve_latency.py [--reps 5] [--requests 300] [--clients 8,64] [--seconds 5]`; with RAY_SERVE_USE_GRPC_BY_DEFAULT=0
before it requests reach the replica as calls of an actor.
"""

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from side_by_side import in_fresh_process, interval, machine, spread
from small_run import ENVIRONMENT, ROOT, own_ray

from medschool.cluster.ray_head import SERVE

sys.path.append(str(ROOT / "tests"))
KEY = "bench"
CHAT = "/v1/chat/completions"
TEXT = "x" * 64
ARMS = ("bare", "serve")
PLACES = 128
KINDS = ("whole", "first event", "all events")


def body(streamed: bool) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": TEXT}], "stream": streamed}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def bare(port: int) -> None:
    """The API on uvicorn, in a process of its own, until that is ended."""
    import uvicorn

    from medschool.serve.admission import Limits
    from medschool.serve.api import ModelInfo, build_api
    from medschool.serve.deadline import TimedProtocol
    from medschool.serve.engine import EchoEngine
    from medschool.serve.keys import Key, KeyRing, hash_key
    from medschool.serve.template import BytesText

    ring = KeyRing([Key("bench", hash_key(KEY))])
    app = build_api(EchoEngine(), BytesText(), ModelInfo("echo", "echo", 0), ring, Limits(1024, PLACES))
    uvicorn.run(app, host="127.0.0.1", port=port, http=TimedProtocol, access_log=False, log_level="error")


@contextlib.contextmanager
def both() -> Iterator[dict[str, int]]:
    """The port of each arm while both serve."""
    from medschool.serve.keys import hash_key
    from medschool.serve.on_ray import ChatArgs, deploy

    ports = {arm: free_port() for arm in ARMS}
    process = multiprocessing.get_context("spawn").Process(target=bare, args=(ports["bare"],))
    process.start()
    try:
        with own_ray(8):
            args = ChatArgs(
                engine="echo", served_name="echo", max_concurrent_requests=PLACES, max_waiting_requests=PLACES,
                api_key_sha256=(hash_key(KEY),),
            )  # fmt: skip
            deploy(args, ports["serve"])
            yield ports
    finally:
        process.terminate()
        process.join()


def connected(port: int) -> http.client.HTTPConnection:
    end_s = time.monotonic() + 60
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        try:
            connection.connect()
            return connection
        except ConnectionRefusedError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.1)


def asked(connection: http.client.HTTPConnection, streamed: bool) -> tuple[str, list[float]]:
    """The answer's text, and ms until: it was whole; or its first event, and its last."""
    start_s = time.perf_counter()
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    connection.request("POST", CHAT, json.dumps(body(streamed)), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {response.read()!r}")
    if not streamed:
        raw = response.read()
        return json.loads(raw)["choices"][0]["message"]["content"], [1000 * (time.perf_counter() - start_s)]
    first = response.readline()
    first_ms = 1000 * (time.perf_counter() - start_s)
    lines = [first, *response]
    all_ms = 1000 * (time.perf_counter() - start_s)
    events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events), [first_ms, all_ms]


def one_client(ports: dict[str, int], requests: int) -> dict[str, dict[str, list[float]]]:
    """ms of each request, by arm and kind, the arms in turn; in a process that does nothing else."""
    connections = {arm: connected(port) for arm, port in ports.items()}
    for connection in connections.values():
        for number in range(40):
            text, _ = asked(connection, streamed=number % 2 == 0)
            assert text == TEXT, "both arms must say the same"
    found: dict[str, dict[str, list[float]]] = {arm: {kind: [] for kind in KINDS} for arm in ports}
    for number in range(requests):
        for arm in sorted(ports, reverse=number % 2 == 0):
            found[arm]["whole"] += asked(connections[arm], False)[1]
            first, last = asked(connections[arm], True)[1]
            found[arm]["first event"].append(first)
            found[arm]["all events"].append(last)
    return found


def many_clients(port: int, clients: int, seconds: float) -> float:
    """Whole answers a second."""
    from flood import Client, flood

    told = flood([Client("127.0.0.1", port, KEY, CHAT, body(False))] * clients, seconds)
    if set(told.statuses) != {200}:
        raise RuntimeError(f"not only answers: {told.statuses}")
    return told.statuses[200] / seconds


def p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--requests", type=int, default=300, help="of each kind, arm and repetition")
    parser.add_argument("--clients", default="8,64")
    parser.add_argument("--seconds", type=float, default=5)
    told = parser.parse_args()
    os.environ.update(ENVIRONMENT | SERVE | {name: value for name, value in os.environ.items() if name in SERVE})
    print(json.dumps(machine("ray", "uvicorn", "fastapi", "httptools") | {"load": os.getloadavg()}))
    with both() as ports:
        runs = []
        for rep in range(told.reps):
            runs.append(in_fresh_process(one_client, ports, told.requests))
            now = {arm: round(statistics.median(found["whole"]), 2) for arm, found in runs[-1].items()}
            print(f"rep {rep} (load {os.getloadavg()[0]:.1f}): whole answer, median ms {json.dumps(now)}", flush=True)
        for kind in KINDS:
            for arm in ARMS:
                print(f"  {kind:<12} {arm:<6} p50 {spread([statistics.median(run[arm][kind]) for run in runs])}")
                print(f"  {'':<12} {'':<6} p99 {spread([p99(run[arm][kind]) for run in runs])}")
            for name, figure in (("p50", statistics.median), ("p99", p99)):
                added = [figure(run["serve"][kind]) - figure(run["bare"][kind]) for run in runs]
                print(f"  {kind:<12} added  {name} {spread(added)}")
        for clients in map(int, filter(None, told.clients.split(","))):
            rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
            for rep in range(told.reps):
                for arm in sorted(ARMS, reverse=rep % 2 == 0):
                    rates[arm].append(in_fresh_process(many_clients, ports[arm], clients, told.seconds))
            for arm in ARMS:
                print(f"  {clients} clients  {arm:<6} answers/s {spread(rates[arm])}")
            ratio, low, high = interval(rates["serve"], rates["bare"])
            print(f"  {clients} clients  serve against bare {ratio:.2f} [{low:.2f}, {high:.2f}]", flush=True)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
