"""The application on Ray Serve under load, slow clients and prying eyes, with the engine that has no weights."""

import json
import os
import secrets
import select
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray
from flood import Client, Held, Told, flood, held, room_for_files, serving, slope, watched
from paced import Paced
from ray import serve
from served import free_port, wait_until

from medschool.serve import keys
from medschool.serve.deadline import HEADER_TIMEOUT_S
from medschool.serve.keys import hash_key
from medschool.serve.on_ray import ChatArgs, deploy
from medschool.serve.proxy import STEERING

KEY = f"msk_canary_{secrets.token_hex(8)}"
PATIENT = f"Zebra{secrets.token_hex(8)}"
"""Words that must not stand anywhere but in the answer."""
LIMITED = 40
CHAT = "/v1/chat/completions"
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "The heart pumps blood."}], "n": 2}
STREAMED = {**HELLO, "n": 1, "stream": True}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where keys and the audit log lie."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def limited_key(store: Path) -> str:
    return keys.create(str(store), "limited", requests_per_minute=LIMITED)


@pytest.fixture(scope="module")
def url(ray_cluster: None, store: Path, limited_key: str) -> Iterator[str]:
    args = ChatArgs(
        engine="echo",
        served_name="echo",
        max_context_tokens=70_000,
        max_concurrent_requests=8,
        max_waiting_requests=8,
        api_key_sha256=(hash_key(KEY),),
        store=str(store),
    )
    port = free_port()
    try:
        yield deploy(args, port)
    finally:
        serve.shutdown()


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=30) as client:
        yield client


def in_flight(http: httpx.Client, prefix: str = "") -> float:
    """Answers that the replica counts as running or waiting."""
    (line,) = [
        line for line in http.get(f"{prefix}/metrics").text.splitlines() if line.startswith("medschool_serve_answers_in_flight ")
    ]
    return float(line.split()[1])


# ---- slow sockets: opened first, so that no test waits for the whole deadline

