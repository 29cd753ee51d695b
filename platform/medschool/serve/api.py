"""OpenAI's chat API over an engine: models, chat completions (whole or streamed), health.

    GET  /v1/models, /v1/models/{id}      POST /v1/chat/completions      GET /health/live (open), /health/ready

Every answer runs through one path: request -> prompt tokens -> one task per choice, all feeding one queue -> pieces of text.
A whole answer is the collected stream, so both always say the same. A request that can not be served is refused before any
work: bad input 400, prompt too long 400, too many in flight 429. A fault after the first byte is sent as an error event and
the stream ends without [DONE], so no client takes a cut answer for a whole one. When a client goes away its tasks are
cancelled, which frees the engine's place. Prompts and answers are never logged.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from medschool.errors import InputError, ServiceError
from medschool.serve.admission import NOTICE, Gate, error_body
from medschool.serve.chat import ApiError, ChatRequest, Head, Usage, event, read_request
from medschool.serve.engine import Engine, Finish, Sampling
from medschool.serve.template import Answer, Text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelInfo:
    """What is served. name: the `model` clients ask for. version: names the weights. created_s: Unix time."""

    name: str
    version: str
    created_s: int

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self.created_s,
            "owned_by": "medschool",
            "version": self.version,
            "notice": NOTICE,
        }


@dataclass(frozen=True)
class Limits:
    """context_tokens: longest prompt plus answer. max_answers: most choices in flight, running and waiting in the engine."""

    context_tokens: int
    max_answers: int


@dataclass(frozen=True)
class Piece:
    """Text that became certain for one choice, the tokens it took, and how the choice ended if it did."""

    index: int
    text: str
    tokens: int
    finish: Finish | None


def build_api(engine: Engine, text: Text, info: ModelInfo, key_hashes: Sequence[str], limits: Limits) -> ASGIApp:
    """The ASGI app of one model. key_hashes: hex sha256 of the accepted API keys; without any, nobody can ask."""
    api = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    service = _Service(engine, text, info, limits)
    api.get("/health/live")(service.live)
    api.get("/health/ready")(service.ready)
    api.get("/v1/models")(service.models)
    api.get("/v1/models/{name:path}")(service.model)
    api.post("/v1/chat/completions", response_model=None)(service.chat)
    api.add_exception_handler(ApiError, _api_error)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(Exception, _fault)
    return Gate(api, key_hashes, info.version)


class _Service:
    """The routes, and the count of choices in flight."""

    def __init__(self, engine: Engine, text: Text, info: ModelInfo, limits: Limits) -> None:
        self._engine, self._text, self._info, self._limits = engine, text, info, limits
        self._in_flight = 0

    async def live(self) -> dict[str, str]:
        return {"status": "live"}

    async def ready(self) -> dict[str, str]:
        try:
            self._engine.check()
        except ServiceError as error:
            raise ApiError(503, error.problem, code="not_ready") from error
        return {"status": "ready", "model": self._info.name, "version": self._info.version}

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._info.as_json()]}

    async def model(self, name: str) -> dict[str, Any]:
        self._must_be_served(name)
        return self._info.as_json()

    async def chat(self, request: Request) -> JSONResponse | StreamingResponse:
        asked = read_request(await request.body())
        self._must_be_served(asked.model)
        prompt = self._prompt(asked)
        self._admit(asked.choices)
        head = Head(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), self._info.name, self._info.version)
        pieces = self._answer(asked, prompt)
        if asked.stream:
            return _Stream(_events(head, asked, len(prompt), pieces), lambda: self._release(asked.choices))
        try:
            return JSONResponse(await _whole(head, asked.choices, len(prompt), pieces))
        except ServiceError as error:
            logger.error("answer %s failed: %s", head.id, error)
            raise ApiError(500, "the model failed; try again", code="engine_fault") from error
        finally:
            self._release(asked.choices)

    def _must_be_served(self, name: str) -> None:
        if name != self._info.name:
            raise ApiError(404, f"this server has one model, {self._info.name!r}", "model", "model_not_found")

    def _prompt(self, asked: ChatRequest) -> list[int]:
        """Token ids of the conversation; at least one token must fit behind it."""
        try:
            prompt = self._text.encode([message.as_template() for message in asked.messages])
        except InputError as error:
            raise ApiError(400, error.problem, "messages", "invalid_value") from error
        if len(prompt) >= self._limits.context_tokens:
            problem = f"the prompt has {len(prompt)} tokens, the context {self._limits.context_tokens} with the answer"
            raise ApiError(400, problem, "messages", "context_length_exceeded")
        if not prompt:
            raise ApiError(400, "the conversation is empty", "messages", "invalid_value")
        return prompt

    def _admit(self, choices: int) -> None:
        if choices > self._limits.max_answers:
            raise ApiError(400, f"at most {self._limits.max_answers} choices", "n", "invalid_value")
        if self._in_flight + choices > self._limits.max_answers:
            raise ApiError(429, "all places are taken; try again shortly", code="busy")
        self._in_flight += choices

    def _release(self, choices: int) -> None:
        self._in_flight -= choices

    async def _answer(self, asked: ChatRequest, prompt: list[int]) -> AsyncGenerator[Piece]:
        """Pieces of all choices as they come. Raises ServiceError when one of them fails; the others are then cancelled."""
        queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()

        async def pump(index: int) -> None:
            try:
                async for piece in self._choice(asked, prompt, index):
                    queue.put_nowait(piece)
            except Exception as error:
                queue.put_nowait(error)

        tasks = [asyncio.create_task(pump(index)) for index in range(asked.choices)]
        left = len(tasks)
        try:
            while left:
                piece = await queue.get()
                if isinstance(piece, Exception):
                    raise piece
                left -= piece.finish is not None
                yield piece
        finally:
            for task in tasks:
                task.cancel()

    async def _choice(self, asked: ChatRequest, prompt: list[int], index: int) -> AsyncGenerator[Piece]:
        answer = Answer(self._text, asked.stop)
        async with aclosing(self._engine.generate(prompt, self._sampling(asked, len(prompt), index))) as steps:
            async for step in steps:
                text = answer.push(step.tokens) + (answer.close() if step.finish else "")
                finish: Finish | None = "stop" if answer.stopped else step.finish
                yield Piece(index, text, len(step.tokens), finish)
                if finish:
                    return

    def _sampling(self, asked: ChatRequest, prompt_tokens: int, index: int) -> Sampling:
        """OpenAI's defaults: temperature 1, top_p 1; as many tokens as fit. Each choice has its own seed."""
        room = self._limits.context_tokens - prompt_tokens
        return Sampling(
            max_tokens=min(asked.max_completion_tokens or asked.max_tokens or room, room),
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            seed=None if asked.seed is None else asked.seed + index,
        )


