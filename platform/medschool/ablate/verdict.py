"""Differences between two variants on the same documents and items, each with an interval, a p and one word.

    differences (seeds, items) --mean over seeds--> (items,) --bootstrap, test--> change [low, high], p --family--> one word

Always paired: both sides are taken on the same resampled items, so what makes an item easy or hard cancels. A single variant's
own interval is wide for exactly that reason and says little about a difference.

- Perplexity: the relative change exp(d) - 1, where d is the difference of the summed losses divided by the number of targets.
- Share of right answers: the mean difference of 0 and 1.
- Both are decided by a test (medschool.ablate.chance), because an interval from a handful of items on which two sides differ is
  too narrow. So an interval may miss zero by a hair and the word be `cannot tell`.
- Several training seeds: p is that of a test which counts the seeds as drawn, too. The interval resamples the items alone.

An Effect stands alone: its word is what its own p says. What is reported is corrected for the number of comparisons
(medschool.ablate.family). Price: 0.2 s for 10,000 resamples and 10,000 sign flips of 200 items.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medschool.ablate.chance import Sampling, Shift, Spread, chance_p, difference_p, interval, pooled_shift, spread_of
from medschool.ablate.power import Needs
from medschool.errors import StageError

Word = Literal["helped", "hurt", "cannot tell"]
Measure = Literal["perplexity", "accuracy"]
Pairs = Mapping[int, tuple[pa.Table, pa.Table]]
"""By training seed: rows of the variant, and of the reference; a reference that does not train is the same under every seed."""
BETTER: dict[Measure, int] = {"perplexity": -1, "accuracy": 1}
"""The sign of a change for the good."""


@dataclass(frozen=True)
class Change:
    """A difference, variant minus reference; negative means lower."""

    change: float | None
    """None where nothing was measured."""
    low: float | None
    """None, like `high`, where fewer than two items leave nothing to resample."""
    high: float | None
    p: float | None
    """Probability of a difference as large by chance; None where the interval decides."""
    by_seed: tuple[float, ...]
    word: Word


@dataclass(frozen=True)
class Effect:
    """What a variant changed against a reference, in one measure on one source or exam."""

    measure: Measure
    on: str
    variant: str
    reference: str
    n: int
    """Documents with a target, or exam items."""
    seeds: int
    change: float
    """Perplexity: relative, -0.05 is five per cent lower. Accuracy: difference of shares, +0.015 is 1.5 points more."""
    low: float | None
    high: float | None
    p: float
    """Probability of a difference as large by chance, of this comparison alone."""
    p_adjusted: float
    """The same where any of the study's comparisons could have come out so (Holm); equal to `p` until it is corrected."""
    gained: int | None
    """Accuracy: items that only the variant has right, summed over seeds; `lost`: only the reference."""
    lost: int | None
    by_seed: dict[str, float]
    spread: Spread
    alone: Word
    """By `p`: what this comparison would say if it were the only one."""
    word: Word
    """By `p_adjusted`."""
    needs: Needs | None = None
    """What it would take to tell; None where it is told already, or nothing was seen."""


# ---- effects from tables ------------------------------------------------------------------------------------------------------


def perplexity_effect(
    source: str, variant: str, reference: str, pairs: Pairs, how: Sampling, shift: Shift | None = None
) -> Effect:
    """Effect on the held-out documents of one source; rows (source, id, nll_nats, targets). shift: of this difference's seeds.

    Raises StageError when the sides were not scored on the same documents.
    """
    sides = same_rows([held_out(table, source) for pair in pairs.values() for table in pair], ("id", "targets"), source)
    nats, targets = _paired(sides, "nll_nats", source), _numbers(sides[0], "targets")
    change, by_seed, (low, high) = relative_change(nats, targets, how)
    spread = spread_of(_logs(nats, targets), shift)
    return _effect("perplexity", source, variant, reference, pairs, nats, change, by_seed, low, high, spread, how)


def accuracy_effect(exam: str, variant: str, reference: str, pairs: Pairs, how: Sampling, shift: Shift | None = None) -> Effect:
    """Effect on the items of one exam; rows (exam, id, answer, correct). shift: of this difference's seeds.

    Raises StageError when the sides were not scored on the same items.
    """
    sides = same_rows([only(table, "exam", exam) for pair in pairs.values() for table in pair], ("id", "answer"), exam)
    right = _paired(sides, "correct", exam)
    low, high = interval(np.mean, (right.mean(axis=0),), True, how)
    change, by_seed = float(right.mean()), seed_means(right)
    return _effect("accuracy", exam, variant, reference, pairs, right, change, by_seed, low, high, spread_of(right, shift), how)


def _effect(
    measure: Measure,
    on: str,
    variant: str,
    reference: str,
    pairs: Pairs,
    differences: np.ndarray,
    change: float,
    by_seed: tuple[float, ...],
    low: float | None,
    high: float | None,
    spread: Spread,
    how: Sampling,
) -> Effect:
    p, shares = difference_p(differences, spread, how.seed), measure == "accuracy"
    alone = word_of(change, (), p < 1 - how.confidence, BETTER[measure])
    return Effect(
        measure=measure,
        on=on,
        variant=variant,
        reference=reference,
        n=differences.shape[1],
        seeds=len(pairs),
        change=change,
        low=low,
        high=high,
        p=p,
        p_adjusted=p,
        gained=int((differences > 0).sum()) if shares else None,
        lost=int((differences < 0).sum()) if shares else None,
        by_seed={str(seed): value for seed, value in zip(pairs, by_seed, strict=True)},
        spread=spread,
        alone=alone,
        word=alone,
    )


