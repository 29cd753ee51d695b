"""What one key may take: requests and tokens a minute, answers at once.

A window is exact: whatever 60 seconds are looked at, no more than the limit lies in them (a refilled bucket lets through up to
twice its limit in the first minute). It remembers each request of the last minute, so it also knows when the next one fits, and
says so in Retry-After.

Tokens are reserved before the work, with the most that the answer may have, and given back when it turned out shorter. So a key
cannot get past its limit by asking for much at once, and a client with small answers should set `max_tokens`.

The counts are those of one replica and start anew with it.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from medschool.serve.faults import ApiError
from medschool.serve.keys import Key

WINDOW_S = 60.0


@dataclass(eq=False)
class Taken:
    """One entry of a window. counted: it has not left the window yet."""

    at_s: float
    cost: int
    counted: bool = True


class Window:
    """At most `limit` in any WINDOW_S seconds."""

    def __init__(self, limit: int) -> None:
        self.limit, self._sum = limit, 0
        self._entries: deque[Taken] = deque()

    def wait_s(self, cost: int, now_s: float) -> float:
        """Seconds until `cost` fits; 0 when it does now, infinite when it never will."""
        while self._entries and self._entries[0].at_s <= now_s - WINDOW_S:
            gone = self._entries.popleft()
            gone.counted = False
            self._sum -= gone.cost
        room = self.limit - self._sum
        if cost <= room:
            return 0.0
        for entry in self._entries:
            room += entry.cost
            if cost <= room:
                return entry.at_s + WINDOW_S - now_s
        return math.inf

    def take(self, cost: int, now_s: float) -> Callable[[int], None]:
        """Count `cost` now; the function returned sets it to what was really used."""
        entry = Taken(now_s, cost)
        self._entries.append(entry)
        self._sum += cost

        def used(count: int) -> None:
            if entry.counted:
                self._sum += count - entry.cost
                entry.cost = count

        return used


class Quota:
    """The limits of one key, and what it has taken. clock: seconds, never going back."""

    def __init__(self, key: Key, clock: Callable[[], float] = time.monotonic) -> None:
        self.key, self._clock, self._answers = key, clock, 0
        self._requests = Window(key.requests_per_minute) if key.requests_per_minute is not None else None
        self._tokens = Window(key.tokens_per_minute) if key.tokens_per_minute is not None else None

    def request(self) -> None:
        """Count one request. Raises ApiError 429."""
        if self._requests:
            now_s = self._clock()
            if wait_s := self._requests.wait_s(1, now_s):
                raise _too_many(f"this key may send {self._requests.limit} requests a minute", "requests", wait_s)
            self._requests.take(1, now_s)

    def answers(self, count: int, tokens: int) -> Callable[[int], None]:
        """Count `count` answers that begin and at most `tokens` tokens; call what is returned once, with the tokens used.

        Raises ApiError: 429, or 400 where the tokens are more than a minute's.
        """
        most = self.key.concurrency
        if most is not None and count > most:
            raise ApiError(400, f"this key may have {most} answers at once", "n", "invalid_value")
        if most is not None and self._answers + count > most:
            raise ApiError(429, f"this key may have {most} answers at once", code="concurrency_limit")
        used = self._reserved(tokens)
        self._answers += count

        def ended(tokens_used: int) -> None:
            self._answers -= count
            used(tokens_used)

        return ended

    def _reserved(self, tokens: int) -> Callable[[int], None]:
        if not self._tokens:
            return lambda _: None
        now_s, limit = self._clock(), self._tokens.limit
        if tokens > limit:
            problem = (
                f"prompt and longest answer are {tokens} tokens, this key may have {limit} a minute; set a smaller max_tokens"
            )
            raise ApiError(400, problem, "max_tokens", "rate_limit_exceeded")
        if wait_s := self._tokens.wait_s(tokens, now_s):
            raise _too_many(f"this key may have {limit} tokens a minute", "tokens", wait_s)
        return self._tokens.take(tokens, now_s)


def _too_many(problem: str, what: str, wait_s: float) -> ApiError:
    return ApiError(429, f"{problem}; try again in {wait_s:.0f} s", code=f"{what}_limit", retry_after_s=wait_s)
