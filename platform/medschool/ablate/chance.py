"""Intervals and tests of differences: what chance alone would do.

    shares of 0 and 1, one seed     McNemar's exact test (McNemar 1947), interval of Tango (1998)
    differences of any size         sign flips (Fisher 1935; Phipson and Smyth 2010, who explain the ones in (k+1)/(n+1))
    several training seeds          beside that a t test that counts the seeds as drawn, too (Satterthwaite 1946)
    any statistic                   percentiles of the bootstrap (Efron and Tibshirani 1993, chapter 13)

Both tests over items are exact where the two sides could be exchanged, which is what "the component does nothing" says of two
models that are alike. What they cannot see is that a training under another seed gives another model, whose shift all items
share: `seeds_p` sees it from two seeds on, and better where it is pooled over the trained variants of a study (`pooled_shift`,
which takes the shift to be as large in each). With one seed nothing is known of it, and a word is about two models.

Where that shift is twice the noise of the items, the test over items alone calls comparisons without an effect far too often;
that of seeds does so less, and with two seeds still more often than it says (tests/unit/test_verdict_simulated.py, long).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, bootstrap, norm, t

FLIPS = 10_000
"""Sign flips of a test, at most; the smallest p is 1 in 10,001."""
FLIPS_AT_ONCE = 500


@dataclass(frozen=True)
class Sampling:
    """How intervals and tests are drawn."""

    resamples: int
    confidence: float
    seed: int


@dataclass(frozen=True)
class Spread:
    """A mean difference and what makes it vary: variances of one item's difference under one seed, in the change's unit squared.

    Perplexity is taken as its logarithm. The model is mean + shift of the seed + of the item + of the item under the seed.
    """

    mean: float
    n: int
    seeds: int
    items: float
    """Between items, the same under every seed; with one seed this holds `rest` as well."""
    rest: float
    """Between items, another one under every seed."""
    shift: float | None
    """Between seeds, the same for every item; None with one seed, which cannot tell."""
    shift_freedom: int = 0
    """Degrees of freedom that `shift` was estimated with."""

    def error(self, n: int, seeds: int) -> float:
        """Standard error of the mean over so many items and seeds."""
        return float(np.sqrt((self.items + self.rest / seeds) / n + (self.shift or 0.0) / seeds))

    def freedom(self, n: int, seeds: int) -> float:
        """Degrees of freedom of that error (Satterthwaite 1946): those of the seeds as far as they make it up, else none lack."""
        if seeds < 2 or not self.shift:
            return np.inf
        known = self.shift_freedom * (seeds - 1) / (self.seeds - 1)
        return float(known * (self.error(n, seeds) ** 2 / (self.shift / seeds)) ** 2)


@dataclass(frozen=True)
class Shift:
    """How much a training seed moves a score, the same for every item: a variance, and what it was estimated from."""

    variance: float
    freedom: int

    def between(self, trained_sides: int) -> "Shift":
        """Of a difference of which so many sides are trained; two seeds move it independently, which errs on the safe side."""
        return Shift(trained_sides * self.variance, self.freedom)


def pooled_shift(scores: Sequence[np.ndarray]) -> Shift | None:
    """From the scores (seeds, items) of every trained variant; None where they have one seed or item. Below zero is zero."""
    if not scores or min(min(values.shape) for values in scores) < 2:
        return None
    own = [float(values.mean(axis=1).var(ddof=1)) - _rest(values) / values.shape[1] for values in scores]
    return Shift(max(0.0, float(np.mean(own))), sum(len(values) - 1 for values in scores))


def _rest(values: np.ndarray) -> float:
    """Variance of (seeds, items) beside the means of both."""
    residual = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    return float((residual**2).sum() / ((values.shape[0] - 1) * (values.shape[1] - 1)))


def spread_of(differences: np.ndarray, shift: Shift | None = None) -> Spread:
    """From differences (seeds, items) by analysis of variance; a component that comes out below zero is zero (Searle 1992).

    shift: as known from elsewhere; else that of these differences.
    """
    seeds, n = differences.shape
    mean = float(differences.mean())
    if n < 2:
        return Spread(mean, n, seeds, 0.0, 0.0, None)
    if seeds == 1:
        return Spread(mean, n, 1, float(differences.var(ddof=1)), 0.0, None)
    rest = _rest(differences)
    items = max(0.0, float(differences.mean(axis=0).var(ddof=1)) - rest / seeds)
    shift = shift or Shift(max(0.0, float(differences.mean(axis=1).var(ddof=1)) - rest / n), seeds - 1)
    return Spread(mean, n, seeds, items, rest, shift.variance, shift.freedom)


# ---- tests --------------------------------------------------------------------------------------------------------------------


def difference_p(differences: np.ndarray, spread: Spread, seed: int) -> float:
    """Two-sided p of differences (seeds, items): over items, and with several seeds over both, whichever is larger.

    `spread` may be in another unit than the differences.
    """
    found = chance_p(differences.mean(axis=0), seed)
    return found if len(differences) == 1 else max(found, seeds_p(spread))


def chance_p(differences: np.ndarray, seed: int) -> float:
    """Two-sided p of differences (items,), each of which had the other sign just as likely: exact where all weigh the same."""
    moved = differences[differences != 0]
    if np.unique(np.abs(moved)).size > 1:
        return sign_flip_p(moved, seed)
    return mcnemar_p(int((moved > 0).sum()), int((moved < 0).sum()))


def mcnemar_p(gained: int, lost: int) -> float:
    """McNemar's exact test: the items that only one side has right are as often the one's as the other's."""
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def sign_flip_p(differences: np.ndarray, seed: int) -> float:
    """The same for differences of any size (items,); one sign takes all seeds of an item.

    All sets of signs where they are no more than FLIPS (13 items), else FLIPS random ones.
    """
    items = len(differences)
    observed = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()  # sums of thirds are not exact
    if 2**items <= FLIPS:
        signs = (np.arange(2**items)[:, None] >> np.arange(items) & 1) * 2.0 - 1
        return float((np.abs(signs @ differences) >= observed).mean())
    draw, shape = np.random.default_rng(seed), (FLIPS_AT_ONCE, items)
    batches = (draw.integers(0, 2, shape, dtype=np.int8) * 2.0 - 1 for _ in range(FLIPS // FLIPS_AT_ONCE))
    as_large = sum(int((np.abs(batch @ differences) >= observed).sum()) for batch in batches)
    return (as_large + 1) / (FLIPS + 1)


def seeds_p(spread: Spread) -> float:
    """Two-sided p of the mean when seeds and items are both drawn: a t test with the error and freedom of the Spread."""
    error = spread.error(spread.n, spread.seeds)
    if not error:
        return float(not spread.mean)
    return float(2 * t.sf(abs(spread.mean) / error, spread.freedom(spread.n, spread.seeds)))


# ---- intervals ----------------------------------------------------------------------------------------------------------------


def interval(
    statistic: Callable[..., np.ndarray], samples: tuple[np.ndarray, ...], pairwise: bool, how: Sampling
) -> tuple[float | None, float | None]:
    """Percentile interval of the bootstrap; `pairwise` draws the same items from every sample. (None, None) below two items."""
    if min(map(len, samples)) < 2:
        return None, None
    result = bootstrap(
        samples, statistic, paired=pairwise, vectorized=True, n_resamples=how.resamples, batch=1000,
        confidence_level=how.confidence, method="percentile", rng=np.random.default_rng(how.seed),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def mean_interval(spread: Spread, confidence: float) -> tuple[float, float]:
    """Of the mean when seeds and items are both drawn: mean -+ t x error."""
    half = float(t.isf((1 - confidence) / 2, spread.freedom(spread.n, spread.seeds))) * spread.error(spread.n, spread.seeds)
    return spread.mean - half, spread.mean + half


def tango(gained: float, lost: float, items: int, confidence: float) -> tuple[float, float]:
    """Score interval of a difference of two shares of the same items (Tango 1998, Statistics in Medicine 17:891, equation 9).

    Unlike the bootstrap's it has a width where no item, or one, was answered differently.
    """
    z = float(norm.isf((1 - confidence) / 2))

    def score(difference: float) -> float:
        linear = -gained - lost + (2 * items - gained + lost) * difference
        constant = -lost * difference * (1 - difference)
        root = np.sqrt(max(0.0, linear**2 - 8 * items * constant))
        share = (root - linear) / (4 * items)  # that of `lost` which is most likely at this difference
        variance = items * (2 * share + difference * (1 - difference))
        return float((gained - lost - items * difference) / np.sqrt(variance))

    edge = 1 - 1e-12
    low = -1.0 if score(-edge) <= z else float(brentq(lambda difference: score(difference) - z, -edge, edge))
    high = 1.0 if score(edge) >= -z else float(brentq(lambda difference: score(difference) + z, -edge, edge))
    return low, high


def wilson(correct: int, items: int, confidence: float) -> tuple[float, float]:
    """Wilson's (1927) interval of one share; unlike the textbook's it stays inside 0 and 1 and works for small counts."""
    low, high = binomtest(correct, items).proportion_ci(confidence, method="wilson")
    return float(low), float(high)