def perplexity_shift(source: str, trained: Sequence[Sequence[pa.Table]]) -> Shift | None:
    """How much a seed moves the logarithm of a model's perplexity; rows of each trained variant under each seed."""
    scores = []
    for tables in trained:
        sides = same_rows([held_out(table, source) for table in tables], ("id", "targets"), source)
        scores.append(_logs(np.stack([_numbers(side, "nll_nats") for side in sides]), _numbers(sides[0], "targets")))
    return pooled_shift(scores)


def accuracy_shift(exam: str, trained: Sequence[Sequence[pa.Table]]) -> Shift | None:
    """How much a seed moves a model's share of right answers; rows of each trained variant under each seed."""
    sides = [same_rows([only(table, "exam", exam) for table in tables], ("id", "answer"), exam) for tables in trained]
    return pooled_shift([np.stack([_numbers(side, "correct") for side in tables]) for tables in sides])


def _logs(nats: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(seeds, documents) whose mean over documents is the logarithm of a perplexity, or of a relative change of one."""
    return np.asarray(nats * (len(targets) / max(1.0, targets.sum())))


def only(table: pa.Table, column: str, value: object) -> pa.Table:
    """The rows with this value; with None, those without any."""
    kept = pc.is_null(table.column(column)) if value is None else pc.equal(table.column(column), value)
    return table.filter(kept)


def held_out(losses: pa.Table, source: str) -> pa.Table:
    """Rows of one source's documents; one of a single token has no target and says nothing, so it is no row here."""
    rows = only(losses, "source", source)
    return rows.filter(pc.greater(rows.column("targets"), 0))


def same_rows(tables: Iterable[pa.Table], fixed: tuple[str, ...], where: str) -> list[pa.Table]:
    """The tables in the order of `id`. Raises StageError unless all have the same values in the `fixed` columns."""
    rows = [table.sort_by("id") for table in tables]
    for column in fixed:
        if any(table.column(column).to_pylist() != rows[0].column(column).to_pylist() for table in rows):
            problem = f"the two sides were not scored on the same documents or items: `{column}` differs"
            raise StageError(problem, "evaluate both again from the same artifacts", where)
    return rows


def _paired(sides: list[pa.Table], column: str, where: str) -> np.ndarray:
    """Variant minus reference of sides (variant, reference, variant, reference...): (seeds, items). StageError without any."""
    if not sides[0].num_rows:
        raise StageError("nothing was scored here", "evaluate again; the recipe asks for it", where)
    values = np.stack([_numbers(side, column) for side in sides])
    return np.asarray(values[0::2] - values[1::2])


def _numbers(table: pa.Table, column: str) -> np.ndarray:
    return np.asarray(table.column(column).to_numpy(), dtype=float)


# ---- changes from differences -------------------------------------------------------------------------------------------------


def relative_change(
    differences: np.ndarray, targets: np.ndarray, how: Sampling
) -> tuple[float, tuple[float, ...], tuple[float | None, float | None]]:
    """Perplexity: change, change by seed and interval from differences in nats (seeds, documents), targets (documents,)."""

    def change(d: np.ndarray, n: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(np.expm1(d.sum(axis=axis) / n.sum(axis=axis)))

    documents = differences.mean(axis=0)
    by_seed = tuple(float(change(row, targets)) for row in differences)
    return float(change(documents, targets)), by_seed, interval(change, (documents, targets), True, how)


def share_change(differences: np.ndarray, how: Sampling) -> Change:
    """Right answers: differences of 0 and 1 (seeds, items); nan where an item does not count under a seed."""
    if not differences.size:
        return Change(None, None, None, None, (), "cannot tell")
    items, by_seed = np.nanmean(differences, axis=0), seed_means(differences)
    change, (low, high) = float(items.mean()), interval(np.mean, (items,), True, how)
    p = chance_p(items, how.seed)
    return Change(change, low, high, p, by_seed, word_of(change, by_seed, p < 1 - how.confidence, better=1))


def seed_means(differences: np.ndarray) -> tuple[float, ...]:
    """Mean of each row of differences (seeds, items) over the items that count; nan for a seed under which none does."""
    rows = (row[~np.isnan(row)] for row in differences)
    return tuple(float(row.mean()) if row.size else math.nan for row in rows)


def by_interval(
    change: float,
    by_seed: tuple[float, ...],
    statistic: Callable[..., np.ndarray],
    samples: tuple[np.ndarray, ...],
    pairwise: bool,
    how: Sampling,
    better: int,
) -> Change:
    """A change that is decided by its interval; `better` is the sign of a change for the good, `pairwise` as for `interval`."""
    low, high = interval(statistic, samples, pairwise, how)
    apart = low is not None and high is not None and (low > 0 or high < 0)
    return Change(change, low, high, None, by_seed, word_of(change, by_seed, apart, better))


def word_of(change: float, by_seed: tuple[float, ...], beyond_chance: bool, better: int) -> Word:
    """All seeds must have the sign of the whole; `better` is the sign of a change for the good."""
    signs = {int(np.sign(value)) for value in (change, *by_seed) if not math.isnan(value)}
    if not beyond_chance or signs not in ({1}, {-1}):
        return "cannot tell"
    return "helped" if signs == {better} else "hurt"
