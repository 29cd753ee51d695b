"""A real MLflow server that is away, answers 500 or is slow: the journal never waits, and every point arrives once, in order.

The server stands behind a proxy of this test, which is told how to behave. SQLite, as `medschool up` has it.
"""

import http.client
import http.server
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medschool import track
from medschool.track import Journal, TrackedRun, replay

pytestmark = pytest.mark.timeout(240)
KEYS = ("loss", "lr", "loss/books")


class Proxy:
    """Hands requests on to a server: as they come, refused, answered by 500, or so late that the client has given up."""

    def __init__(self, port: int) -> None:
        self.mode, self.hit = "up", dict.fromkeys(("up", "down", "500", "slow"), 0)
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def any(self) -> None:
                mode = proxy.mode
                proxy.hit[mode] += 1
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if mode == "down":
                    self.close_connection = True
                    return
                if mode == "500":
                    self.answer(500, b"{}")
                    return
                onward = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
                onward.request(self.command, self.path, body, headers)
                found = onward.getresponse()
                data = found.read()
                if mode == "slow":  # written, but not answered in time
                    time.sleep(1.5)
                self.answer(found.status, data)

            def answer(self, status: int, data: bytes) -> None:
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # the client has gone
                    self.close_connection = True

            do_GET = do_POST = do_PATCH = any

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture(scope="module")
def mlflow_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server of this test's own, by its program."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder),
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                pass
            assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.2)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def proxy(mlflow_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    made = Proxy(mlflow_port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(track, "SHIP_EVERY_S", 0.1)
    monkeypatch.setattr(track, "LAST_SHIP_S", 60.0)
    yield made
    made.server.shutdown()
    made.server.server_close()


class Training:
    """Steps that are logged at a pace of their own, and how long each `log` took."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.run = path, TrackedRun("outages", name, f"run:{name}", {"lr": 1e-3})
        self.took_s: list[float] = []

    def steps(self, journal: Journal, first: int, last: int) -> None:
        for step in range(first, last + 1):
            began = time.perf_counter()
            journal.log(step, dict(zip(KEYS, (1 / step, 1e-3 * step, 2 / step), strict=True)))
            self.took_s.append(time.perf_counter() - began)
            time.sleep(0.01)

    def check(self, last: int) -> None:
        """Every point of every key once, in order, with the journal's time; as the server has it."""
        client = track.mlflow_client()
        identity = self.run.id(client)
        for key, value in zip(KEYS, (lambda step: 1 / step, lambda step: 1e-3 * step, lambda step: 2 / step), strict=True):
            history = client.get_metric_history(identity, f"pretrain/{key}")
            assert [point.step for point in history] == list(range(1, last + 1)), key
            assert [point.value for point in history] == pytest.approx([value(step) for step in range(1, last + 1)])
            assert sorted(point.timestamp for point in history) == [point.timestamp for point in history]
        experiment = client.get_experiment_by_name("outages").experiment_id
        same = client.search_runs([experiment], f"tags.`{track.FINGERPRINT_TAG}` = '{self.run.fingerprint}'")
        assert len(same) == 1 and same[0].data.params == {"lr": "0.001"}
        assert statistics.median(self.took_s) < 0.001 and max(self.took_s) < 0.9  # a request that fails takes a second


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize("fault", ["down", "500", "slow"])
@pytest.mark.parametrize("began", [True, False], ids=["mid-run", "from-the-start"])
def test_an_outage_costs_no_point_and_doubles_none(fault: str, began: bool, proxy: Proxy, tmp_path: Path) -> None:
    training = Training(tmp_path / "journal.jsonl", f"{fault}-{began}")
    with Journal(training.path, training.run, "pretrain/") as journal:
        if began:
            training.steps(journal, 1, 20)
            until(lambda: proxy.hit["up"] > 5)
        proxy.mode = fault
        training.steps(journal, 21 if began else 1, 60)
        until(lambda: proxy.hit[fault] > 2)
        proxy.mode = "up"
        training.steps(journal, 61, 80)
    training.check(80)


def test_what_outages_at_the_start_and_at_the_end_leave_out_is_made_good_from_the_finished_journal(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(track, "LAST_SHIP_S", 0.5)
    training = Training(tmp_path / "journal.jsonl", "at-both-ends")
    began, proxy.mode = time.monotonic(), "down"
    with Journal(training.path, training.run, "pretrain/") as journal:
        training.steps(journal, 1, 20)
        until(lambda: proxy.hit["down"] > 2)
        proxy.mode = "up"
        until(lambda: proxy.hit["up"] > 5)
        proxy.mode = "down"
        training.steps(journal, 21, 40)
    track.close_run(training.run, "FINISHED")  # says so, and goes on
    assert time.monotonic() - began < 30
    proxy.mode = "up"
    data = training.path.read_bytes()
    sent = replay(training.run, data, "pretrain/")
    assert 20 <= sent <= 40 and replay(training.run, data, "pretrain/") == 0
    training.check(40)


@pytest.mark.long
def test_a_resumed_run_ships_what_is_new_and_nothing_twice(proxy: Proxy, tmp_path: Path) -> None:
    training = Training(tmp_path / "journal.jsonl", "resumed")
    with Journal(training.path, training.run, "pretrain/") as journal:
        training.steps(journal, 1, 30)
    lines = training.path.read_bytes().splitlines(keepends=True)
    training.path.write_bytes(b"".join(lines[:20]))  # what the checkpoint had
    proxy.mode = "500"
    with Journal(training.path, training.run, "pretrain/") as journal:
        training.steps(journal, 21, 40)
        until(lambda: proxy.hit["500"] > 2)
        proxy.mode = "up"
    training.check(40)
    assert [json.loads(line)["step"] for line in training.path.read_bytes().splitlines()] == list(range(1, 41))


@pytest.mark.long
def test_two_processes_that_begin_a_run_in_the_same_moment_have_one(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    run, found = TrackedRun("outages", "twins", "run:twins", {"lr": 1e-3}), []
    threads = [threading.Thread(target=lambda: found.append(run.id(track.mlflow_client()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client = track.mlflow_client()
    left = client.search_runs([client.get_experiment_by_name("outages").experiment_id], "tags.`mlflow.runName` = 'twins'")
    assert [one.info.run_id for one in left] == list(set(found))
