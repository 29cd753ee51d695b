"""What is sent back for an answer: one object, or server-sent events with the same content.

A fault after the first byte is the last event, `data: {"error": ...}`, without [DONE] behind it, so no client takes a cut answer
for a whole one (openai-python raises APIError on such an event, and on nothing else).
"""

import json
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, Protocol

from medschool.serve.answers import Piece, Said
from medschool.serve.engine import Finish
from medschool.serve.faults import error_body

logger = logging.getLogger(__name__)


class Usage(NamedTuple):
    prompt_tokens: int
    completion_tokens: int

    def as_json(self) -> dict[str, int]:
        return {**self._asdict(), "total_tokens": sum(self)}


class Head(NamedTuple):
    """What all objects of one answer share."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class Form(Protocol):
    """How one kind of answer looks: chat, or plain completion."""

    @property
    def head(self) -> Head: ...

    @property
    def whole_object(self) -> str:
        """`object` of the whole answer."""
        ...

    @property
    def chunk_object(self) -> str:
        """`object` of one streamed part."""
        ...

    def opening(self, index: int) -> list[dict[str, Any]]:
        """What a streamed choice begins with, as choices."""
        ...

    def parts(self, piece: Piece) -> list[dict[str, Any]]:
        """One piece, as choices of streamed parts."""
        ...

    def choice(self, index: int, text: str, finish: Finish, said: Sequence[Said]) -> dict[str, Any]:
        """One choice of the whole answer."""
        ...


async def whole(form: Form, choices: int, prompt_tokens: int, pieces: AsyncGenerator[Piece]) -> dict[str, Any]:
    """The stream collected into one object. Raises what `answers` raises."""
    texts, finishes, tokens = [""] * choices, list[Finish](["stop"] * choices), 0
    said: list[list[Said]] = [[] for _ in range(choices)]
    async with aclosing(pieces):
        async for piece in pieces:
            texts[piece.index] += piece.text
            finishes[piece.index] = piece.finish or "stop"
            said[piece.index] += piece.said
            tokens += piece.tokens
    made = [form.choice(index, texts[index], finishes[index], said[index]) for index in range(choices)]
    usage = Usage(prompt_tokens, tokens).as_json()
    return {**form.head._asdict(), "object": form.whole_object, "choices": made, "usage": usage}


async def events(
    form: Form, choices: int, prompt_tokens: int, pieces: AsyncGenerator[Piece], include_usage: bool
) -> AsyncGenerator[str]:
    """Server-sent events of one answer; a fault is the last event, without [DONE] behind it."""
    head, tokens = {**form.head._asdict(), "object": form.chunk_object}, 0
    async with aclosing(pieces):
        for index in range(choices):
            for part in form.opening(index):
                yield event({**head, "choices": [part], "usage": None})
        try:
            async for piece in pieces:
                tokens += piece.tokens
                for part in form.parts(piece):
                    yield event({**head, "choices": [part], "usage": None})
        except TimeoutError:
            yield event(error_body("the answer took too long and is not complete", "timeout_error", code="timeout"))
            return
        except Exception as error:
            logger.error("answer %s failed: %s: %s", form.head.id, type(error).__name__, error)
            yield event(error_body("the model failed; the answer is not complete", "server_error", code="engine_fault"))
            return
    if include_usage:
        yield event({**head, "choices": [], "usage": Usage(prompt_tokens, tokens).as_json()})
    yield "data: [DONE]\n\n"


def event(data: Any) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
