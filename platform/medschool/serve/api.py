"""OpenAI's API over an engine: models, chat and plain completions (whole or streamed), the tokenizer, health, metrics.

    GET  /v1/models, /v1/models/{id}      POST /v1/chat/completions, /v1/completions
    GET  /tokenizer_info, /metrics        POST /tokenize, /detokenize            GET /health/live (open), /health/ready
    GET  / (open): the chat page          POST /v1/votes

Every answer runs through one path: request -> prompt tokens -> jobs -> pieces of text (`answers`) -> object or events (`reply`).
A request that can not be served is refused before any work: bad input 400, prompt too long 400, too many in flight 429. A prompt
far above the context is refused by its characters, without being encoded. When a client goes away its tasks are cancelled, which
frees the engine's place. Prompts and answers are never logged; the audit log holds who, when, how much. Only
a vote keeps what was asked (`votes`).
"""

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp

from medschool.errors import ServiceError
from medschool.serve.admission import CALLER, NOTICE, VERSION, Caller, Gate, Limits
from medschool.serve.answers import Job, answers
from medschool.serve.audit import AuditLog, prompt_hash
from medschool.serve.chat import ChatForm, ChatRequest
from medschool.serve.completions import CompletionForm, CompletionRequest
from medschool.serve.engine import Engine
from medschool.serve.faults import ApiError, answer_errors
from medschool.serve.keys import KeyRing
from medschool.serve.metrics import Metrics
from medschool.serve.page import add_page
from medschool.serve.reply import Form, Head, events, whole
from medschool.serve.request import Drawn, read
from medschool.serve.template import Text
from medschool.serve.tokenizer_api import TokenizerApi, fitting
from medschool.serve.turn import Stream, Turn
from medschool.serve.votes import Votes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelInfo:
    """What is served. name: the `model` clients ask for. version: names the weights. created_s: Unix time.

    parent: name of the model that it is an adapter of; empty for a whole one.
    """

    name: str
    version: str
    created_s: int
    parent: str = ""

    @property
    def adapter(self) -> str:
        """Its name to the engine."""
        return self.name if self.parent else ""

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self.created_s,
            "owned_by": "medschool",
            "version": self.version,
            "notice": NOTICE,
            **({"parent": self.parent} if self.parent else {}),
        }


def build_api(
    engine: Engine,
    text: Text,
    info: ModelInfo,
    keys: KeyRing,
    limits: Limits,
    audit: AuditLog | None = None,
    votes: str = "",
    metrics: Metrics | None = None,
    adapters: Sequence[ModelInfo] = (),
) -> ASGIApp:
    """The ASGI app of one model, and of adapters over it.

    keys: who may ask; without any, nobody can. audit, votes: where those are kept.
    """
    metrics = metrics or Metrics()
    routes = build_routes(engine, text, info, limits, metrics, audit, votes, adapters)
    return Gate(routes, keys, limits, info.version, metrics)


def build_routes(
    engine: Engine,
    text: Text,
    info: ModelInfo,
    limits: Limits,
    metrics: Metrics,
    audit: AuditLog | None = None,
    votes: str = "",
    adapters: Sequence[ModelInfo] = (),
) -> FastAPI:
    """What lies behind the gate. Nothing but `build_api` may serve it: it asks for no key."""
    api = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    service = _Service(engine, text, (info, *adapters), limits, metrics, audit)
    tokenizer = TokenizerApi(text, limits.context_tokens)
    api.get("/health/live")(service.live)
    api.get("/health/ready")(service.ready)
    api.get("/metrics", response_model=None)(service.metrics)
    api.get("/v1/models")(service.models)
    api.get("/v1/models/{name:path}")(service.model)
    api.post("/v1/chat/completions", response_model=None)(service.chat)
    api.post("/v1/completions", response_model=None)(service.completions)
    api.post("/tokenize")(tokenizer.tokenize)
    api.post("/detokenize")(tokenizer.detokenize)
    api.get("/tokenizer_info")(tokenizer.info)
    api.post("/v1/votes")(Votes(votes).vote)
    add_page(api)
    answer_errors(api)
    return api


