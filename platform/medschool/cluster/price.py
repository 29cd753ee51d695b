"""What an hour of a node costs: a label that the cluster file gives to its nodes, so that a running cluster knows it too."""

from collections.abc import Mapping

PRICE = "medschool/usd-per-hour"
"""Label of a node: USD an hour of it, as its user pays."""


def price_of(labels: Mapping[str, str]) -> float | None:
    """USD an hour of a node with these labels; None where they do not say a number of at least 0."""
    try:
        price = float(labels[PRICE])
    except (KeyError, ValueError):
        return None
    return price if 0 <= price < float("inf") else None
