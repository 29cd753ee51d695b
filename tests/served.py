"""The API in a test's own process: built, asked by the official client, or behind a real HTTP server."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from typing import Any

import httpx
import openai
import uvicorn
from starlette.types import ASGIApp

from medschool.errors import ServiceError
from medschool.serve.admission import Limits
from medschool.serve.api import ModelInfo, build_api
from medschool.serve.audit import AuditLog
from medschool.serve.engine import EchoEngine, Engine, Sampling, Step
from medschool.serve.keys import Key, KeyRing, hash_key
from medschool.serve.template import BytesText, Text

KEY = "unit-test-key"
INFO = ModelInfo("echo", "v-abc", 1_700_000_000)
HELLO: Any = [{"role": "user", "content": "hello"}]


class BrokenEngine(EchoEngine):
    """Fails after three tokens, as a model does that runs out of memory."""

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step]:
        for token in prompt[:3]:
            yield Step((token,))
        raise ServiceError("out of memory", "see the log", "engine")


class CountingEngine(EchoEngine):
    """Counts the answers it is writing."""

    running = 0

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step]:
        self.running += 1
        try:
            async for step in super().generate(prompt, sampling):
                yield step
        finally:
            self.running -= 1


def api(
    engine: Engine | None = None,
    text: Text | None = None,
    context: int = 200,
    places: int = 8,
    keys: Sequence[Key] | None = None,
    audit: AuditLog | None = None,
    **timeouts: float,
) -> ASGIApp:
    """The app of a model; `keys` beside the default, KEY without limits."""
    ring = KeyRing([Key("other", hash_key("other")), Key("unit", hash_key(KEY))] if keys is None else keys)
    return build_api(engine or EchoEngine(), text or BytesText(), INFO, ring, Limits(context, places, **timeouts), audit)


def ask(app: ASGIApp, use: Callable[[openai.AsyncOpenAI], Coroutine[Any, Any, Any]], key: str = KEY) -> Any:
    """Run `use` with the official client wired straight to the app."""

    async def run() -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app, raise_app_exceptions=False)) as http:
            return await use(openai.AsyncOpenAI(base_url="http://api/v1", api_key=key, http_client=http, max_retries=0))

    return asyncio.run(run())


def send(app: ASGIApp, method: str, path: str, **options: Any) -> httpx.Response:
    """One raw request with the key, unless `headers` says otherwise."""
    options.setdefault("headers", {"authorization": f"Bearer {KEY}"})

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://api") as http:
            return await http.request(method, path, **options)

    return asyncio.run(run())


def chat(app: ASGIApp, **fields: Any) -> Any:
    return ask(app, lambda client: client.chat.completions.create(**{"model": "echo", "messages": HELLO, **fields}))


def stream(app: ASGIApp, **fields: Any) -> list[Any]:
    async def use(client: openai.AsyncOpenAI) -> list[Any]:
        chunks = await client.chat.completions.create(**{"model": "echo", "messages": HELLO, "stream": True, **fields})
        return [chunk async for chunk in chunks]

    return list(ask(app, use))


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextlib.contextmanager
def on_port(app: ASGIApp, **options: Any) -> Iterator[str]:
    """The app behind a real HTTP server; its base URL. options: uvicorn's."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical", **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def wait_until(condition: Callable[[], bool], timeout_s: float = 5) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.01)
