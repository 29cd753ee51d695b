"""One word for each comparison, corrected for how many there are.

    effects, each with a p of its own --Holm--> adjusted p --> helped | hurt | cannot tell (needs about n items or k seeds)

The family is every effect of the verdict: all comparisons of variants, on all held-out sources and all exams together. A reader
looks over the whole table and takes a word wherever it stands, so what is bounded is the chance that any word in it is wrong:
(1 - confidence), however many components a study has. A family for each exam would let that grow with the exams.

Holm (1979, Scandinavian Journal of Statistics 6:65) bounds it whatever the comparisons have in common, and they have much: the
same control, the same items. Price: power. A study that asks fewer questions tells more.

Not corrected: intervals, which are those of each comparison alone; the marks of probes, which explain and decide nothing; the
question whether an exam is kept, because correction would only make harm harder to see; and non-inferiority, where all must hold
at once (Berger 1982: an intersection of tests needs none).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from medschool.ablate.power import POWER, Needs, needs
from medschool.ablate.verdict import BETTER, Effect, word_of
from medschool.recipe.evaluation import Evaluate


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p in the order given: the i-th smallest of m times (m - i + 1), never below one before it, at most 1."""
    order = sorted(range(len(p)), key=lambda index: p[index])
    found: dict[int, float] = {}
    least = 0.0
    for rank, index in enumerate(order):
        least = found[index] = min(1.0, max(least, (len(p) - rank) * p[index]))
    return [found[index] for index in range(len(p))]


def judged(effects: Sequence[Effect], spec: Evaluate) -> list[Effect]:
    """The effects with words by adjusted p; where that cannot tell, with what it would take."""
    alpha = 1 - spec.confidence
    found = []
    for effect, p in zip(effects, holm([effect.p for effect in effects]), strict=True):
        word = word_of(effect.change, (), p < alpha, BETTER[effect.measure])
        wanting = _needs(effect, spec, alpha / len(effects)) if word == "cannot tell" else None
        found.append(replace(effect, p_adjusted=p, word=word, needs=wanting))
    return found


def _needs(effect: Effect, spec: Evaluate, alpha: float) -> Needs | None:
    """For the smallest effect of interest, or the one seen; sized in the logarithm where it is one of perplexity."""
    if effect.n < 2:
        return None
    if effect.measure == "accuracy":
        return needs(effect.spread, spec.smallest_accuracy_change or effect.change, alpha, shares=True)
    change = -spec.smallest_perplexity_change if spec.smallest_perplexity_change else effect.change
    found = needs(effect.spread, math.log1p(change), alpha, shares=False)
    return found and replace(found, effect=change)


def family(effects: Sequence[Effect], spec: Evaluate) -> dict[str, Any]:
    """How the words were decided, as plain JSON values."""
    return {"method": "holm", "comparisons": len(effects), "level": round(1 - spec.confidence, 12), "power": POWER}
