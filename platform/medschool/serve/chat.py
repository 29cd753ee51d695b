"""Chat completions: what is read from a request, and how its answer looks.

Source: OpenAI's API reference, "Create chat completion" and "The chat completion chunk object".
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from medschool.serve.answers import Piece, Said
from medschool.serve.engine import Finish
from medschool.serve.reply import Head
from medschool.serve.request import Drawn, Read
from medschool.serve.template import Message, Text

MAX_TOP_LOGPROBS = 20
MAX_MESSAGES = 2048
"""Of one conversation: an empty message, too, takes the template's time."""


def _joined_parts(content: Any) -> Any:
    """Content given as parts, `[{"type": "text", "text": ...}]`, as one string."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content):
        raise ValueError("only parts of type text are supported")
    return "".join(part["text"] for part in content)


class ChatMessage(Read):
    """One turn. `developer` is OpenAI's later name for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined_parts)]

    def as_template(self) -> Message:
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class ChatRequest(Drawn):
    """The honoured parameters of a chat completion."""

    messages: Messages
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of an answer, None for as many as fit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        """How many likely tokens come with each; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class ChatForm(NamedTuple):
    """How a chat completion looks."""

    head: Head
    text: Text
    whole_object: str = "chat.completion"
    chunk_object: str = "chat.completion.chunk"

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [self._part(index, {"role": "assistant", "content": ""})]

    def parts(self, piece: Piece) -> list[dict[str, Any]]:
        parts = []
        if piece.text or piece.said:
            parts.append(self._part(piece.index, {"content": piece.text}, said=piece.said))
        if piece.finish:
            parts.append(self._part(piece.index, {}, piece.finish))
        return parts

    def choice(self, index: int, text: str, finish: Finish, said: Sequence[Said]) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "finish_reason": finish, "logprobs": self._logprobs(said)}

    def _part(self, index: int, delta: dict[str, str], finish: Finish | None = None, said: Sequence[Said] = ()) -> dict[str, Any]:
        return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": self._logprobs(said)}

    def _logprobs(self, said: Sequence[Said]) -> dict[str, Any] | None:
        if not said:
            return None
        content = [
            self._token(one.token, one.likelihood.logprob)
            | {"top_logprobs": [self._token(*likely) for likely in one.likelihood.top]}
            for one in said
            if one.likelihood
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        name = self.text.name(token)
        return {"token": name, "logprob": logprob, "bytes": list(name.encode())}
