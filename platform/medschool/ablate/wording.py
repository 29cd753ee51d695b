"""Numbers of the verdict in words, the same wherever a user reads them."""

from typing import Any

from medschool.ablate.verdict import Measure


def percent(value: float) -> str:
    """`-4.3%`"""
    return f"{100 * value:+.1f}%"


def change_text(measure: Measure, value: float | None) -> str:
    """`-4.3%` of perplexity, `+1.5 pts` of accuracy, `-` where there is none."""
    if value is None:
        return "-"
    return percent(value) if measure == "perplexity" else f"{100 * value:+.1f} pts"


def interval_text(measure: Measure, low: float | None, high: float | None) -> str:
    """`[-6.4%, -2.1%]` of perplexity, `[-3.0, +6.0]` points of accuracy."""
    if low is None or high is None:
        return "no interval"
    return f"[{percent(low)}, {percent(high)}]" if measure == "perplexity" else f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def margin_text(measure: Measure, value: float) -> str:
    """`5.0%` of perplexity, `2.0 pts` of accuracy."""
    return change_text(measure, value).removeprefix("+")


def gain_text(measure: Measure, value: float) -> str:
    """`-0.6 nats`, `+1.5 pts`, with three digits however small: `-0.00123 nats`."""
    return f"{value:+.3g} nats" if measure == "perplexity" else f"{100 * value:+.3g} pts"


def p_text(value: float | None) -> str:
    """`0.61`, `0.041`, `<0.001`, `-` where there is none."""
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def needs_text(wanting: dict[str, Any] | None, measure: Measure) -> str:
    """`needs about 1,300 items or 5 seeds`; '' where there is nothing to say."""
    if wanting is None:
        return ""
    units = {"items": "documents" if measure == "perplexity" else "items", "seeds": "seeds"}
    ways = [f"{wanting[key]:,} {unit}" for key, unit in units.items() if wanting[key] is not None]
    return f"needs about {' or '.join(ways)}" if ways else "no number of items would tell"


def word_text(effect: dict[str, Any]) -> str:
    """`helped`, `cannot tell (needs about 1,300 items)`"""
    wanting = needs_text(effect["needs"], effect["measure"])
    return f"{effect['word']} ({wanting})" if wanting else str(effect["word"])
