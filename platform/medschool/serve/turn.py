"""One admitted request: the places it holds, what it used, and what is written down when it ends, however it ends."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Literal

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from medschool.serve.answers import Piece

Outcome = Literal["done", "left", "timeout", "fault"]
"""`left`: the client went away, or was cut off, before the answer was whole."""


class Turn:
    """Begins when made. settle: called once with this turn, when it ends."""

    def __init__(self, settle: Callable[["Turn"], None]) -> None:
        self._settle, self._ended = settle, False
        self._start_s, self._first_s, self._last_s = time.monotonic(), 0.0, 0.0
        self.tokens = 0
        self.outcome: Outcome = "left"

    @property
    def seconds(self) -> float:
        """Since the turn began."""
        return time.monotonic() - self._start_s

    @property
    def first_token_s(self) -> float | None:
        """From the beginning to the first token written."""
        return self._first_s - self._start_s if self.tokens else None

    @property
    def token_s(self) -> float | None:
        """Mean seconds between tokens."""
        return (self._last_s - self._first_s) / (self.tokens - 1) if self.tokens > 1 else None

    async def counted(self, pieces: AsyncGenerator[Piece]) -> AsyncGenerator[Piece]:
        """The pieces, counted as they pass; how they end decides the outcome."""
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    self._count(piece.tokens)
                    yield piece
            self.outcome = "done"
        except TimeoutError:
            self.outcome = "timeout"
            raise
        except Exception:
            self.outcome = "fault"
            raise

    def _count(self, tokens: int) -> None:
        if tokens:
            self._last_s = time.monotonic()
            self._first_s = self._first_s or self._last_s
            self.tokens += tokens

    def end(self) -> None:
        """Give back what is held and write it down; a second time does nothing."""
        if not self._ended:
            self._ended = True
            self._settle(self)


class Stream(StreamingResponse):
    """Server-sent events. Ends the turn when they end, however they end: also when the client left before the first one."""

    def __init__(self, sent: AsyncGenerator[str], turn: Turn, headers: dict[str, str]) -> None:
        super().__init__(sent, media_type="text/event-stream", headers=headers)
        self._sent, self._turn = sent, turn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._sent.aclose()
            self._turn.end()
