"""A job server that answers 504 for a job it has taken, as Ray's does on an overloaded head: spoken to by Ray's own client."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from medschool.cluster import submit
from medschool.errors import ServiceError


class Busy(BaseHTTPRequestHandler):
    asked: list[str]
    known_after: int
    refusal: int

    def answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.asked.append(f"GET {self.path}")
        if self.path == "/api/version":
            self.answer(200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})
        elif self.path.startswith("/api/packages/"):
            self.answer(200, {})
        elif sum(line.startswith("GET /api/jobs/") for line in self.asked) > self.known_after:
            self.answer(
                200, {"type": "SUBMISSION", "submission_id": self.path.rsplit("/", 1)[-1], "status": "PENDING", "entrypoint": ""}
            )
        else:
            self.answer(404, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(f"POST {self.path}")
        self.answer(self.refusal, "upstream request timeout")

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Busy]]:
    handler = type("Handler", (Busy,), {"asked": [], "known_after": 1, "refusal": 504})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MEDSCHOOL_RAY_JOBS", f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    server.server_close()


def test_a_job_taken_by_a_server_too_busy_to_say_so_is_submitted_once(busy: type[Busy], tmp_path: Path) -> None:
    said: list[str] = []
    identity = submit.submit(tmp_path, "recipe", "drill", [], {}, said.append)
    assert said == [f"submitted {identity}"]
    assert sum(line.startswith("POST") for line in busy.asked) == 1
    assert busy.asked.count(f"GET /api/jobs/{identity}") == 2


def test_a_job_that_never_appears_is_said_not_to_be_taken(
    busy: type[Busy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy.known_after = 1000
    monkeypatch.setattr(submit, "TAKEN_WITHIN_S", 0.5)
    with pytest.raises(ServiceError, match=r"Ray did not take the job .*504"):
        submit.submit(tmp_path, "recipe", "drill", [], {}, print)


def test_a_refusal_is_not_asked_about(busy: type[Busy], tmp_path: Path) -> None:
    busy.refusal = 400
    with pytest.raises(ServiceError, match="400"):
        submit.submit(tmp_path, "recipe", "drill", [], {}, print)
    assert not any(line.startswith("GET /api/jobs/") for line in busy.asked)
