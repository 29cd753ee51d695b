"""What a replica counts, in Prometheus' text format on `GET /metrics` (with a key).

    medschool_serve_requests_total{path, status}      requests answered; 429 are those that found no place or were above a limit
    medschool_serve_first_token_seconds               from the end of the request's body to the first token
    medschool_serve_token_seconds                     mean time between the tokens of one request
    medschool_serve_tokens_total{kind}                tokens of prompts and of answers
    medschool_serve_answers_in_flight                 answers running and waiting

The numbers are those of the replica that answers: with several, a scrape meets one of them. No label holds what a client sent.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The counters of one app."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def named(name: str) -> str:
            return f"medschool_serve_{name}"

        registry = self._registry
        self.requests = Counter(named("requests"), "Requests answered", ["path", "status"], registry=registry)
        self.tokens = Counter(named("tokens"), "Tokens of prompts and answers", ["kind"], registry=registry)
        self.in_flight = Gauge(named("answers_in_flight"), "Answers running and waiting", registry=registry)
        self.first_token_s = Histogram(named("first_token_seconds"), "Time to first token", buckets=SECONDS, registry=registry)
        self.token_s = Histogram(named("token_seconds"), "Mean time between tokens", buckets=SECONDS, registry=registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)
