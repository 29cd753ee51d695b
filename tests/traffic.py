"""Requests at a steady rate against a served echo, each noted with when it began and how it ended."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import httpx

KEY = "operation-test-key"
HEADERS = {"authorization": f"Bearer {KEY}"}
CHAT = "/v1/chat/completions"


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **fields}


@dataclass(frozen=True)
class Outcome:
    """One request. status: 0 where no answer came. code: `error.code` of a refusal in JSON, or what was wrong with the connection."""

    began_s: float
    seconds: float
    status: int
    code: str


class Traffic:
    """`per_s` requests a second from `with` until its end; then `outcomes` is complete."""

    def __init__(self, url: str, per_s: float = 20) -> None:
        self._url, self._pause_s = url + CHAT, 1 / per_s
        self.outcomes: list[Outcome] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        time.sleep(0.5)
        return self

    def __exit__(self, *error: object) -> None:
        time.sleep(0.5)
        self._ended.set()
        self._thread.join(60)
        assert len(self.outcomes) > 5, "there was traffic"

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status != 200]

    def failed_after(self, moment_s: float) -> list[Outcome]:
        return [outcome for outcome in self.failed if outcome.began_s > moment_s]

    def _run(self) -> None:
        with httpx.Client(timeout=60, limits=httpx.Limits(max_connections=64)) as client, ThreadPoolExecutor(64) as pool:
            while not self._ended.wait(self._pause_s):
                pool.submit(self._ask, client)

    def _ask(self, client: httpx.Client) -> None:
        began_s = time.monotonic()
        try:
            answer = client.post(self._url, headers=HEADERS, json=body("well", max_tokens=4))
            status, code = answer.status_code, "" if answer.is_success else str(answer.json()["error"]["code"])
        except (httpx.HTTPError, ValueError) as error:
            status, code = 0, f"{type(error).__name__}: {error}"
        self.outcomes.append(Outcome(began_s, time.monotonic() - began_s, status, code))


class Reader(threading.Thread):
    """Reads one stream to its end, in a thread; `whole` is whether it ended as it should, `text` all that came."""

    def __init__(self, url: str, words: str, **fields: Any) -> None:
        super().__init__(daemon=True)
        self._url, self._body = url + CHAT, body(words, stream=True, **fields)
        self.text, self.problem = "", ""
        self.begun = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", self._url, headers=HEADERS, json=self._body, timeout=120) as answer:
                for piece in answer.iter_text():
                    self.text += piece
                    self.begun.set()
        except httpx.HTTPError as error:
            self.problem = f"{type(error).__name__}: {error}"
        self.begun.set()

    @property
    def whole(self) -> bool:
        self.join(120)
        return self.text.endswith("data: [DONE]\n\n") and '"error"' not in self.text and not self.problem
