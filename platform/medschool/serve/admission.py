"""The gate in front of every route: who may ask, how much they may send, and which model answered.

A pure ASGI layer, outermost, so nothing behind it (routing, parsing, error pages) runs for a request without a key. Keys are kept
as sha256 hashes: 256 random bits need no slow hash, and a leaked configuration lets nobody in. The body is read here up to its
limit and then handed on whole, because a limit that strikes in the middle of parsing would be reported as bad JSON.
"""

import hashlib
import hmac
import json
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 2**20
OPEN_PATH = "/health/live"
NOTICE = "not for clinical use"


def hash_key(key: str) -> str:
    """Hex sha256 of an API key, the form in which configurations hold it."""
    return hashlib.sha256(key.encode()).hexdigest()


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, dict[str, str | None]]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Gate:
    """ASGI middleware. key_hashes: hex sha256 of each accepted key. version: names the weights in every answer's headers."""

    def __init__(self, app: ASGIApp, key_hashes: Sequence[str], version: str) -> None:
        self._app, self._hashes, self._version = app, tuple(key_hashes), version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, self._labelled(scope, send))
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != OPEN_PATH and not self._knows(Headers(scope=scope)):
            problem = "a valid API key is needed: Authorization: Bearer KEY"
            body = error_body(problem, "authentication_error", code="invalid_api_key")
            await _refuse(send, 401, body, {"www-authenticate": "Bearer"})
            return
        body_bytes = await _read_body(Headers(scope=scope), receive)
        if body_bytes is None:
            await _refuse(send, 413, error_body(f"the body is above {MAX_BODY_BYTES} bytes", "invalid_request_error"), {})
            return
        await self._app(scope, _replay(body_bytes, receive), send)

    def _knows(self, headers: Headers) -> bool:
        """Whether the request carries exactly one key, and one we know; every hash is compared, in constant time."""
        given = headers.getlist("authorization")
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        found = hashlib.sha256(key.strip().encode("latin-1")).hexdigest()
        matches = [hmac.compare_digest(found, known) for known in self._hashes]
        return scheme.lower() == "bearer" and any(matches)

    def _labelled(self, scope: Scope, send: Send) -> Send:
        """`send` that adds our headers. A proxy that set x-request-id answers with it itself; without one we make it."""
        request_id = None if "x-request-id" in Headers(scope=scope) else f"req_{uuid.uuid4().hex}"

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-medschool-model-version"] = self._version
                headers["x-medschool-notice"] = NOTICE
                if request_id:
                    headers["x-request-id"] = request_id
            await send(message)

        return labelled


async def _read_body(headers: Headers, receive: Receive) -> bytes | None:
    """The whole body, None when it is above the limit (then the rest is not read)."""
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > MAX_BODY_BYTES:
        return None
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first, then what the server sends (a disconnect)."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


async def _refuse(send: Send, status: int, body: dict[str, dict[str, str | None]], headers: dict[str, str]) -> None:
    raw = json.dumps(body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(raw)), **headers}
    encoded = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": raw})