HALF_A_HEADER = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bear".encode()
HALF_A_BODY = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: 1000\r\n\r\n{{".encode()


def opened(url: str, stack: ExitStack, count: int, sent: bytes) -> list[socket.socket]:
    """So many connections that have sent this and then say nothing."""
    host, port = url.removeprefix("http://").split(":")
    found = [stack.enter_context(socket.create_connection((host, int(port)), timeout=10)) for _ in range(count)]
    for one in found:
        one.sendall(sent)
    return found


def read_to_the_end(slow: socket.socket, most_s: float) -> bytes:
    """What is answered until the server closes. Raises TimeoutError where it does not."""
    slow.settimeout(most_s)
    answer = b""
    try:
        while data := slow.recv(65536):
            answer += data
    except ConnectionResetError:
        pass
    return answer


@pytest.fixture(scope="module")
def slow_sockets(url: str) -> Iterator[tuple[list[socket.socket], list[socket.socket]]]:
    """Clients that have sent half a header, and clients with a key that have sent half a body."""
    with ExitStack() as stack:
        yield opened(url, stack, 40, HALF_A_HEADER), opened(url, stack, 4, HALF_A_BODY)


def test_slow_sockets_do_not_hold_others_up(slow_sockets: object, http: httpx.Client) -> None:
    assert [http.post(CHAT, json=HELLO).status_code for _ in range(10)] == [200] * 10


@pytest.mark.parametrize(("key", "status"), [(KEY, b"413"), ("wrong", b"401")])
def test_an_endless_body_is_cut_off_by_the_proxy(url: str, key: str, status: bytes) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    host, port = url.removeprefix("http://").split(":")
    answer, sent = b"", 0
    with socket.create_connection((host, int(port)), timeout=5) as endless:
        try:
            endless.sendall(head)
            while sent < 256 * 2**20 and not answer:
                endless.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
                if select.select([endless], [], [], 0)[0]:
                    answer = endless.recv(65536)
        except ConnectionError:
            pass
    assert sent < 64 * 2**20 and answer[9:12] in {status, b""}, (sent, answer)


@pytest.mark.parametrize("value", [b"\xff\xfe", b"0.000001", b"?1", b"x" * 500], ids=["no text", "at once", "yes", "long"])
def test_no_header_of_a_client_steers_or_breaks_the_proxy(url: str, value: bytes) -> None:
    """Each of those that Ray Serve obeys, in a request that is answered like any other."""
    names = (*STEERING, b"x-request-id", b"x_session_id", b"serve_multiplexed_model_id", b"x-serve-router-model", b"traceparent")
    for name in names:
        request = (
            Client.of(url, KEY, CHAT, HELLO).sent().replace(b"host: x\r\n", b"host: x\r\n" + name + b": " + value + b"\r\n", 1)
        )
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as asking:
            asking.sendall(request)
            assert asking.recv(12) == b"HTTP/1.1 200", name


# ---- many clients


def assert_only_answers_or_come_back_later(told: Told) -> None:
    assert set(told.statuses) <= {200, 429}, told.statuses
    assert told.statuses[200] and not told.unhelpful and not told.torn, told


def test_too_many_clients_are_answered_or_told_when_to_come_back(url: str, http: httpx.Client) -> None:
    clients = [Client.of(url, KEY, CHAT, STREAMED if number % 2 else HELLO) for number in range(80)]
    told = flood(clients, 2)
    assert_only_answers_or_come_back_later(told)
    assert told.statuses[429], "the load was above what is let in"
    wait_until(lambda: in_flight(http) == 0, timeout_s=30)


def test_a_limit_holds_through_the_proxies(url: str, limited_key: str) -> None:
    told = flood([Client.of(url, limited_key, "/v1/models") for _ in range(60)], 1.5)
    assert_only_answers_or_come_back_later(told)
    assert told.statuses[200] == LIMITED


def audited(store: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in store.rglob("*.jsonl") for line in path.read_text().splitlines()]


# ---- clients that leave


@pytest.fixture(scope="module")
def paced_url(url: str, store: Path) -> Iterator[str]:
    """A second application beside the first, whose answers of 1,000 tokens take ten seconds and more."""
    paced = serve.deployment(name="Paced", max_ongoing_requests=40)(serve.ingress()(Paced))
    serve.run(paced.bind(hash_key(KEY), str(store / "left"), 0.01, 16), name="paced", route_prefix="/paced")
    yield url
    serve.delete("paced")


SLOWLY: dict[str, Any] = {**STREAMED, "messages": [{"role": "user", "content": "x" * 1000}]}


def leave(url: str, count: int, headers: str = "") -> None:
    """So many clients read the beginning of an answer and go away without a word."""
    request = Client.of(url, KEY, f"/paced{CHAT}", SLOWLY).sent().replace(b"host: x\r\n", f"host: x\r\n{headers}".encode(), 1)
    with ExitStack() as stack:
        for one in opened(url, stack, count, request):
            assert one.recv(12) == b"HTTP/1.1 200"


def left(store: Path) -> Counter[str]:
    return Counter(record["outcome"] for record in audited(store / "left"))


@pytest.mark.parametrize("headers", ["", "x-request-disconnect-disabled: ?1\r\n"], ids=["", "not to be looked after"])
def test_clients_that_leave_free_their_places_and_are_on_record(
    paced_url: str, http: httpx.Client, store: Path, headers: str
) -> None:
    before = left(store)
    leave(paced_url, 8, headers)
    wait_until(lambda: in_flight(http, "/paced") == 0, timeout_s=30)
    wait_until(lambda: left(store) - before == {"left": 8}, timeout_s=10)


def test_serve_listens_on_loopback_alone(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    sockets = [each for process in family for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    assert {each.laddr.ip for each in sockets if each.laddr.port == port} == {"127.0.0.1"}


def test_a_replica_listens_at_the_address_of_its_node(url: str) -> None:
    """But for the port that Ray opens in each of its workers; `medschool up` has that one on loopback too (tests/e2e)."""
    family = psutil.Process().children(recursive=True)
    replicas = [process for process in family if "ray::ServeReplica:chat:" in " ".join(process.cmdline())]
    sockets = [each for process in replicas for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    found = Counter(each.laddr.ip.removeprefix("::ffff:") for each in sockets)
    assert found[ray.util.get_node_ip_address()] > 0 and found["::"] == len(replicas)


# ---- what is written down


def test_neither_a_key_nor_a_prompt_is_in_any_log(url: str, http: httpx.Client, store: Path) -> None:
    """Asked well and badly, so that refusals and faults are logged too; then every file of this Ray is read."""
    prompt = {"messages": [{"role": "user", "content": f"{PATIENT} has a cough"}]}
    answer = http.post(CHAT, json=HELLO | prompt)
    assert PATIENT in answer.text and answer.status_code == 200
    wrong: list[dict[str, Any]] = [
        {"temperature": PATIENT},
        {PATIENT: 1, "n": PATIENT},
        {"logit_bias": {PATIENT: 1}},
        {"model": PATIENT},
    ]
    for fields in wrong:
        refused = http.post(CHAT, json=HELLO | prompt | fields)
        assert refused.status_code in {400, 404} and PATIENT not in refused.text and KEY not in refused.text
    assert http.post(CHAT, content=f'{{"messages": "{PATIENT}').status_code == 400
    assert httpx.get(f"{url}/v1/models", params={"api_key": KEY}).status_code == 401
    assert httpx.get(f"{url}/v1/models", headers={"authorization": f"Basic {KEY}"}).status_code == 401
    assert http.post("/tokenize", json={"prompt": PATIENT}).status_code == 200
    assert http.post("/v1/completions", json={"model": "echo", "prompt": PATIENT}).status_code == 200
    logs = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent / "ray"

    def logged() -> str:
        paths = [path for path in logs.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**26]
        return "".join(path.read_text(errors="replace") for path in paths)

    wait_until(lambda: "POST / 400" in logged() and "POST / 200" in logged(), timeout_s=20)
    wait_until(lambda: any(record["path"] == "/v1/completions" for record in audited(store / "audit")), timeout_s=10)
    places = {
        "logs": logged(),
        "metrics": http.get("/metrics").text,
        "status": repr(serve.status()),
        "audit": json.dumps(audited(store / "audit")),
        "keys": "".join(path.read_text() for path in (store / "keys").rglob("*.json")),
    }
    for name, text in places.items():
        assert text and PATIENT not in text and KEY not in text, name


def test_slow_sockets_are_closed(slow_sockets: tuple[list[socket.socket], list[socket.socket]]) -> None:
    headers, bodies = slow_sockets
    assert [read_to_the_end(one, HEADER_TIMEOUT_S + 5) for one in headers] == [b""] * len(headers)
    for one in bodies:
        assert read_to_the_end(one, HEADER_TIMEOUT_S + 5).startswith(b"HTTP/1.1 408")


# ---- in full counts

FLAT_MIB = 100


def print_figures(name: str, told: Told, before: Held, after: Held) -> None:
    print(f"{name}: {dict(told.statuses)}, first byte p99 {told.p99_s():.2f} s, before {before}, after {after}")


@pytest.mark.long
def test_a_thousand_clients_for_a_minute(url: str, http: httpx.Client) -> None:
    """200 or 429 only, flat memory, and nothing is held afterwards."""
    assert room_for_files(4096)
    clients = [Client.of(url, KEY, CHAT, STREAMED if number % 2 else HELLO) for number in range(1000)]
    flood(clients, 15)  # buffers and pools grow to their size
    before = held(serving())
    told = flood(clients, 60)
    time.sleep(2)
    after = held(serving())
    print_figures("1,000 clients, 60 s", told, before, after)
    assert_only_answers_or_come_back_later(told)
    assert after.rss_mib - before.rss_mib < FLAT_MIB and after.files <= before.files + 50
    assert told.p99_s() < 30
    assert in_flight(http) == 0


@pytest.mark.long
def test_a_limit_holds_under_a_thousand_clients(url: str, store: Path) -> None:
    limit = 200  # two cores shared with a thousand clients that never wait let few through
    secret = keys.create(str(store), "thousand", requests_per_minute=limit)
    wait_until(lambda: httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {secret}"}).status_code == 200, 30)
    told = flood([Client.of(url, secret, "/v1/models") for _ in range(1000)], 40)
    print(f"1,000 clients, a limit of {limit} a minute: {dict(told.statuses)}")
    assert set(told.statuses) <= {200, 429} and 0.98 * limit <= told.statuses[200] + 1 <= limit


@pytest.mark.long
def test_five_hundred_slow_sockets(url: str, http: httpx.Client) -> None:
    """All are closed in time, and who is not slow is served as fast as without them."""
    assert room_for_files(4096)

    def median_ms() -> float:
        times = []
        for _ in range(300):
            start_s = time.perf_counter()
            assert http.post(CHAT, json=HELLO).status_code == 200
            times.append(1000 * (time.perf_counter() - start_s))
        return statistics.median(times)

    median_ms()
    before_ms = median_ms()
    with ExitStack() as stack:
        start_s = time.monotonic()
        slow = opened(url, stack, 500, HALF_A_HEADER)
        during_ms = median_ms()
        assert [read_to_the_end(one, HEADER_TIMEOUT_S + 5) for one in slow] == [b""] * len(slow)
        closed_s = time.monotonic() - start_s
    print(f"500 slow sockets: closed after {closed_s:.1f} s, median {before_ms:.1f} ms before, {during_ms:.1f} ms meanwhile")
    assert closed_s < HEADER_TIMEOUT_S + 5
    assert during_ms < 1.2 * before_ms + 1


@pytest.mark.long
def test_two_hundred_clients_leave(paced_url: str, http: httpx.Client, store: Path) -> None:
    before = left(store)
    for _ in range(20):
        leave(paced_url, 10)
        wait_until(lambda: in_flight(http, "/paced") == 0, timeout_s=3)
    wait_until(lambda: left(store) - before == {"left": 200}, timeout_s=10)


def soak(url: str, seconds: float, every_s: float) -> tuple[Told, list[tuple[float, Held]]]:
    """Mixed load: whole and streamed answers, refusals, wrong keys, clients that leave; what is held, by hours."""
    ready = [
        Client.of(url, KEY, CHAT, HELLO), Client.of(url, KEY, CHAT, STREAMED), Client.of(url, KEY, CHAT, {**HELLO, "n": 99}),
        Client.of(url, "wrong", CHAT, HELLO), Client.of(url, KEY, "/v1/models"), Client.of(url, KEY, "/metrics"),
    ]  # fmt: skip
    points, found = list[tuple[float, Held]](), list[Told]()
    load = threading.Thread(target=lambda: found.append(flood(ready * 2, seconds)))
    start_s, processes = time.monotonic(), serving()
    load.start()

    def look() -> None:
        leave(url, 2)
        points.append(((time.monotonic() - start_s) / 3600, held(processes)))

    watched(seconds - every_s, every_s, look)
    load.join()
    return found[0], points


@pytest.mark.long
@pytest.mark.timeout(4500)
def test_an_hour_of_mixed_load_leaves_nothing_behind(paced_url: str, http: httpx.Client) -> None:
    """The second half of the hour shows no growth: less than FLAT_MIB, 20 files and 5 threads an hour."""
    told, points = soak(paced_url, 3600, 10)
    late = points[len(points) // 2 :]
    grown = {name: slope([(hour, getattr(one, name)) for hour, one in late]) for name in ("rss_mib", "files", "threads")}
    print(f"an hour: {dict(told.statuses)}, growth an hour {grown}, at the end {late[-1][1]}")
    assert set(told.statuses) <= {200, 400, 401, 429} and not told.torn
    assert grown["rss_mib"] < FLAT_MIB and grown["files"] < 20 and grown["threads"] < 5
    assert in_flight(http) == 0
