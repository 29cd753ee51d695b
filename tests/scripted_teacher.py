"""A scripted endpoint: it stands in for a teacher behind OpenAI's chat completions, knows no medicine, and fails as it is told to.

It reads the key out of the prompt it is given and writes a rationale of the wanted form that names it, or another option with the
rate `wrong_share`. Faults come in the order in which they are listed, one a request, and each is counted when it fires: a test
that saw no fault fire has proved nothing. Used by tests only.
"""

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PAGE = b"<!doctype html><html><body>Sign in to the proxy</body></html>"
BROKEN = {
    "html": (200, "text/html", PAGE),
    "html_as_json": (200, "application/json", PAGE),
    "malformed": (200, "application/json", b'{"choices": [{"message": {"content": "The an'),
    "half": (200, "application/json", b'{"object": "error", "message": "no model is loaded"}'),
    "no_choices": (200, "application/json", b'{"choices": []}'),
    "400": (400, "application/json", b'{"error": {"message": "the prompt is too long"}}'),
    "401": (401, "application/json", b'{"error": {"message": "Incorrect API key provided"}}'),
    "404": (404, "text/html", b"<html>no such page</html>"),
    "500": (500, "application/json", b'{"error": {"message": "a fault in the model"}}'),
    "502": (502, "text/html", b"<html>Bad gateway</html>"),
}
"""Status, type and body of what may come in place of an answer."""


@dataclass
class Script:
    """What the endpoint does."""

    faults: list[str] = field(default_factory=list)
    """One a request until they are used up: names of BROKEN, `429:<Retry-After>`, `503:<Retry-After>`, `slow:<seconds>`, `hang_up`,
    `drip` (a byte at a time), `empty`, `cut`, `no_usage`, or `` for none."""
    wrong_share: float = 0.0
    """Of the answers: those that argue for another option. Drawn from the question and how often it has come."""
    delay_s: float = 0.0
    wordings: list[str] = field(default_factory=list)
    """Lines of the answer to a request for other wordings."""


class ScriptedTeacher:
    """A running endpoint, and what it has seen."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.keys: Counter[str] = Counter()
        self.fired: Counter[str] = Counter()
        self.arrivals_s: list[float] = []
        self.refused_s: list[float] = []
        """When an answer with Retry-After was sent."""
        self.tokens = 0
        self.under_way = self.most_under_way = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def prompts(self) -> list[str]:
        """Every prompt that came, in order."""
        return [str(asked["messages"][0]["content"]) for asked in self.requests]

    def begin(self, asked: dict[str, Any], key: str) -> tuple[str, int]:
        """The fault of this request, and how often its prompt has come before."""
        with self._lock:
            times = self.prompts().count(asked["messages"][0]["content"])
            self.requests.append(asked)
            self.keys[key] += 1
            self.arrivals_s.append(time.monotonic())
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            fault = self.script.faults.pop(0) if self.script.faults else ""
            self.fired[fault.partition(":")[0]] += 1
            return fault, times

    def end(self) -> None:
        with self._lock:
            self.under_way -= 1

    def completion(self, asked: dict[str, Any], fault: str, times: int) -> dict[str, Any]:
        prompt = str(asked["messages"][0]["content"])
        text = "" if fault == "empty" else self._text(prompt, times)
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(text) // 4}
        with self._lock:
            self.tokens += sum(usage.values())
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "length" if fault == "cut" else "stop",
        }
        return {"object": "chat.completion", "choices": [choice]} | ({} if fault == "no_usage" else {"usage": usage})

    def _text(self, prompt: str, times: int) -> str:
        if prompt.startswith("Rewrite "):
            return "\n".join(f"{number}. {line}" for number, line in enumerate(self.script.wordings, start=1))
        letters = re.findall(r"^([A-Z])\. ", prompt.rpartition("Question: ")[2], re.MULTILINE)
        key = re.findall(r"(?:The answer is Option|^Answer:) ([A-Z])\b", prompt, re.MULTILINE)[-1]
        draw = int.from_bytes(sha256(f"{prompt}/{times}".encode()).digest()[:4], "big") / 2**32
        named = letters[(letters.index(key) + 1) % len(letters)] if draw < self.script.wrong_share else key
        if prompt.endswith("so the analysis is"):
            return f"The signs lead there in {times + 1} steps. The answer is Option {named}."
        return "\n".join(f"Option {each} is {'TRUE' if each == named else 'FALSE'}. It is so." for each in letters)


@contextmanager
def scripted_teacher(**script: Any) -> Iterator[ScriptedTeacher]:
    """An endpoint of this process, on a free port."""
    teacher = ScriptedTeacher(Script(**script))
    try:
        yield teacher
    finally:
        teacher.close()


def _handler(teacher: ScriptedTeacher) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            fault, times = teacher.begin(asked, self.headers.get("authorization", ""))
            try:
                self._answer(asked, fault, times)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client is gone
            finally:
                teacher.end()

        def _answer(self, asked: dict[str, Any], fault: str, times: int) -> None:
            kind, _, value = fault.partition(":")
            time.sleep(float(value) if kind == "slow" else teacher.script.delay_s)
            if kind in BROKEN:
                self._send(*BROKEN[kind])
            elif kind in ("429", "503"):
                teacher.refused_s.append(time.monotonic())
                self._send(int(kind), "application/json", b'{"error": {"message": "too many"}}', {"Retry-After": value})
            elif kind == "hang_up":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                self._send(
                    200, "application/json", json.dumps(teacher.completion(asked, kind, times)).encode(), drip=kind == "drip"
                )

        def _send(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None, drip: bool = False) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            for byte in body if drip else ():
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.02)
            if not drip:
                self.wfile.write(body)

    return Handler
