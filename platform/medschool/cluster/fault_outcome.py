"""What a drill of a node, the head or the store found: the figures that faults are judged by, and PASS or FAIL."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class FaultOutcome:
    """One drill. It is PASS when there is no reason against it."""

    fault: str
    """preempt, node, head or store."""
    reasons: tuple[str, ...]
    """Why it is FAIL, each a sentence."""
    recovery_s: float | None
    """From the fault until all is as before; None where it never was."""
    lost_steps: int = 0
    """Optimizer steps that had to be trained again."""
    lost_tokens: int = 0
    """Tokens of these steps, whole rows."""
    requests: int = 0
    """Asked while the drill ran; 0 where nothing is served."""
    requests_failed: int = 0
    """Of those, the ones that a user would have missed."""
    seen: Mapping[str, Any] = field(default_factory=dict)
    """What else was seen, by name: JSON values."""

    @property
    def result(self) -> str:
        return "FAIL" if self.reasons else "PASS"

    def as_json(self) -> dict[str, Any]:
        return {
            "fault": self.fault,
            "result": self.result,
            "reasons": list(self.reasons),
            "recovery_s": self.recovery_s,
            "lost_steps": self.lost_steps,
            "lost_tokens": self.lost_tokens,
            "requests": self.requests,
            "requests_failed": self.requests_failed,
            **self.seen,
        }

    def lines(self) -> list[str]:
        """The outcome for people."""
        recovery = "never" if self.recovery_s is None else f"{self.recovery_s:.1f} s"
        figures = {
            "recovery": recovery,
            "lost": f"{self.lost_steps} steps, {self.lost_tokens:,} tokens",
            "requests": f"{self.requests_failed} of {self.requests} failed" if self.requests else "none asked",
            **{name.replace("_", " "): _word(value) for name, value in self.seen.items()},
        }
        width = max(map(len, figures))
        reasons = [f"  {'because':<{width}}  {reason}" for reason in self.reasons]
        return [f"{self.result}  {self.fault}", *reasons, *(f"  {name:<{width}}  {value}" for name, value in figures.items())]


def _word(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 0.1 and value else f"{value:.1f}"
    return " -> ".join(map(_word, value)) if isinstance(value, list | tuple) else str(value)
