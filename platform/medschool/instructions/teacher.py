"""A client of the teacher: it asks once, keeps what is answered, and is patient with what is not.

    messages, number of the try --answer kept in the store?--> it, at no cost
                                --budget--> request --failed, for now?--> wait, the same again
                                                    --answered--> kept in the store

A fault that may pass is asked again here, after a growing random wait, or after what its Retry-After says. Another one (a page of
HTML, no JSON) is up to the caller, who has `tries`; nothing is kept of it. What may come back: medschool.instructions.endpoint.

A Retry-After holds for all threads. When no answer has come for PATIENCE_S and one timeout, the teacher is down: ServiceError.
A single request that fails ATTEMPTS times while others are answered is given up alone, as a Fault. After an error of one
thread no other one sends any more.

The retries are made here and not by OpenAI's client: that one takes a page of HTML for an answer, and its waits know nothing of
each other. Every thread has one request under way at most.
"""

import random
import time
from collections.abc import Iterator
from threading import Event, Lock
from types import TracebackType

from medschool.errors import ServiceError, StoppedError
from medschool.instructions.answers import Answer, keep_answer, key_of, read_answer
from medschool.instructions.endpoint import Endpoint, Fault
from medschool.instructions.spending import Ledger, most_tokens
from medschool.recipe.instructions import Teacher

PATIENCE_S = 120.0
ATTEMPTS = 6
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 20.0


class Client:
    """Asks the teacher; one for a whole set, used by many threads."""

    def __init__(self, teacher: Teacher, cache_uri: str, ledger: Ledger) -> None:
        self.teacher, self.ledger = teacher, ledger
        self._cache_uri, self._patience_s = cache_uri, PATIENCE_S + teacher.timeout_s
        self._endpoint = Endpoint(teacher, ledger)
        self._stopped, self._lock = Event(), Lock()
        self._failure: Exception = StoppedError("asking was stopped", "run again: what was answered is kept", teacher.url)
        self._answered = 0
        self._bad_since: float | None = None
        self._not_before = 0.0

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self._endpoint.close()

    def stop(self) -> None:
        """Send nothing any more, and wait for nothing; requests under way end as they will."""
        self._stopped.set()

    def answers(self, prompt: str, row: int) -> Iterator[Answer | Fault]:
        """What the teacher says to the prompt of a row, up to `tries` times: first the answers that are kept, then new ones.

        An answer is kept under its number among the answers to this prompt. A fault takes one of the tries and no number: a later
        run finds the same answers under the same numbers. Ends after a prompt that is refused. Raises ServiceError when the
        teacher is down or does not know us, OverBudget when the next answer may cost too much; from then on in every thread.
        """
        messages = [{"role": "user", "content": prompt}]
        kept = self._kept(messages)
        self.ledger.is_read(row)
        yield from kept
        number = len(kept) + 1
        for _ in range(self.teacher.tries - len(kept)):
            found = self._new(messages, number, row)
            yield found
            if isinstance(found, Answer):
                number += 1
            elif found.kind == "refused":
                return

    def _kept(self, messages: list[dict[str, str]]) -> list[Answer]:
        found: list[Answer] = []
        while len(found) < self.teacher.tries:
            answer = read_answer(self._cache_uri, key_of(self.teacher, messages, len(found) + 1))
            if answer is None:
                break
            self._bad_since = None  # the clock of the patience runs while nothing but failures come
            self.ledger.pay(answer, cached=True)
            found.append(answer)
        return found

    def _new(self, messages: list[dict[str, str]], number: int, row: int) -> Answer | Fault:
        try:
            with self.ledger.set_aside(most_tokens(self.teacher, messages), row):
                self._wait(0.0)
                found = self._patiently(messages)
                if isinstance(found, Answer):
                    found = keep_answer(self._cache_uri, key_of(self.teacher, messages, number), found)
                    self.ledger.pay(found, cached=False)
                return found
        except Exception as error:
            with self._lock:
                if not self._stopped.is_set():
                    self._failure = error
                self._stopped.set()
            raise

    def _patiently(self, messages: list[dict[str, str]]) -> Answer | Fault:
        """Send until something comes that a wait will not better."""
        before, attempt = self._answered, 0
        while True:
            self._wait_for_all()
            found = self._endpoint.send(messages)
            if isinstance(found, Answer):
                with self._lock:
                    self._answered += 1
                    self._bad_since = None
                return found
            attempt += 1
            self.ledger.fault(found.kind)
            self._check_patience(found)
            if found.kind == "refused":
                return found
            self._wait(_wait_s(attempt))
            if not found.again or (attempt >= ATTEMPTS and not found.busy and self._answered > before):
                return found
            self.ledger.add("retries")

    def _check_patience(self, fault: Fault) -> None:
        """Note the wait that a fault asks for. Raises ServiceError when nothing but faults came for too long, or will."""
        with self._lock:
            now = time.monotonic()
            if self._bad_since is None:
                self._bad_since = now
            wait_s = fault.wait_s or 0.0
            self._not_before = max(self._not_before, now + wait_s)
            silent_s = now - self._bad_since
        if silent_s + wait_s > self._patience_s:
            asks = f" and asks to be left alone for {wait_s:.0f} s" if wait_s else ""
            raise ServiceError(
                f"the teacher has answered nothing for {silent_s:.0f} s{asks}; the last we heard: {fault.kind}, {fault.says}",
                "start it, or correct teacher.url, and run again: what was answered is kept",
                self.teacher.url,
            )

    def _wait_for_all(self) -> None:
        """Until the last Retry-After that any thread met is over, and a little longer: threads do not come back at once."""
        while (left_s := self._not_before - time.monotonic()) > 0:
            self._wait(left_s + random.uniform(0, FIRST_WAIT_S))

    def _wait(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise self._failure


def _wait_s(attempt: int) -> float:
    """Random, so that threads do not come back at once; up to twice as long each time."""
    longest = min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S)
    return random.uniform(longest / 2, longest)
