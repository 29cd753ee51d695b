"""The model's tokenizer over HTTP, as evaluation harnesses ask for it: /tokenize, /detokenize, /tokenizer_info.

The form is vLLM's, which lm-evaluation-harness expects (`RemoteTokenizer` in its utils.py): {"prompt": text} or {"messages": ...}
gives {"tokens", "count", "max_model_len"}, {"tokens": ids} gives {"prompt": text}. Texts are encoded as the model's training
encoded them, without special tokens. A text that is nothing but the name of a control token is that token, so that clients can
look it up; inside a longer text such a name stays text.
"""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Request
from pydantic import Field

from medschool.errors import InputError
from medschool.serve.chat import Messages
from medschool.serve.faults import ApiError
from medschool.serve.request import Read, read
from medschool.serve.template import Text

SHORTER = 4
"""A character of a token may stand for so many characters of a text: what Unicode's normal form C composes, at most."""
MAX_CHARS = MAX_TOKENS = 2**17
"""Of one text that is only to be encoded or decoded, which may be longer than the context; 2**17 characters take about 40 ms."""


class TokenizeRequest(Read):
    prompt: str | None = None
    messages: Messages | None = None


class DetokenizeRequest(Read):
    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_TOKENS, fail_fast=True)]


def fitting(encode: Callable[[], list[int]], size: int, text: Text, room: int, param: str) -> list[int]:
    """What `encode` gives, at least one token and at most `room`. size: characters that it encodes.

    Raises ApiError 400 with `param`; a text that is too long by its characters alone is not encoded.
    """
    if size > room * text.longest_token * SHORTER:
        problem = f"the prompt has {size} characters, more than {room} tokens can be"
        raise ApiError(400, problem, param, "context_length_exceeded")
    try:
        tokens = encode()
    except InputError as error:
        raise ApiError(400, error.problem, param, "invalid_value") from error
    if len(tokens) > room:
        problem = f"the prompt has {len(tokens)} tokens, at most {room} fit the context"
        raise ApiError(400, problem, param, "context_length_exceeded")
    if not tokens:
        raise ApiError(400, "it is empty", param, "invalid_value")
    return tokens


class TokenizerApi:
    """The three routes."""

    def __init__(self, text: Text, context_tokens: int) -> None:
        self._text, self._context_tokens = text, context_tokens

    async def tokenize(self, request: Request) -> dict[str, Any]:
        asked = read(TokenizeRequest, await request.body())
        if (asked.prompt is None) == (asked.messages is None):
            raise ApiError(400, "give either `prompt` or `messages`", "prompt", "invalid_value")
        tokens = self._tokens(asked)
        return {"tokens": tokens, "count": len(tokens), "max_model_len": self._context_tokens}

    def _tokens(self, asked: TokenizeRequest) -> list[int]:
        if asked.messages is not None:
            messages = [message.as_template() for message in asked.messages]
            size = sum(len(message["content"]) for message in messages)
            return fitting(lambda: self._text.encode(messages), size, self._text, self._context_tokens, "messages")
        prompt = asked.prompt or ""
        if (control := self._text.control(prompt)) is not None:
            return [control]
        if len(prompt) > MAX_CHARS:
            raise ApiError(400, f"at most {MAX_CHARS} characters at once", "prompt", "invalid_value")
        return self._text.encode_text(prompt)

    async def detokenize(self, request: Request) -> dict[str, str]:
        asked = read(DetokenizeRequest, await request.body())
        if any(token >= self._text.vocab_size for token in asked.tokens):
            raise ApiError(400, f"the vocabulary has {self._text.vocab_size} tokens", "tokens", "invalid_value")
        return {"prompt": self._text.decode(asked.tokens)}

    async def info(self) -> dict[str, Any]:
        return {**self._text.describe(), "vocab_size": self._text.vocab_size, "model_max_length": self._context_tokens}
