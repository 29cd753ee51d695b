"""The one path of every answer: jobs -> one task each, all feeding one queue -> pieces of text as they become certain.

A request is one job or several: `n` choices, several prompts, or both. A whole answer is the collected stream, so the two
always say the same. When the reader goes away, or one job fails, the tasks are cancelled, which frees the engine's places.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from medschool.serve.engine import Engine, Finish, Likelihood, Sampling
from medschool.serve.template import Answer, Text


@dataclass(frozen=True)
class Job:
    """One choice to write.

    sampling: None where nothing is to be written, only the prompt given back. echo: the prompt's text, where it is to come first.
    adapter: which one answers, as in `Sampling`.
    """

    prompt: tuple[int, ...]
    sampling: Sampling | None
    stops: tuple[str, ...] = ()
    echo: str | None = None
    top_logprobs: int | None = None
    adapter: str = ""

    @property
    def most_tokens(self) -> int:
        """Most tokens that the answer can have."""
        return self.sampling.max_tokens if self.sampling else 0


@dataclass(frozen=True)
class Said:
    """One token with its log-probabilities (None for the first token of a prompt). offset: characters of the text before it."""

    token: int
    likelihood: Likelihood | None
    offset: int


@dataclass(frozen=True)
class Piece:
    """Text that became certain for one choice, the tokens written for it, and how the choice ended if it did."""

    index: int
    text: str
    tokens: int
    finish: Finish | None
    said: tuple[Said, ...] = ()


async def answers(engine: Engine, text: Text, jobs: Sequence[Job], timeout_s: float) -> AsyncGenerator[Piece]:
    """Pieces of all choices as they come. When one fails, the others are cancelled.

    Raises ServiceError when the engine fails, TimeoutError when the answers are not whole after `timeout_s`.
    """
    queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()
    clock = asyncio.get_running_loop().time
    end_s = clock() + timeout_s

    async def pump(index: int, job: Job) -> None:
        try:
            async for piece in _choice(engine, text, job, index):
                queue.put_nowait(piece)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(index, job)) for index, job in enumerate(jobs)]
    left = len(tasks)
    try:
        while left:
            piece = await asyncio.wait_for(queue.get(), max(0.0, end_s - clock()))
            if isinstance(piece, Exception):
                raise piece
            left -= piece.finish is not None
            yield piece
    finally:
        for task in tasks:
            task.cancel()


async def _choice(engine: Engine, text: Text, job: Job, index: int) -> AsyncGenerator[Piece]:
    start = len(job.echo or "")
    if job.echo is not None:
        scored = [] if job.top_logprobs is None else await engine.score(job.prompt, job.top_logprobs, job.adapter)
        finish: Finish | None = None if job.sampling else "length"
        yield Piece(index, job.echo, 0, finish, _placed(text, job.prompt, scored))
    if job.sampling is None:
        return
    answer = Answer(text, job.stops)
    async with aclosing(engine.generate(job.prompt, replace(job.sampling, adapter=job.adapter))) as steps:
        async for step in steps:
            fresh, said = "", []
            for place, token in enumerate(step.tokens):
                if step.likelihoods:
                    said.append(Said(token, step.likelihoods[place], start + len(fresh)))
                fresh += answer.push([token])
            fresh += answer.close() if step.finish else ""
            start += len(fresh)
            finish = "stop" if answer.stopped else step.finish
            yield Piece(index, fresh, len(step.tokens), finish, tuple(said))
            if finish:
                return


def _placed(text: Text, tokens: Sequence[int], scored: Sequence[Likelihood | None]) -> tuple[Said, ...]:
    """A prompt's tokens with what was found for them, and where each begins in its text."""
    answer, offset, said = Answer(text), 0, []
    for token, likelihood in zip(tokens, scored, strict=False):
        said.append(Said(token, likelihood, offset))
        offset += len(answer.push([token]))
    return tuple(said)