class _Service:
    """The routes, and the count of answers in flight."""

    def __init__(
        self, engine: Engine, text: Text, models: Sequence[ModelInfo], limits: Limits, metrics: Metrics, audit: AuditLog | None
    ) -> None:
        self._engine, self._text, self._info, self._limits = engine, text, models[0], limits
        self._models = {one.name: one for one in models}
        self._metrics, self._audit = metrics, audit
        self._in_flight = 0

    async def live(self) -> dict[str, str]:
        return {"status": "live"}

    async def ready(self) -> dict[str, str]:
        self._must_work()
        return {"status": "ready", "model": self._info.name, "version": self._info.version}

    def _must_work(self) -> None:
        try:
            self._engine.check()
        except ServiceError as error:
            raise ApiError(503, error.problem, code="not_ready") from error

    async def metrics(self) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [one.as_json() for one in self._models.values()]}

    async def model(self, name: str) -> dict[str, Any]:
        return self._served(name).as_json()

    async def chat(self, request: Request) -> Response:
        asked = read(ChatRequest, await request.body(), self._engine)
        served = self._served(asked.model)
        messages = [message.as_template() for message in asked.messages]
        room = self._limits.context_tokens - 1  # at least one token must fit behind the prompt
        size = sum(len(message["content"]) for message in messages)
        prompt = fitting(lambda: self._text.encode(messages), size, self._text, room, "messages")
        most = min(asked.most_tokens or room, self._limits.context_tokens - len(prompt))
        draws = [asked.sampling(index, most, self._text.vocab_size, asked.top) for index in range(asked.choices)]
        jobs = [Job(tuple(prompt), sampling, tuple(asked.stop), adapter=served.adapter) for sampling in draws]
        form = ChatForm(self._head("chatcmpl", served), self._text)
        return await self._answered(request, asked, jobs, len(prompt), messages, form)

    async def completions(self, request: Request) -> Response:
        asked = read(CompletionRequest, await request.body(), self._engine)
        served = self._served(asked.model)
        most, prompts = asked.most_tokens, asked.prompts
        if not most and not asked.echo:
            raise ApiError(400, "0 is for `echo` alone", "max_tokens", "invalid_value")
        if len(prompts) * asked.choices > self._limits.max_answers:
            raise ApiError(400, f"at most {self._limits.max_answers} answers", "prompt", "invalid_value")
        room = self._limits.context_tokens - (most > 0)
        encoded = [self._prompt(prompt, room) for prompt in prompts]
        jobs = [
            self._job(asked, ids, prompt, index, served.adapter)
            for prompt, ids in zip(prompts, encoded, strict=True)
            for index in range(asked.choices)
        ]
        form = CompletionForm(self._head("cmpl", served), self._text, asked.logprobs)
        return await self._answered(request, asked, jobs, sum(map(len, encoded)), prompts, form)

    def _prompt(self, prompt: str | list[int], room: int) -> list[int]:
        """Token ids of one prompt of a plain completion."""
        if isinstance(prompt, str):
            return fitting(lambda: self._text.encode_text(prompt), len(prompt), self._text, room, "prompt")
        fitting(lambda: prompt, 0, self._text, room, "prompt")
        if any(token >= self._text.vocab_size for token in prompt):
            raise ApiError(400, f"the vocabulary has {self._text.vocab_size} tokens", "prompt", "invalid_value")
        return prompt

    def _job(self, asked: CompletionRequest, ids: list[int], prompt: str | list[int], index: int, adapter: str) -> Job:
        most = min(asked.most_tokens, self._limits.context_tokens - len(ids))
        sampling = asked.sampling(index, most, self._text.vocab_size, asked.logprobs) if most else None
        echo = (prompt if isinstance(prompt, str) else self._text.decode(ids)) if asked.echo else None
        return Job(tuple(ids), sampling, tuple(asked.stop), echo, asked.logprobs, adapter)

    def _head(self, kind: str, served: ModelInfo) -> Head:
        return Head(f"{kind}-{uuid.uuid4().hex}", int(time.time()), served.name, served.version)

    def _served(self, name: str) -> ModelInfo:
        """The model or adapter of this name. Raises ApiError 404."""
        if name not in self._models:
            known = ", ".join(map(repr, self._models))
            raise ApiError(404, f"it is not served here; what is: {known}", "model", "model_not_found")
        return self._models[name]

    async def _answered(
        self, request: Request, asked: Drawn, jobs: Sequence[Job], prompt_tokens: int, subject: Any, form: Form
    ) -> Response:
        """The answer to an admitted request: events, or one object. subject: what is hashed for the audit log."""
        turn = self._admit(request, jobs, prompt_tokens, subject, form.head)
        version = {VERSION: form.head.system_fingerprint}
        pieces = turn.counted(answers(self._engine, self._text, jobs, self._limits.answer_timeout_s))
        if asked.stream:
            return Stream(events(form, len(jobs), prompt_tokens, pieces, asked.include_usage), turn, version)
        try:
            return JSONResponse(await whole(form, len(jobs), prompt_tokens, pieces), headers=version)
        except ServiceError as error:
            logger.error("answer %s failed: %s", form.head.id, error)
            raise ApiError(500, "the model failed; try again", code="engine_fault") from error
        except TimeoutError as error:
            problem = f"the answer was not whole after {self._limits.answer_timeout_s:g} s; set a smaller max_tokens"
            raise ApiError(408, problem, code="timeout", final=True) from error
        finally:
            turn.end()

    def _admit(self, request: Request, jobs: Sequence[Job], prompt_tokens: int, subject: Any, head: Head) -> Turn:
        """Places in the engine and in the key's limits, until the turn ends. Raises ApiError 429, 400 or 503."""
        caller: Caller = request.scope[CALLER]
        count = len(jobs)
        self._must_work()
        if self._audit and self._audit.full:
            raise ApiError(503, "the audit log can not be written", code="audit_unavailable")
        if count > self._limits.max_answers:
            raise ApiError(400, f"at most {self._limits.max_answers} choices", "n", "invalid_value")
        if self._in_flight + count > self._limits.max_answers:
            raise ApiError(429, "all places are taken; try again shortly", code="busy")
        give_back = caller.quota.answers(count, prompt_tokens + sum(job.most_tokens for job in jobs))
        self._taken(count)
        digest, path = prompt_hash(subject), request.url.path

        def settle(turn: Turn) -> None:
            self._taken(-count)
            give_back(prompt_tokens + turn.tokens)
            self._measure(turn, prompt_tokens)
            if self._audit:
                self._audit.append(
                    request_id=caller.request_id, key=caller.name, path=path, model=head.model, version=head.system_fingerprint,
                    prompt_sha256=digest, prompt_tokens=prompt_tokens, answers=count, answer_tokens=turn.tokens,
                    outcome=turn.outcome, seconds=round(turn.seconds, 3),
                )  # fmt: skip

        return Turn(settle)

    def _taken(self, count: int) -> None:
        self._in_flight += count
        self._metrics.in_flight.set(self._in_flight)

    def _measure(self, turn: Turn, prompt_tokens: int) -> None:
        self._metrics.tokens.labels("prompt").inc(prompt_tokens)
        self._metrics.tokens.labels("answer").inc(turn.tokens)
        if turn.first_token_s is not None:
            self._metrics.first_token_s.observe(turn.first_token_s)
        if turn.token_s is not None:
            self._metrics.token_s.observe(turn.token_s)
