"""What it would take to tell: how many items, or training seeds, until an effect is seen four times in five.

    Spread + effect + level of the test --power--> the fewest items that reach POWER, the fewest seeds that do

- Shares under one seed: the power of McNemar's exact test, summed over how many items are answered differently and how many of
  those are gained. The usual formula (Connor 1987, Biometrics 43:207) is its limit, and too small for an exact test on few items.
- Everything else: the normal approximation, with Connor's distinction of the error without the effect and with it. For 0 and 1
  it is Connor's formula. Seeds that are still to come make the spread between seeds better known.

The level is alpha / m for m comparisons, that of Holm's strictest step: the power is at least what is claimed. The effect is the
one seen or, where the recipe names one, the smallest of interest. That the one seen is the true one is an assumption: an effect
that was seen by luck needs more than is said here (Hoenig and Heisey 2001). With one seed nothing is known of the spread between
seeds, so no number of seeds is given, and that of items is about the two models at hand.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, norm, t

from medschool.ablate.chance import Spread

POWER = 0.8
"""Probability of seeing the effect: the field's custom (Cohen 1988)."""
MOST_ITEMS, MOST_SEEDS = 10**8, 1000
SUMMED = 20_000
"""Items answered differently up to which the exact power is summed; beyond, both agree to three digits."""


@dataclass(frozen=True)
class Needs:
    """What it would take to tell; the one or the other."""

    effect: float
    """The effect that would be seen, in the unit of the change."""
    items: int | None
    """Items under as many seeds, to two digits, rounded up; None where no number of items would do."""
    seeds: int | None
    """Seeds on as many items; None where no number of seeds would do, or one seed says nothing about others."""


def needs(spread: Spread, effect: float, alpha: float, shares: bool) -> Needs | None:
    """For a mean difference `effect` at the two-sided level `alpha`; None for an effect of zero."""
    if not effect:
        return None
    size = abs(effect)
    if shares and spread.seeds == 1:
        items = fewest(lambda n: mcnemar_power(n, max(spread.items + size**2, size), size, alpha), MOST_ITEMS)
    else:
        items = fewest(lambda n: power(spread, size, n, spread.seeds, alpha), MOST_ITEMS)
    seeds = fewest(lambda k: power(spread, size, spread.n, k, alpha), MOST_SEEDS) if spread.seeds > 1 else None
    return Needs(effect, items and two_digits(items), seeds and max(seeds, spread.seeds + 1))


def power(spread: Spread, effect: float, n: int, seeds: int, alpha: float) -> float:
    """Probability that a positive `effect` is seen on n items under so many seeds, by the normal approximation."""
    with_it = spread.error(n, seeds)
    without = math.sqrt(with_it**2 + effect**2 / n)
    bound = float(t.isf(alpha / 2, spread.freedom(n, seeds)))
    return float(norm.cdf((effect - bound * without) / with_it)) if with_it else float(effect > bound * without)


def mcnemar_power(n: int, differ: float, effect: float, alpha: float) -> float:
    """Probability that McNemar's exact test sees a positive `effect` on n items, of which the share `differ` is answered
    differently."""
    if n * differ > SUMMED:
        return power(Spread(effect, n, 1, max(0.0, differ - effect**2), 0.0, None), effect, n, 1, alpha)
    low, high = binom.ppf([1e-9, 1 - 1e-9], n, differ)
    moved = np.arange(max(1, int(low)), int(high) + 1)
    bound = np.asarray(binom.isf(alpha / 2, moved, 0.5)) + 1  # gained from which on 2 x P(as many heads of a fair coin) <= alpha
    seen = np.asarray(binom.sf(bound - 1, moved, (differ + effect) / (2 * differ)))
    return float((binom.pmf(moved, n, differ) * seen).sum())


def fewest(power_of: Callable[[int], float], most: int) -> int | None:
    """The smallest number at which the power is reached, by doubling and halving; None where `most` does not."""
    high = 1
    while power_of(high) < POWER:
        if high >= most:
            return None
        high = min(most, 2 * high)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= POWER else (middle, high)
    return high


def two_digits(number: int) -> int:
    """`1234` -> `1300`: rounded up to two digits, because it is an estimate."""
    unit: int = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit
