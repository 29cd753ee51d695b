"""Plain completions: the prompt is taken as it is, as text or as token ids, and can come back with log-probabilities.

`echo` with `logprobs` and `max_tokens` 0 or 1 is how evaluation harnesses score given texts. A text is encoded without special
tokens, as the documents of continued pretraining are; token ids are taken as they come, control tokens too.

Source: OpenAI's API reference, "Create completion" (legacy), for `logprobs` the object {tokens, token_logprobs, top_logprobs,
text_offset}.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from medschool.serve.answers import Piece, Said
from medschool.serve.engine import Finish
from medschool.serve.reply import Head
from medschool.serve.request import Drawn
from medschool.serve.template import Text

DEFAULT_MAX_TOKENS = 16
MAX_LOGPROBS = 5

Some = Field(min_length=1, fail_fast=True)
"""Of a list: not empty, and the first wrong element ends the reading, since a body has room for 500,000 of them."""
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Some]


class CompletionRequest(Drawn):
    """The honoured parameters of a plain completion."""

    prompt: str | TokenIds | Annotated[list[str], Some] | Annotated[list[TokenIds], Some]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One a choice (before `n`): texts or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else list(self.prompt)

    @property
    def most_tokens(self) -> int:
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens


class CompletionForm(NamedTuple):
    """How a plain completion looks. top: the request's `logprobs`."""

    head: Head
    text: Text
    top: int | None
    whole_object: str = "text_completion"
    chunk_object: str = "text_completion"

    def opening(self, index: int) -> list[dict[str, Any]]:
        return []

    def parts(self, piece: Piece) -> list[dict[str, Any]]:
        return (
            [self._choice(piece.index, piece.text, piece.finish, piece.said)] if piece.text or piece.said or piece.finish else []
        )

    def choice(self, index: int, text: str, finish: Finish, said: Sequence[Said]) -> dict[str, Any]:
        return self._choice(index, text, finish, said)

    def _choice(self, index: int, text: str, finish: Finish | None, said: Sequence[Said]) -> dict[str, Any]:
        return {"index": index, "text": text, "finish_reason": finish, "logprobs": self._logprobs(said)}

    def _logprobs(self, said: Sequence[Said]) -> dict[str, Any] | None:
        if self.top is None:
            return None
        return {
            "tokens": [self.text.name(one.token) for one in said],
            "token_logprobs": [one.likelihood.logprob if one.likelihood else None for one in said],
            "top_logprobs": [self._top(one) for one in said],
            "text_offset": [one.offset for one in said],
        }

    def _top(self, one: Said) -> dict[str, float] | None:
        """The most likely tokens by name, and the token itself; where two have one name, the likelier counts."""
        if one.likelihood is None:
            return None
        found: dict[str, float] = {}
        for token, logprob in (*one.likelihood.top, (one.token, one.likelihood.logprob)):
            found.setdefault(self.text.name(token), logprob)
        return found
