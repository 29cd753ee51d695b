"""Requests at a steady rate against a served model, each noted with when it began and how it ended.

    with Traffic(url, key) as traffic: something happens --> traffic.outcomes: (began_s, seconds, status, code) each

It asks for short answers and waits for none before it asks again, as many clients do. Every answer but a 200 counts as failed:
nothing is asked twice, which a client of OpenAI's would do.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import httpx

CHAT = "/v1/chat/completions"
PLACES = 64
"""Requests under way at once, at most."""
TIMEOUT_S = 60.0
LEAD_S = 0.5
"""Traffic before and after the block."""


@dataclass(frozen=True)
class Outcome:
    """One request. status: 0 where no answer came. code: `error.code` of a refusal in JSON, or what was wrong on the way."""

    began_s: float
    """time.monotonic()"""
    seconds: float
    status: int
    code: str


class Traffic:
    """Context manager: `per_s` requests a second until the block's end; then `outcomes` is complete."""

    def __init__(self, url: str, key: str, per_s: float = 20, model: str = "echo") -> None:
        self._url, self._headers, self._pause_s = url + CHAT, {"authorization": f"Bearer {key}"}, 1 / per_s
        self._body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "well"}], "max_tokens": 4}
        self.outcomes: list[Outcome] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        time.sleep(LEAD_S)
        return self

    def __exit__(self, *error: object) -> None:
        time.sleep(LEAD_S)
        self._ended.set()
        self._thread.join(TIMEOUT_S)

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status != 200]

    def failed_after(self, moment_s: float) -> list[Outcome]:
        return [outcome for outcome in self.failed if outcome.began_s > moment_s]

    def _run(self) -> None:
        limits = httpx.Limits(max_connections=PLACES)
        with httpx.Client(timeout=TIMEOUT_S, limits=limits) as client, ThreadPoolExecutor(PLACES) as pool:
            while not self._ended.wait(self._pause_s):
                pool.submit(self._ask, client)

    def _ask(self, client: httpx.Client) -> None:
        began_s = time.monotonic()
        try:
            answer = client.post(self._url, headers=self._headers, json=self._body)
            status, code = answer.status_code, "" if answer.is_success else str(answer.json()["error"]["code"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            status, code = 0, f"{type(error).__name__}: {error}"
        self.outcomes.append(Outcome(began_s, time.monotonic() - began_s, status, code))
