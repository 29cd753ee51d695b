"""What the API asks of a model: token ids in, token ids out, one step at a time, cancelled by closing the iterator.

An engine owns no text, no HTTP and no limits. It is asynchronous because many requests are in flight at once; the engine decides
how to batch them. Closing the iterator (`aclose`, or cancelling the task that reads it) frees the request's place at once.

Sampling is a pure function of (logits, seed, position): the same seed gives the same text whatever else is in the batch, as
far as the logits themselves are the same (batching changes the order of float additions).
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Finish = Literal["stop", "length"]


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


@dataclass(frozen=True)
class Step:
    """Tokens that are new since the last step, and why the answer ended if it did. An end token is part of `tokens`."""

    tokens: tuple[int, ...]
    finish: Finish | None = None


class Engine(Protocol):
    """Any model that can answer."""

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step]:
        """Steps of one answer; exactly the last has `finish`. Raises ServiceError when the engine fails on the way."""
        ...

    def check(self) -> None:
        """Raises ServiceError when the engine can not answer any more and its process should be replaced."""
        ...

    def stop(self) -> None:
        """End the engine's threads and free its memory."""
        ...


class EchoEngine:
    """Repeats the prompt, token by token, then stops. No weights: what is measured is everything around the model.

    delay_s: pause before each token, to imitate a model's speed.
    """

    def __init__(self, delay_s: float = 0.0) -> None:
        self._delay_s = delay_s

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step]:
        answer = prompt[: sampling.max_tokens]
        for position, token in enumerate(answer, start=1):
            await asyncio.sleep(self._delay_s)
            end: Finish = "stop" if len(answer) == len(prompt) else "length"
            yield Step((token,), end if position == len(answer) else None)

    def check(self) -> None:
        return

    def stop(self) -> None:
        return
