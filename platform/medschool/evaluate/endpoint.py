"""A model behind an OpenAI-compatible endpoint, asked for a text or for the log-probabilities of one (plain HTTP, httpx).

    question --POST /chat/completions, temperature 0--> text
    token ids --POST /completions, echo, logprobs--> log-probability of each, after those before it

    429, 5xx, timeout, no connection   asked again, after what Retry-After says or a growing random wait, for PATIENCE_S
    400, 413, 422                      Refused: this one will never be answered; the caller counts it
    a page of HTML, another JSON       ServiceError: that is no such endpoint
    401, 403, 404, redirects           ServiceError: the key, the model or the address is wrong

The key comes from MEDSCHOOL_EXAM_KEY; it goes into the one header and nowhere else. One Endpoint is used by many threads.

What it cannot see is the model: which weights answer, in which precision, behind which template. `echo` with log-probabilities of
a prompt is what our own server and vLLM have; most hosted models do not.

Source: OpenAI's API reference, "Create chat completion" and "Create completion" (legacy).
"""

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from threading import Event
from typing import Annotated, Any, TypeVar

import httpx
from pydantic import BaseModel, Field, ValidationError

from medschool.errors import InputError, ServiceError, StoppedError
from medschool.instructions.endpoint import retry_after_s

KEY = "MEDSCHOOL_EXAM_KEY"
TIMEOUT_S = 600.0
"""For one answer: a thousand tokens from a model on a CPU take minutes."""
CONNECT_S = 10.0
PATIENCE_S = 180.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 20.0
SAID_CHARS = 160
REFUSED = (400, 413, 422)
KEPT = "run again: what was answered is kept"


class _Message(BaseModel):
    content: str | None = None


class _Turn(BaseModel):
    message: _Message


class _Chat(BaseModel):
    choices: Annotated[list[_Turn], Field(min_length=1)]


class _LogProbs(BaseModel):
    token_logprobs: list[float | None]


class _Scored(BaseModel):
    logprobs: _LogProbs | None = None


class _Completion(BaseModel):
    choices: Annotated[list[_Scored], Field(min_length=1)]


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


B = TypeVar("B", bound=BaseModel)


@dataclass(frozen=True)
class Refused:
    """What an endpoint said to a request that it will not answer."""

    says: str


