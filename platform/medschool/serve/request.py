"""What every request for an answer shares: how its JSON is read, and the parameters that decide how an answer is drawn.

A parameter is honoured, ignored because it can not change the answer (`user`, `metadata`, `store`, anything unknown), or
refused with its name because ignoring it would change the answer silently (tools, what the engine lacks).
Types are strict: `"n": "2"` is refused, not guessed. Error texts name the parameter and the rule, never the value, which may be
a patient's.

Source: OpenAI's API reference, "Create chat completion" and "Create completion".
"""

from typing import Annotated, Any, Protocol, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import from_json

from medschool.errors import InputError
from medschool.serve.engine import Sampling
from medschool.serve.faults import ApiError
from medschool.serve.response_format import ResponseFormat

MAX_CHOICES = 4
MAX_STOPS = 4
MAX_BIASED_TOKENS = 1024

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
    "suffix": (None, ""),
    "best_of": (None, 1),
}
"""Parameters that are refused unless the engine honours them, with the values that ask for nothing and are let through."""


class Read(BaseModel):
    """Base of what is read from a request."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class StreamOptions(Read):
    include_usage: bool = False


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop or []


def _few(bias: Any) -> Any:
    if isinstance(bias, dict) and len(bias) > MAX_BIASED_TOKENS:  # before each of them is looked at
        raise ValueError(f"at most {MAX_BIASED_TOKENS} tokens")
    return bias


Penalty = Annotated[float, Field(ge=-2, le=2)]


class Drawn(Read):
    """The parameters that chat and plain completions share; None stands for the default, as OpenAI's clients send it."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=MAX_STOPS), BeforeValidator(_as_list)
    ] = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
            BeforeValidator(_few),
        ]
        | None
    ) = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    response_format: ResponseFormat | None = None

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def schema_text(self) -> str | None:
        """JSON schema that the answer must fit, None for any text."""
        return self.response_format.schema_text if self.response_format else None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, index: int, max_tokens: int, vocab_size: int, top_logprobs: int | None) -> Sampling:
        """How choice `index` is drawn. OpenAI's defaults: temperature 1, top_p 1. Each choice has its own seed.

        Raises ApiError 400 for a biased token that the model does not have.
        """
        bias = {int(token): value for token, value in (self.logit_bias or {}).items()}
        if any(token >= vocab_size for token in bias):
            raise ApiError(400, f"the vocabulary has {vocab_size} tokens", "logit_bias", "invalid_value")
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=None if self.seed is None else (self.seed + index) % 2**63,
            logit_bias=bias,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            top_logprobs=top_logprobs,
            schema=self.schema_text,
        )


class Honouring(Protocol):
    """An engine, seen by what it honours."""

    honours: frozenset[str]

    def check_schema(self, schema: str) -> None: ...


R = TypeVar("R", bound=Read)


def read(kind: type[R], body: bytes, engine: Honouring | None = None) -> R:
    """The request in `body`. Raises ApiError 400 that names the parameter at fault, or that the engine does not honour."""
    try:
        raw = from_json(body, allow_inf_nan=False)  # stricter than json.loads: no lone surrogates, which no tokenizer can read
    except ValueError:
        raise ApiError(400, "the body is not valid JSON") from None
    if not isinstance(raw, dict):
        raise ApiError(400, "the body must be a JSON object")
    for name, harmless in REFUSED.items() if engine else ():
        if engine and name in raw and name not in engine.honours and raw[name] not in harmless:
            raise ApiError(400, f"{name} is not supported by this server", name, "unsupported_parameter")
    try:
        asked = kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise ApiError(400, first["msg"], _param(first["loc"]), "invalid_value") from None
    if engine and isinstance(asked, Drawn) and asked.schema_text:
        try:
            engine.check_schema(asked.schema_text)
        except InputError as error:
            raise ApiError(400, error.problem, "response_format", "invalid_value") from error
    return asked


def _param(location: tuple[int | str, ...]) -> str:
    """`messages[0].content` of ("messages", 0, "content"); the keys of `logit_bias` are the client's own and are left out."""
    location = location[:1] if location and location[0] in ("logit_bias", "prompt") else location
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
