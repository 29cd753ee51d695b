"""What the API asks of a model: token ids in, token ids out, one step at a time, cancelled by closing the iterator.

An engine owns no text, no HTTP and no limits. It is asynchronous because many requests are in flight at once; the engine decides
how to batch them. Closing the iterator (`aclose`, or cancelling the task that reads it) frees the request's place at once.

Sampling is a pure function of (logits, seed, position): the same seed gives the same text whatever else is in the batch, as
far as the logits themselves are the same (batching changes the order of float additions).

Log-probabilities are those of the model itself, before temperature, bias and penalties, so they do not depend on how the
answer was drawn.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Likelihood:
    """How likely the model found one token, in natural logarithms. top: the most likely tokens in its place, likeliest first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How one answer is drawn."""

    max_tokens: int
    """Most tokens to generate, at least 1; prompt and answer together must fit the context."""
    temperature: float = 0.0
    """0 takes the most likely token; otherwise the logits are divided by it."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens with at least this probability; 1 draws from all."""
    seed: int | None = None
    """64-bit seed; None draws one."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that the answer has already."""
    frequency_penalty: float = 0.0
    """Taken from them once for each time that the answer has them."""
    top_logprobs: int | None = None
    """So many of the most likely tokens come with each token, and its own log-probability; None asks for neither."""
    schema: str | None = None
    """JSON schema, as text, that the answer must fit; None for any text."""
    adapter: str = ""
    """Name of the adapter that writes it, over the model; empty for the model as it is."""


@dataclass(frozen=True)
class Step:
    """Tokens that are new since the last step, and why the answer ended if it did. An end token is part of `tokens`.

    likelihoods: one a token where `top_logprobs` asked for them, else none.
    """

    tokens: tuple[int, ...]
    finish: Finish | None = None
    likelihoods: tuple[Likelihood, ...] = ()


class Engine(Protocol):
    """Any model that can answer."""

    honours: frozenset[str]
    """Which of the API's parameters beyond temperature, top_p and seed can be honoured: `logprobs`, `logit_bias`..."""

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step]:
        """Steps of one answer; exactly the last has `finish`. Raises ServiceError when the engine fails on the way."""
        ...

    async def score(self, tokens: Sequence[int], top: int, adapter: str = "") -> list[Likelihood | None]:
        """How likely each token is after those before it; None for the first. adapter: as in `Sampling`.

        Raises ServiceError when the engine fails.
        """
        ...

    def check(self) -> None:
        """Raises ServiceError when the engine can not answer any more and its process should be replaced."""
        ...

    def stop(self) -> None:
        """End the engine's threads and free its memory."""
        ...

    def check_schema(self, schema: str) -> None:
        """Raises InputError for a JSON schema that answers can not be made to fit; asked where `honours` has response_format."""
        return


class EchoEngine(Engine):
    """Repeats the prompt, token by token, then stops. No weights: what is measured is everything around the model.

    It is deterministic whatever the seed. As a model it finds each token that comes half likely, the next id a quarter, and so
    on by halves around the vocabulary, so log-probabilities can be checked by hand.
    delay_s: pause before each token, to imitate a model's speed. vocab_size: number of token ids.
    """

    honours = frozenset({"logprobs", "top_logprobs"})

    def __init__(self, delay_s: float = 0.0, vocab_size: int = 256) -> None:
        self._delay_s, self._vocab_size = delay_s, vocab_size

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step]:
        answer = prompt[: sampling.max_tokens]
        for position, token in enumerate(answer, start=1):
            await asyncio.sleep(self._delay_s)
            end: Finish = "stop" if len(answer) == len(prompt) else "length"
            likely = () if sampling.top_logprobs is None else (self._likelihood(token, sampling.top_logprobs),)
            yield Step((token,), end if position == len(answer) else None, likely)

    async def score(self, tokens: Sequence[int], top: int, adapter: str = "") -> list[Likelihood | None]:
        return [None, *(self._likelihood(token, top) for token in tokens[1:])]

    def _likelihood(self, token: int, top: int) -> Likelihood:
        near = [((token + step) % self._vocab_size, -(step + 1) * math.log(2)) for step in range(min(top, self._vocab_size))]
        return Likelihood(-math.log(2), tuple(near))

    def check(self) -> None:
        return

    def stop(self) -> None:
        return
