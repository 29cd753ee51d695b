"""The chat completion objects of OpenAI's API: what is read from a request, and what is sent back.

A parameter is honoured, ignored because it can not change the answer (`user`, `metadata`, `store`, anything unknown), or
refused with its name because ignoring it would change the answer silently (tools, logprobs, penalties...). Types are strict:
`"n": "2"` is refused, not guessed. Error texts name the parameter and the rule, never the value, which may be a patient's.
"""

import json
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from medschool.serve.admission import error_body
from medschool.serve.engine import Finish
from medschool.serve.template import Message

MAX_CHOICES = 4
MAX_STOPS = 4

REFUSED: dict[str, tuple[Any, ...]] = {
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
}
"""Parameters that are not supported, with the values that ask for nothing and are let through."""


class ApiError(Exception):
    """An answer other than 200. Mirrors OpenAI's error object."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, {"retry-after": "1"} if status == 429 else {}
        kind = {404: "not_found_error", 429: "rate_limit_error"}.get(
            status, "server_error" if status >= 500 else "invalid_request_error"
        )
        self.body = error_body(message, kind, param, code)


def _joined_parts(content: Any) -> Any:
    """Content given as parts, `[{"type": "text", "text": ...}]`, as one string."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content):
        raise ValueError("only parts of type text are supported")
    return "".join(part["text"] for part in content)


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop or []


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class ChatMessage(_Read):
    """One turn. `developer` is OpenAI's later name for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined_parts)]

    def as_template(self) -> Message:
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class StreamOptions(_Read):
    include_usage: bool = False


class ChatRequest(_Read):
    """The honoured parameters; None stands for the default, as OpenAI's clients send it."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS), BeforeValidator(_as_list)] = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def choices(self) -> int:
        return self.n or 1


def read_request(body: bytes) -> ChatRequest:
    """The request in `body`. Raises ApiError 400 that names the parameter at fault."""
    try:
        raw = from_json(body, allow_inf_nan=False)  # stricter than json.loads: no lone surrogates, which no tokenizer can read
    except ValueError:
        raise ApiError(400, "the body is not valid JSON") from None
    if not isinstance(raw, dict):
        raise ApiError(400, "the body must be a JSON object")
    for name, harmless in REFUSED.items():
        if name in raw and raw[name] not in harmless:
            raise ApiError(400, f"{name} is not supported by this server", name, "unsupported_parameter")
    try:
        return ChatRequest.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise ApiError(400, first["msg"], _param(first["loc"]), "invalid_value") from None


def _param(location: tuple[int | str, ...]) -> str:
    """`messages[0].content` of ("messages", 0, "content")."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


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

    def completion(self, texts: list[str], finishes: list[Finish], usage: Usage) -> dict[str, Any]:
        """The whole answer as one object."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "finish_reason": finish,
                "logprobs": None,
            }
            for index, (text, finish) in enumerate(zip(texts, finishes, strict=True))
        ]
        return {**self._asdict(), "object": "chat.completion", "choices": choices, "usage": usage.as_json()}

    def chunk(self, index: int, delta: dict[str, str], finish: Finish | None = None) -> dict[str, Any]:
        """One piece of a streamed answer."""
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**self._asdict(), "object": "chat.completion.chunk", "choices": [choice], "usage": None}

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """The last piece, on request: no choices, the counts."""
        return {**self._asdict(), "object": "chat.completion.chunk", "choices": [], "usage": usage.as_json()}


def event(data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
