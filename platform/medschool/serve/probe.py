"""Whether a model that was just loaded answers: it is asked one question before any request can reach it.

    question -> PROBE_TOKENS tokens, greedily -> are they there in time? are their log-probabilities sound?

Weights whose hashes are right can still be wrong: not-a-number after a diverged run, all zeros after a broken export, a batch
whose attention or cache is out of order on this machine. So it is asked that

1. the answer comes within PROBE_TIMEOUT_S, and is not empty;
2. every log-probability is a finite number;
3. the model prefers some token: one that finds all alike (log-probability -ln V everywhere) has lost its weights;
4. a plain forward over the same text finds what the running batch found, within AGREE_NATS.

Where the engine gives no log-probabilities only the first is asked. Not asked: whether the answer is any good, which the gate
decided before the model got its alias. Price: one short answer, well under a second for small models on a CPU.

V: vocabulary.
"""

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from medschool.errors import ServiceError
from medschool.serve.engine import Engine, Likelihood, Sampling, Step
from medschool.serve.template import Text

QUESTION = "What does the liver do?"
PROBE_TOKENS = 8
PROBE_TIMEOUT_S = 120.0
AGREE_NATS = 1.0
"""Two computations of one log-probability in bf16 differ by some hundredths; with another attention, by whole nats."""
PREFERS_NATS = 1e-3


def probe(engine: Engine, text: Text, context_tokens: int, timeout_s: float = PROBE_TIMEOUT_S, adapter: str = "") -> None:
    """Ask the question, of an adapter where one is named; may be called inside a running loop.

    Raises ServiceError with what is wrong.
    """
    most = min(PROBE_TOKENS, context_tokens - 1)
    prompt = text.encode([{"role": "user", "content": QUESTION}])[: context_tokens - most]
    with ThreadPoolExecutor(1, "probe") as other:  # a thread without a running loop
        try:
            steps, scored = other.submit(asyncio.run, _asked(engine, prompt, most, timeout_s, adapter)).result()
        except TimeoutError as error:
            raise _wrong(f"no answer of {most} tokens within {timeout_s:g} s") from error
    tokens = [token for step in steps for token in step.tokens]
    if not tokens:
        raise _wrong("its answer is empty")
    if scored:
        _must_be_sound([one for step in steps for one in step.likelihoods], scored[len(prompt) :], text.vocab_size)


async def _asked(
    engine: Engine, prompt: Sequence[int], most: int, timeout_s: float, adapter: str
) -> tuple[list[Step], list[Likelihood | None]]:
    """Steps of the answer, and what a plain forward finds for prompt and answer; nothing where the engine can not tell."""
    known = "logprobs" in engine.honours
    async with asyncio.timeout(timeout_s):
        sampling = Sampling(most, top_logprobs=1 if known else None, adapter=adapter)
        steps = [step async for step in engine.generate(prompt, sampling)]
        answer = [token for step in steps for token in step.tokens]
        return steps, await engine.score([*prompt, *answer], 1, adapter) if known else []


def _must_be_sound(written: Sequence[Likelihood], scored: Sequence[Likelihood | None], vocab_size: int) -> None:
    for place, (one, again) in enumerate(zip(written, scored, strict=True), start=1):
        assert again is not None  # only the first token of a text has none
        found = (one.logprob, one.top[0][1], again.logprob)
        if not all(map(math.isfinite, found)):
            raise _wrong(
                f"the log-probability of token {place} of its answer is {one.logprob:g}, {again.logprob:g} by a plain forward"
            )
        if one.top[0][1] < PREFERS_NATS - math.log(vocab_size):
            raise _wrong(f"it finds all {vocab_size} tokens equally likely: its weights are lost")
        if abs(one.logprob - again.logprob) > AGREE_NATS:
            both = f"{one.logprob:.2f} in the running batch, {again.logprob:.2f} by a plain forward"
            raise _wrong(f"the log-probability of token {place} of its answer is {both}")


def _wrong(problem: str) -> ServiceError:
    remedy = "give the alias back (`medschool promote RECIPE --rollback`), or train the model again"
    return ServiceError(f"the model fails its warm-up probe: {problem}", remedy, "serve")
