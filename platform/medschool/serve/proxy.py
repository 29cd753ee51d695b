"""What Ray Serve's proxies do for us: a deadline for headers, and their own refusals in the form that OpenAI's clients read.

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=medschool.serve.proxy:proxy_middlewares        where Ray is started; `up` sets it

Ray calls that function in each proxy just before it starts uvicorn, and lets nothing else be set there. The deadline is put in
the place of uvicorn's own protocol in uvicorn's table of protocols.

Ray Serve lets a client steer it by headers: no deadline, no look whether the client is still there, a session, a model. It also
decodes some of them as UTF-8 and answers 500 where they are none, without a key. None of these headers is passed on
(`ray/serve/_private/proxy.py`, `setup_request_context_and_handle` and `send_request_to_replica`; constants.py there).

A proxy answers by itself, as plain text, when the queue is full (429), no replica lives (503) or one died (500). Those texts can
A proxy answers by itself, as plain text, when the queue is full (429), no replica lives (503) or one died (500). Those texts
can hold a traceback, so they are not passed on. When a replica dies in the middle of a stream, the proxy just closes the
connection: the stream is ended with an error event here, so that its client knows what happened.
"""

import json
import re

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from medschool.serve.deadline import TimedProtocol
from medschool.serve.faults import ApiError, error_body

STEERING = {b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"x-session-id", b"serve-multiplexed-model-id"}
"""Headers that Ray Serve obeys, with hyphens; underscores count as such."""
REQUEST_ID = re.compile(rb"[!-~]{1,128}")
"""It is written into Ray's logs."""
SAID = {
    404: ("there is no such path", None),
    408: ("the answer took too long", "timeout"),
    429: ("all places are taken; try again shortly", "busy"),
    503: ("the model is not ready; try again shortly", "not_ready"),
}


def proxy_middlewares() -> list[Middleware]:
    """Ray Serve's hook into its proxies."""
    HTTP_PROTOCOLS["auto"] = f"{TimedProtocol.__module__}:{TimedProtocol.__name__}"
    return [Middleware(JsonErrors), Middleware(Unsteered)]


class JsonErrors:
    """ASGI middleware: a refusal in plain text becomes one in JSON with the same status and headers; what is cut off says so."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        whole = False

        async def as_json(message: Message) -> None:
            nonlocal start, whole
            if message["type"] == "http.response.start":
                start = message
            whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            if start is None or not _is_plain_error(start):
                await send(message)
            elif whole:
                for part in _in_json(start):
                    await send(part)

        await self._app(scope, receive, as_json)
        if not whole:
            for part in _cut_off(start):
                await send(part)


def _cut_off(start: Message | None) -> tuple[Message, ...]:
    """What is still to be sent where the proxy gave up: a refusal, the end of a stream, or nothing: it closes then."""
    if start is None:
        return _in_json({"type": "http.response.start", "status": 500, "headers": []})
    if _is_plain_error(start):
        return _in_json(start)
    if Headers(raw=start["headers"]).get("content-type", "").startswith("text/event-stream"):
        fault = error_body("the replica died; the answer is not complete", "server_error", code="replica_died")
        return ({"type": "http.response.body", "body": f"data: {json.dumps(fault)}\n\n".encode()},)
    return ()


def _is_plain_error(start: Message) -> bool:
    return bool(start["status"] >= 400) and Headers(raw=start["headers"]).get("content-type", "").startswith("text/plain")


def _in_json(start: Message) -> tuple[Message, Message]:
    """Head and body of the same refusal."""
    message, code = SAID.get(start["status"], ("the server failed; try again", "server_fault"))
    body = json.dumps(ApiError(start["status"], message, code=code).body).encode()
    replaced = {b"content-type": b"application/json", b"content-length": str(len(body)).encode()}
    kept = [(name, value) for name, value in start["headers"] if name.lower() not in replaced]
    return {**start, "headers": [*kept, *replaced.items()]}, {"type": "http.response.body", "body": body}


class Unsteered:
    """ASGI middleware: takes away the headers by which a client would steer Ray Serve, and a request id that is none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if _passes(name, value)]}
        await self._app(scope, receive, send)


def _passes(name: bytes, value: bytes) -> bool:
    plain = name.lower().replace(b"_", b"-")
    if plain == b"x-request-id":
        return REQUEST_ID.fullmatch(value) is not None
    return plain not in STEERING and not plain.startswith(b"x-serve-")
