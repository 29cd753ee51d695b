"""One request to an endpoint that speaks OpenAI's chat completions, over plain HTTP (httpx), and what came back.

    a completion                       an Answer, also where it is empty or cut off: it was paid for
    429, 5xx, timeout, no connection   a Fault that may pass (`again`), with what its Retry-After says
    HTML, no JSON, another JSON        a Fault
    400, 413, 422                      a Fault that is `refused`: this prompt will never be answered
    401, 403, 404, redirects           ServiceError: the key, the model or the address is wrong

The key comes from MEDSCHOOL_TEACHER_KEY; it goes into the one header and nowhere else, and what a server says while it refuses a
key is never shown. The answer is not streamed, and no `seed` is sent: not every server takes one.
"""

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from pydantic import BaseModel, NonNegativeInt, ValidationError

from medschool.errors import InputError, ServiceError
from medschool.instructions.answers import Answer
from medschool.instructions.spending import Ledger, prompt_bound
from medschool.recipe.instructions import Teacher

KEY = "MEDSCHOOL_TEACHER_KEY"
CONNECT_S = 10.0
ANSWER_BYTES = 8 * 2**20
"""Longest body that is read; a completion of 10,000 tokens has 50 KB."""
SAID_CHARS = 160
BUSY = (429, 503, 529)
REFUSED = (400, 413, 422)


@dataclass(frozen=True)
class Fault:
    """What came back in place of an answer."""

    kind: str
    """`html`, `not_json`, `no_completion`, `too_large`, `refused`, `http_500`, `timeout`, `connection`..."""
    says: str
    again: bool = False
    """Whether the same request may do better in a while."""
    busy: bool = False
    """Whether the teacher said that it has too much to do; it may say so for as long as others are answered."""
    wait_s: float | None = None
    """As its Retry-After says."""


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt


class _Completion(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None


class Endpoint:
    """Where the teacher is asked; used by many threads. Raises InputError for an address, ServiceError for a key that is none."""

    def __init__(self, teacher: Teacher, ledger: Ledger) -> None:
        self.teacher, self.ledger = teacher, ledger
        self._key = _key()
        self._completions = _address(teacher)
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(teacher.timeout_s, connect=min(CONNECT_S, teacher.timeout_s)),
            limits=httpx.Limits(max_connections=teacher.concurrency),
        )

    def close(self) -> None:
        self._http.close()

    def send(self, messages: list[dict[str, str]]) -> Answer | Fault:
        """One request. Raises ServiceError where it is no use to send another."""
        self.ledger.add("requests")
        asked = {"model": self.teacher.model, "messages": messages, "temperature": self.teacher.temperature}
        try:
            status, headers, body = self._post(asked | {"max_tokens": self.teacher.max_answer_tokens})
        except httpx.TimeoutException:
            return Fault("timeout", f"no whole answer within {self.teacher.timeout_s:g} s", again=True)
        except httpx.HTTPError as error:
            return Fault("connection", self._safe(str(error) or type(error).__name__), again=True)
        if status == 200:
            return self._read(messages, body, headers)
        if status in (401, 403):
            problem = f"the teacher refuses the key ({status})" if self._key else f"the teacher wants a key ({status})"
            raise ServiceError(problem, f"set {KEY} where Ray runs, before it is started", self.teacher.url)
        says = self._safe(_words(body))
        if status in REFUSED:
            return Fault("refused", f"{status}: {says}")
        if status == 429 or status >= 500:
            return Fault(f"http_{status}", says, again=True, busy=status in BUSY, wait_s=retry_after_s(headers))
        raise ServiceError(
            f"the teacher answers {status}: {says}",
            f"check teacher.url and teacher.model ({self.teacher.model}); the URL ends where /chat/completions follows",
            self.teacher.url,
        )

    def _post(self, asked: dict[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body, the whole of it within timeout_s; httpx itself limits the time between two bytes only."""
        limit, body = time.monotonic() + self.teacher.timeout_s, bytearray()
        with self._http.stream("POST", self._completions, json=asked) as response:
            for piece in response.iter_bytes():
                body += piece
                if time.monotonic() > limit:
                    raise httpx.ReadTimeout("the answer came too slowly")
                if len(body) > ANSWER_BYTES:
                    break
            return response.status_code, response.headers, bytes(body)

    def _read(self, messages: list[dict[str, str]], body: bytes, headers: httpx.Headers) -> Answer | Fault:
        """The answer in a body of status 200. Where it does not say its tokens, the most that it can have are counted."""
        if len(body) > ANSWER_BYTES:
            return Fault("too_large", f"more than {ANSWER_BYTES} bytes")
        if "html" in headers.get("content-type", "") or body.lstrip()[:1] == b"<":
            return Fault("html", f"a page: {self._safe(_words(body))}")
        try:
            found = _Completion.model_validate_json(body)
        except ValidationError as error:
            kind = "not_json" if error.errors()[0]["type"] == "json_invalid" else "no_completion"
            return Fault(kind, self._safe(_words(body)) or "nothing")
        if not found.choices:
            return Fault("no_completion", "no choices")
        text, usage = found.choices[0].message.content or "", found.usage
        if usage is None:
            self.ledger.add("without_usage")
            most = min(self.teacher.max_answer_tokens, len(text.encode()))
            usage = _Usage(prompt_tokens=prompt_bound(messages), completion_tokens=most)
        whole = found.choices[0].finish_reason != "length"
        return Answer(text, whole, usage.prompt_tokens, usage.completion_tokens)

    def _safe(self, text: str) -> str:
        """What a server said, short, and without the key should it repeat it."""
        return (text.replace(self._key, "***") if self._key else text)[:SAID_CHARS]


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):  # httpx would show it while it complains
        raise ServiceError(f"{KEY} holds a character that no header can carry", "copy the key again, as one line of plain text")
    return key


def _address(teacher: Teacher) -> httpx.URL:
    try:
        return httpx.URL(f"{teacher.url.rstrip('/')}/chat/completions")
    except httpx.InvalidURL as error:
        raise InputError(f"{teacher.url!r} is no address ({error})", "write it as http://host:8000/v1", "teacher.url") from error


def _words(body: bytes) -> str:
    return " ".join(body[: 2**16].decode("utf-8", "replace").split())


def retry_after_s(headers: httpx.Headers) -> float | None:
    """Seconds of a Retry-After header, given as a number or as a date (RFC 9110, section 10.2.3); None without one."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())
