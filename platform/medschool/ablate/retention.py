"""What a variant has forgotten: whether it is worse than the untrained model by more than a margin.

    effect against the untrained variant + interval + margin --> kept | forgot | cannot tell

A test of non-inferiority, read off the interval as in Piaggio et al. (2012, JAMA 308:2594, figure 1): `kept` when the whole
interval is better than the margin, `forgot` when all of it is worse, else `cannot tell`. That nothing was seen is not enough: an
exam of twenty items keeps nothing. All must hold at once for a promotion, so nothing is corrected (Berger 1982).

The interval is Tango's (1998) for accuracy under one seed, because the bootstrap's has no width where both answered alike; the
bootstrap's for perplexity. With several seeds it is that of a t test which counts the seeds as drawn (medschool.ablate.chance);
for accuracy no narrower than Tango's of a single seed with the mean counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import norm

from medschool.ablate.chance import mean_interval, tango
from medschool.ablate.power import MOST_ITEMS, POWER, Needs, fewest, two_digits
from medschool.ablate.verdict import Effect, Measure
from medschool.recipe.evaluation import Retention

Kept = Literal["kept", "forgot", "cannot tell"]


@dataclass(frozen=True)
class Retained:
    """How much of one source or exam a variant kept."""

    measure: Measure
    on: str
    variant: str
    reference: str
    n: int
    seeds: int
    change: float
    low: float | None
    """Interval that the word is read off; None, like `high`, where a single document leaves none."""
    high: float | None
    margin: float
    """Largest change for the worse that is taken as none: relative for perplexity, a difference of shares for accuracy."""
    word: Kept
    needs: Needs | None
    """Items after which a variant that lost nothing is called `kept` four times in five; None where it is told already."""


def retained(effects: Sequence[Effect], spec: Retention | None, confidence: float) -> list[Retained]:
    """One entry for each effect that the recipe's section `retention` asks about, in their order."""
    if spec is None:
        return []
    margins = {("perplexity", name): spec.perplexity_margin for name in spec.sources}
    margins |= {("accuracy", name): spec.accuracy_margin for name in spec.exams}
    return [
        _retained(effect, margins[effect.measure, effect.on], confidence)
        for effect in effects
        if effect.reference == spec.against and (effect.measure, effect.on) in margins
    ]


def _retained(effect: Effect, margin: float, confidence: float) -> Retained:
    low, high = bounds(effect, confidence)
    word = kept(effect.measure, low, high, margin)
    wanting = _needs(effect, margin, 1 - confidence) if word == "cannot tell" and effect.n > 1 else None
    same = {key: getattr(effect, key) for key in ("measure", "on", "variant", "reference", "n", "seeds", "change")}
    return Retained(**same, low=low, high=high, margin=margin, word=word, needs=wanting)


def bounds(effect: Effect, confidence: float) -> tuple[float | None, float | None]:
    """The interval of an effect that holds for few items, too."""
    if effect.n < 2:
        return None, None
    low, high = mean_interval(effect.spread, confidence)
    if effect.measure == "perplexity":
        return (effect.low, effect.high) if effect.seeds == 1 else (math.expm1(low), math.expm1(high))
    assert effect.gained is not None and effect.lost is not None
    once = tango(effect.gained / effect.seeds, effect.lost / effect.seeds, effect.n, confidence)
    return once if effect.seeds == 1 else (min(low, once[0]), max(high, once[1]))


def kept(measure: Measure, low: float | None, high: float | None, margin: float) -> Kept:
    """The word of an interval; accuracy is worse below -margin, perplexity above +margin."""
    if low is None or high is None:
        return "cannot tell"
    best, worst = (high, low) if measure == "accuracy" else (-low, -high)
    return "kept" if worst > -margin else "forgot" if best < -margin else "cannot tell"


def _needs(effect: Effect, margin: float, alpha: float) -> Needs | None:
    """Items for `kept` if nothing was lost: ((z of alpha / 2 + z of the power) / margin)^2 x variance (Julious 2004)."""
    size = margin if effect.measure == "accuracy" else math.log1p(margin)
    bound = size / float(norm.isf(alpha / 2) - norm.ppf(1 - POWER))
    items = fewest(lambda n: POWER if effect.spread.error(n, effect.seeds) <= bound else 0.0, MOST_ITEMS)
    return Needs(0.0, items and two_digits(items), None)
