"""What a replica counts, in Prometheus' text format on `GET /metrics` (with a key).

    medschool_serve_requests_total{path, status}      requests answered; 429 are those that found no place or were above a limit
    medschool_serve_first_token_seconds               from the end of the request's body to the first token
    medschool_serve_token_seconds                     mean time between the tokens of one request
    medschool_serve_tokens_total{kind}                tokens of prompts and of answers
    medschool_serve_answers_in_flight                 answers running and waiting
    medschool_serve_batch_answers                     answers in the engine's batch, each second
    medschool_serve_waiting_answers                   answers that wait for a place in it
    medschool_serve_cache_used_ratio                  share of the key-value cache that these fill, 0 to 1

The numbers are those of the replica that answers: with several, a scrape meets one of them. The same numbers of all replicas, by
replica, stand on Ray's own endpoint of each node with `ray_` before the name (`gauges`). What a proxy refuses because its queue
is full no replica sees; Ray counts it in `ray_serve_num_http_error_requests_total{error_code="429"}`. No label holds
what a client sent.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from medschool.serve.watch import Load

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

Kind = Literal["counter", "gauge", "histogram"]
Mirror = Callable[[Kind, str, str, Sequence[str]], Any]
"""Makes a number that is shown elsewhere too, of (kind, name, description, labels); it has `inc`, `set` or `observe`."""


class Number:
    """One number with its labels: kept for /metrics, and told to the mirror where there is one."""

    def __init__(self, own: Any, mirrored: Any, names: Sequence[str], tags: Mapping[str, str] | None = None) -> None:
        self._own, self._mirrored, self._names, self._tags = own, mirrored, names, dict(tags or {})
        self._last = 0.0

    def labels(self, *values: str) -> "Number":
        return Number(self._own.labels(*values), self._mirrored, (), dict(zip(self._names, values, strict=True)))

    def inc(self, amount: float = 1) -> None:
        self._own.inc(amount)
        if self._mirrored and amount:
            self._mirrored.inc(amount, self._tags)

    def set(self, value: float) -> None:
        self._last = value
        self._own.set(value)
        self.repeat()

    def repeat(self) -> None:
        """Tell the mirror what a gauge was set to last: Ray shows a gauge only for a while."""
        if self._mirrored:
            self._mirrored.set(self._last, self._tags)

    def observe(self, value: float) -> None:
        self._own.observe(value)
        if self._mirrored:
            self._mirrored.observe(value, self._tags)


class Metrics:
    """The numbers of one app."""

    def __init__(self, mirror: Mirror | None = None) -> None:
        self._registry = CollectorRegistry()

        def number(kind: Kind, name: str, said: str, labels: Sequence[str] = ()) -> Number:
            name = f"medschool_serve_{name}"
            if kind == "histogram":
                own: Any = Histogram(name, said, labels, buckets=SECONDS, registry=self._registry)
            else:
                own = (Counter if kind == "counter" else Gauge)(name, said, labels, registry=self._registry)
            return Number(own, mirror(kind, name, said, labels) if mirror else None, labels)

        self.requests = number("counter", "requests", "Requests answered", ["path", "status"])
        self.tokens = number("counter", "tokens", "Tokens of prompts and answers", ["kind"])
        self.in_flight = number("gauge", "answers_in_flight", "Answers running and waiting")
        self.first_token_s = number("histogram", "first_token_seconds", "Time to first token")
        self.token_s = number("histogram", "token_seconds", "Mean time between tokens")
        self._batch = number("gauge", "batch_answers", "Answers in the engine's batch")
        self._waiting = number("gauge", "waiting_answers", "Answers that wait for a place in the batch")
        self._cache = number("gauge", "cache_used_ratio", "Share of the key-value cache in use")

    def load(self, found: Load) -> None:
        """Show what the engine has to do now. Called every second."""
        self.in_flight.repeat()
        self._batch.set(found.running)
        self._waiting.set(found.waiting)
        self._cache.set(found.cache_share)

    def text(self) -> bytes:
        return generate_latest(self._registry)
