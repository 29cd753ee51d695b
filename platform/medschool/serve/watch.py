"""Whether the engine still works: a thread looks at it every second, and ends its answers when it is dead or hangs.

    api --prompt--> WatchedEngine --> engine        tokens come back the same way
                         ^ a look every LOOK_S: is it alive? does it go on while answers run?

*Dead* is what the engine's own `check` says. It *hangs* when answers run and for `silent_looks` looks in a row it has neither
begun another turn of its loop nor written a token. Looks are counted, not seconds: a machine that is overloaded or was
suspended holds up the thread that looks as well, so slowness of the whole is not taken for a hang.

Then every running answer ends with a ServiceError, which its client gets as an error event; later ones are refused, `check`
raises, and `failed` is called once. The limit must lie above the engine's longest turn: one pass of a full batch through the
model.

Price: one addition a token, and a few comparisons a second. Not seen: a hang while a given text is scored (its request ends
with its own deadline), and a process that stands still as a whole, which Ray Serve finds because it does not answer.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from medschool.errors import MedschoolError, ServiceError
from medschool.serve.engine import Engine, Likelihood, Sampling, Step

LOOK_S = 1.0
"""Seconds between two looks."""


@dataclass(frozen=True)
class Load:
    """What an engine has to do at one moment.

    running: answers in its batch. waiting: answers without a place in it. cache_share: of its key-value cache that the running
    answers fill, 0 to 1; prefixes that are kept for later do not count.
    """

    running: int = 0
    waiting: int = 0
    cache_share: float = 0.0


@runtime_checkable
class Observable(Protocol):
    """An engine that lets itself be looked into. Of any other only the tokens that it writes are seen."""

    @property
    def turns(self) -> int:
        """Turns of its loop since it began."""
        ...

    def load(self) -> Load: ...


@dataclass(frozen=True, eq=False)
class _Answer:
    """One running answer: the task that reads it, and that task's loop."""

    loop: asyncio.AbstractEventLoop
    task: asyncio.Task


class WatchedEngine:
    """`engine`, watched. failed: told once what is wrong, in the thread that looks. seen: told the load at each look."""

    def __init__(
        self,
        engine: Engine,
        silent_looks: int,
        failed: Callable[[ServiceError], None] | None = None,
        seen: Callable[[Load], None] | None = None,
        look_s: float = LOOK_S,
    ) -> None:
        self.honours = engine.honours
        self._engine, self._silent_looks, self._look_s = engine, silent_looks, look_s
        self._failed, self._seen = failed, seen
        self._answers: set[_Answer] = set()
        self._steps = 0
        self._fault: MedschoolError | None = None
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step]:
        """The engine's own steps. Raises ServiceError when it fails, or was found dead or hanging meanwhile."""
        self.check()
        task = asyncio.current_task()
        assert task is not None
        answer = _Answer(asyncio.get_running_loop(), task)
        self._answers.add(answer)
        try:
            async with aclosing(self._engine.generate(prompt, sampling)) as steps:
                async for step in steps:
                    self._steps += 1
                    yield step
        except asyncio.CancelledError:
            if self._fault is None:
                raise
            task.uncancel()
            raise ServiceError(*self._fault.args) from None
        finally:
            self._answers.discard(answer)

    async def score(self, tokens: Sequence[int], top: int, adapter: str = "") -> list[Likelihood | None]:
        self.check()
        return await self._engine.score(tokens, top, adapter)

    def check(self) -> None:
        if self._fault is not None:
            raise ServiceError(*self._fault.args)
        self._engine.check()

    def check_schema(self, schema: str) -> None:
        self._engine.check_schema(schema)

    def load(self) -> Load:
        """What there is to do now, as far as the engine tells."""
        return self._engine.load() if isinstance(self._engine, Observable) else Load(len(self._answers))

    def stop(self) -> None:
        self._stopped.set()
        self._engine.stop()

    def _watch(self) -> None:
        silent, before = 0, self._progress()
        while not self._stopped.wait(self._look_s):
            now = self._progress()
            silent = silent + 1 if self._answers and now == before else 0
            before = now
            if fault := self._found(silent):
                self._end(fault)
                return
            if self._seen:
                self._seen(self.load())

    def _progress(self) -> tuple[int, int]:
        return self._steps, self._engine.turns if isinstance(self._engine, Observable) else 0

    def _found(self, silent: int) -> ServiceError | None:
        """What is wrong after so many looks without progress."""
        try:
            self._engine.check()
        except ServiceError as error:
            return error
        if silent < self._silent_looks:
            return None
        remedy = "the replica is replaced; set serve.health_period_s above the model's longest step"
        problem = f"the engine hangs: {len(self._answers)} answers run, and nothing happened for {silent * self._look_s:g} s"
        return ServiceError(problem, remedy, "engine")

    def _end(self, fault: ServiceError) -> None:
        self._fault = fault
        for answer in list(self._answers):
            with contextlib.suppress(RuntimeError):  # its loop has ended, and the answer with it
                answer.loop.call_soon_threadsafe(self._cancel, answer)
        if self._failed:
            self._failed(fault)

    def _cancel(self, answer: _Answer) -> None:
        if answer in self._answers:
            answer.task.cancel()