async def _whole(head: Head, choices: int, prompt_tokens: int, pieces: AsyncGenerator[Piece]) -> dict[str, Any]:
    """The stream collected into one completion object."""
    texts, finishes, tokens = [""] * choices, list[Finish](["stop"] * choices), 0
    async with aclosing(pieces):
        async for piece in pieces:
            texts[piece.index] += piece.text
            finishes[piece.index] = piece.finish or "stop"
            tokens += piece.tokens
    return head.completion(texts, finishes, Usage(prompt_tokens, tokens))


async def _events(head: Head, asked: ChatRequest, prompt_tokens: int, pieces: AsyncGenerator[Piece]) -> AsyncGenerator[str]:
    """Server-sent events of one answer; a fault is the last event, without [DONE] behind it."""
    tokens = 0
    async with aclosing(pieces):
        for index in range(asked.choices):
            yield event(head.chunk(index, {"role": "assistant", "content": ""}))
        try:
            async for piece in pieces:
                tokens += piece.tokens
                if piece.text:
                    yield event(head.chunk(piece.index, {"content": piece.text}))
                if piece.finish:
                    yield event(head.chunk(piece.index, {}, piece.finish))
        except Exception as error:
            logger.error("answer %s failed: %s: %s", head.id, type(error).__name__, error)
            yield event(error_body("the model failed; the answer is not complete", "server_error", code="engine_fault"))
            return
    if asked.stream_options and asked.stream_options.include_usage:
        yield event(head.usage_chunk(Usage(prompt_tokens, tokens)))
    yield "data: [DONE]\n\n"


class _Stream(StreamingResponse):
    """Server-sent events. Calls `done` when they end, however they end: also when the client left before the first one."""

    def __init__(self, events: AsyncGenerator[str], done: Any) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._events, self._done = events, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._done()
            await self._events.aclose()


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    return JSONResponse(error_body(error.detail, "invalid_request_error"), error.status_code, error.headers)


async def _fault(_: Request, error: Exception) -> JSONResponse:
    """A defect of ours; the server logs its traceback."""
    return JSONResponse(error_body("internal error", "server_error", code=type(error).__name__), 500)
