"""The gate in front of every route: who may ask, how often, how much they may send and how long they may take to send it.

A pure ASGI layer, outermost, so nothing behind it (routing, parsing, error pages) runs for a request without a key. The order is
key, requests a minute, body. The body is read here up to its limit in bytes and in time and then handed on whole, because a limit
that strikes in the middle of parsing would be reported as bad JSON. A connection whose body was not read to its end is closed
with the answer: what else the client sends would be read as its next request.

Slow headers never get here: `deadline` closes such connections in the HTTP server. A client that does not read its answer is cut
off after the answer's own deadline and GRACE_S.
"""

import asyncio
import json
import logging
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medschool.serve.faults import ApiError
from medschool.serve.keys import Key, KeyRing
from medschool.serve.metrics import Metrics
from medschool.serve.page import FILES
from medschool.serve.quota import Quota

MAX_BODY_BYTES = 2**20
OPEN_PATHS = frozenset({"/health/live", *FILES})
"""What needs no key: liveness, and the page that asks for one."""
NOTICE = "not for clinical use"
VERSION = "x-medschool-model-version"
"""Header that names the weights that answered; those of the model, where the answer does not name an adapter's."""
CALLER = "medschool.caller"
"""Where the scope of a request that was let in holds its Caller."""
GRACE_S = 5.0
PATHS = (
    "/v1/models", "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/tokenizer_info",
    "/health/live", "/health/ready", "/metrics", "/v1/votes", *FILES,
)  # fmt: skip
"""Paths that are counted by name; all others are one, so that clients cannot make labels."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one replica bears.

    context_tokens: longest prompt plus answer. max_answers: most answers in flight, running and waiting in the engine.
    body_timeout_s: from the headers to the end of the body. answer_timeout_s: from there to the end of the answer.
    """

    context_tokens: int
    max_answers: int
    body_timeout_s: float = 10.0
    answer_timeout_s: float = 300.0


@dataclass(frozen=True)
class Caller:
    """Who sent a request that was let in."""

    name: str
    quota: Quota
    request_id: str


class _LeftError(Exception):
    """The client went away before its request was whole."""


class Gate:
    """ASGI middleware. keys: who may enter. version: names the weights in every answer's headers."""

    def __init__(self, app: ASGIApp, keys: KeyRing, limits: Limits, version: str, metrics: Metrics) -> None:
        self._app, self._keys, self._limits, self._version, self._metrics = app, keys, limits, version, metrics
        self._quotas: dict[Key, Quota] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            given = Headers(scope=scope).get("x-request-id")
            request_id = (given or f"req_{uuid.uuid4().hex}")[:128]
            await self._http(scope, receive, self._labelled(scope, send, None if given else request_id), request_id)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        try:
            if _path(scope) not in OPEN_PATHS:
                key = self._key(Headers(scope=scope))
                quota = self._quotas.setdefault(key, Quota(key))
                quota.request()
                scope[CALLER] = Caller(key.name, quota, request_id)
            body = await self._body(Headers(scope=scope), receive)
        except ApiError as error:
            await _refuse(send, error)
            return
        except _LeftError:
            return
        await self._behind(scope, _replay(body, receive), send)

    async def _behind(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What lies behind the gate, cut off when it takes longer than any answer may."""
        try:
            async with asyncio.timeout(self._limits.answer_timeout_s + GRACE_S):
                await self._app(scope, receive, send)
        except TimeoutError:
            logger.error("a request was cut off after %s s: its client does not read", self._limits.answer_timeout_s + GRACE_S)

    def _key(self, headers: Headers) -> Key:
        """The key of a request. Raises ApiError 401 unless it carries exactly one, and one we know."""
        given = headers.getlist("authorization")
        scheme, _, secret = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        key = self._keys.find(secret.strip().encode("latin-1").decode(errors="replace"))  # headers come as Latin-1
        if key is None or scheme.lower() != "bearer":
            problem = "a valid API key is needed: Authorization: Bearer KEY"
            closing = {"www-authenticate": "Bearer"} | _closing(headers)
            raise ApiError(401, problem, code="invalid_api_key", headers=closing)
        return key

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body. Raises ApiError 413 when it is too large, 408 when it takes too long; the rest is then not read."""
        problem = f"the body is above {MAX_BODY_BYTES} bytes"
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared[:20]) > MAX_BODY_BYTES:
            raise ApiError(413, problem, headers=_closing(headers))
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _LeftError
                    body += message.get("body", b"")
                    if len(body) > MAX_BODY_BYTES:
                        raise ApiError(413, problem, headers=_closing(headers))
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            slow = f"the body was not there after {self._limits.body_timeout_s:g} s"
            raise ApiError(408, slow, code="timeout", headers=_closing(headers)) from None

    def _labelled(self, scope: Scope, send: Send, request_id: str | None) -> Send:
        """`send` that adds our headers and counts the answer. A proxy that set x-request-id answers with it itself."""
        path = _path(scope) if _path(scope) in PATHS else "other"

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(path, str(message["status"])).inc()
                headers = MutableHeaders(scope=message)
                headers.setdefault(VERSION, self._version)
                headers["x-medschool-notice"] = NOTICE
                headers["x-content-type-options"] = "nosniff"
                headers["cache-control"] = "no-store"
                if request_id:
                    headers["x-request-id"] = request_id
            await send(message)

        return labelled


def _path(scope: Scope) -> str:
    """The path as routes name it: below the prefix that an application is served under (ASGI's `root_path`)."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _closing(headers: Headers) -> dict[str, str]:
    """The header that closes the connection, for a request with a body that nobody reads."""
    return {"connection": "close"} if "transfer-encoding" in headers or headers.get("content-length", "0") != "0" else {}


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first, then what the server sends (a disconnect)."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


async def _refuse(send: Send, error: ApiError) -> None:
    raw = json.dumps(error.body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(raw)), **error.headers}
    encoded = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": raw})
