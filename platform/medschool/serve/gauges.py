"""A replica's numbers in Ray's own Prometheus endpoint, beside those of Ray: each node has one, found through its head.

    replica --> the node's metrics agent --every 10 s--> http://node:port/metrics --scrape--> Prometheus

Names and labels are those of `metrics`, with `ray_` before the name and Serve's labels `deployment`, `replica` and `application`
behind. Price: some ten microseconds a number, a few numbers a request.
"""

from collections.abc import Sequence
from typing import Any

from ray.serve.metrics import Counter, Gauge, Histogram

from medschool.serve.metrics import SECONDS, Kind


def shown_on_ray(kind: Kind, name: str, description: str, labels: Sequence[str]) -> Any:
    """One number on Ray's endpoint. Called in a replica, it carries the replica's name."""
    keys = tuple(labels)
    if kind == "histogram":
        return Histogram(name, description, boundaries=list(SECONDS), tag_keys=keys)
    if kind == "counter":
        return Counter(f"{name}_total", description, tag_keys=keys)
    return Gauge(name, description, tag_keys=keys)