class Endpoint:
    """url: what `/chat/completions` follows, such as `http://127.0.0.1:8000/v1`. model: the name that it is asked by."""

    def __init__(self, url: str, model: str, key: str | None = None) -> None:
        self.url, self.model = url.rstrip("/"), model
        self._key = os.environ.get(KEY, "").strip() if key is None else key
        if not (self._key.isascii() and self._key.isprintable()):  # httpx would show it while it complains
            raise ServiceError(f"{KEY} holds a character that no header can carry", "copy the key again, as one line of text")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = httpx.Client(headers=headers, timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_S))
        self._stopped = Event()

    def stop(self) -> None:
        """Send nothing any more: what waits for its next try ends with StoppedError, requests under way end as they will."""
        self._stopped.set()

    def close(self) -> None:
        self.stop()
        self._http.close()

    def check(self) -> None:
        """One request for the list of models. Raises ServiceError for what nobody answers, for a key or a model it does not know.

        An endpoint without that list is taken as it is.
        """
        try:
            response = self._http.get(f"{self.url}/models")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            problem = self._safe(str(error) or type(error).__name__)
            raise ServiceError(f"no answer: {problem}", "start it, or correct --endpoint", self.url) from error
        if response.status_code in (401, 403):
            raise self._wrong_key(response.status_code)
        try:
            known = [one.id for one in _Models.model_validate_json(response.content).data] if response.status_code == 200 else []
        except ValidationError:
            known = []
        if known and self.model not in known:
            raise ServiceError(f"it has no model {self.model!r}", f"name one of {', '.join(known[:10])}", self.url)

    def say(self, text: str, most_tokens: int) -> str | Refused:
        """The model's greedy answer to one turn of a user, at most `most_tokens` long; '' where it says nothing."""
        asked = {"messages": [{"role": "user", "content": text}], "max_tokens": most_tokens, "temperature": 0}
        found = self._post("chat/completions", asked)
        return found if isinstance(found, Refused) else self._read(_Chat, found).choices[0].message.content or ""

    def log_probs(self, tokens: Sequence[int]) -> list[float] | Refused:
        """Log-probability of every token but the first after those before it, in nats.

        One token more than is needed is generated, because not every server takes none: `tokens` and one must fit its context.
        Raises InputError where the endpoint gives no log-probabilities of a prompt.
        """
        asked = {"prompt": list(tokens), "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        body = self._post("completions", asked)
        if isinstance(body, Refused):
            return body
        said = self._read(_Completion, body).choices[0].logprobs
        found = [one for one in said.token_logprobs[1 : len(tokens)] if one is not None] if said else []
        if len(found) < len(tokens) - 1:
            raise InputError(
                f"gave {len(found)} log-probabilities of a prompt of {len(tokens)} tokens",
                "serve the model where `echo` with `logprobs` works (medschool, vLLM), or sit this exam under another protocol",
                self.url,
            )
        return found

    # ---- one request

    def _post(self, path: str, asked: dict[str, Any]) -> bytes | Refused:
        """The body of an answer. Raises as the table above says."""
        until = time.monotonic() + PATIENCE_S
        for attempt in count(1):
            if self._stopped.is_set():
                raise StoppedError("asking was stopped", KEPT, self.url)
            try:
                response = self._http.post(f"{self.url}/{path}", json={"model": self.model, **asked})
            except httpx.HTTPError as error:
                says, asked_s = self._safe(str(error) or type(error).__name__), None
            else:
                if response.status_code == 200:
                    return response.content
                says, asked_s = self._trouble(response), retry_after_s(response.headers)
                if response.status_code in REFUSED:
                    return Refused(says)
            wait_s = _wait_s(attempt) if asked_s is None else asked_s + random.uniform(0, FIRST_WAIT_S)
            if time.monotonic() + wait_s > until:
                raise ServiceError(f"no answer in {PATIENCE_S:.0f} s; the last we heard: {says}", KEPT, self.url)
            self._stopped.wait(wait_s)
        raise AssertionError("unreachable")

    def _trouble(self, response: httpx.Response) -> str:
        """What it says, where that may pass or is about this request alone. Raises ServiceError for what will stay."""
        status = response.status_code
        if status in (401, 403):
            raise self._wrong_key(status)
        says = f"{status}: {self._safe(response.text)}"
        if status in REFUSED or status in (408, 409, 429) or status >= 500:
            return says
        remedy = f"check --endpoint and --model ({self.model}); the URL ends where /chat/completions follows"
        raise ServiceError(f"it answers {says}", remedy, self.url)

    def _read(self, kind: type[B], body: bytes) -> B:
        try:
            return kind.model_validate_json(body)
        except ValidationError as error:
            says = self._safe(body.decode("utf-8", "replace")) or "nothing"
            problem = f"this is no OpenAI-compatible answer: {says}"
            raise ServiceError(problem, "correct --endpoint; a proxy may stand before it", self.url) from error

    def _wrong_key(self, status: int) -> ServiceError:
        problem = f"it refuses the key ({status})" if self._key else f"it wants a key ({status})"
        return ServiceError(problem, f"set {KEY}", self.url)

    def _safe(self, text: str) -> str:
        """What a server said, short, and without the key should it repeat it."""
        said = " ".join(text[: 2**12].split())
        return (said.replace(self._key, "***") if self._key else said)[:SAID_CHARS]


def _wait_s(attempt: int) -> float:
    """Random, so that threads do not come back at once; up to twice as long each time."""
    longest = min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S)
    return random.uniform(longest / 2, longest)
