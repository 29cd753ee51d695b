"""What the verdict promises, on outcomes that are drawn, not trained: nothing is seen where nothing is, and what is there as claimed.

A study has a control, three variants and an exam and a source of text. Each item has an ease, each model answers by it; a seed may
shift all items of a model. `pytest -m long` draws a thousand studies, the others a few dozen.
"""

from dataclasses import replace

import numpy as np
import pytest

from medschool.ablate.chance import Shift, Spread, difference_p, pooled_shift, spread_of
from medschool.ablate.family import judged
from medschool.ablate.power import needs
from medschool.ablate.verdict import Effect, Measure, word_of
from medschool.recipe.evaluation import Evaluate

SPEC = Evaluate(bootstrap_resamples=1)
ITEMS = {"accuracy": 300, "perplexity": 120}
VARIANTS = 3


def scores(draw: np.random.Generator, measure: Measure, gains: list[float], seeds: int, shift: float) -> list[np.ndarray]:
    """(seeds, items) of a control and a variant for each gain; accuracy is 0 and 1, perplexity its logarithm by document."""
    items = ITEMS[measure]
    ease = draw.beta(1.2, 1.8, items) if measure == "accuracy" else draw.normal(3.0, 0.4, items)
    made = []
    for gain in (0.0, *gains):
        moved = gain + draw.normal(0, shift, (seeds, 1))
        if measure == "accuracy":
            made.append((draw.random((seeds, items)) < np.clip(ease + moved, 0, 1)).astype(float))
        else:
            made.append(ease + moved + draw.normal(0, 0.05, (seeds, items)))
    return made


def effect(measure: Measure, name: str, differences: np.ndarray, shift: Shift | None, seed: int) -> Effect:
    """As accuracy_effect and perplexity_effect make them, without the interval, which decides nothing."""
    spread = spread_of(differences, shift)
    p, change = difference_p(differences, spread, seed), float(differences.mean())
    word = word_of(change, (), p < 0.05, 1 if measure == "accuracy" else -1)
    by_seed = {str(number): float(row.mean()) for number, row in enumerate(differences)}
    n, seeds = differences.shape[1], differences.shape[0]
    return Effect(
        measure, "it", name, "control", n, seeds, change, None, None, p, p, int((differences > 0).sum()),
        int((differences < 0).sum()), by_seed, spread, word, word,
    )  # fmt: skip


def study(number: int, seeds: int, shift: float, gains: dict[str, list[float]] | None = None) -> list[Effect]:
    """Every comparison of one study, with words; no gain where none is named."""
    draw, effects = np.random.default_rng([7, number]), []
    for measure in ("accuracy", "perplexity"):
        made = scores(draw, measure, (gains or {}).get(measure, [0.0] * VARIANTS), seeds, shift)  # type: ignore[arg-type]
        pooled = pooled_shift(made)
        for name, ours in enumerate(made[1:]):
            effects.append(effect(measure, f"v{name}", ours - made[0], pooled and pooled.between(2), number))  # type: ignore[arg-type]
    return judged(effects, SPEC)


def silent(studies: int, seeds: int, shift: float) -> float:
    """Share of studies in which every word is `cannot tell`."""
    return float(np.mean([{one.word for one in study(number, seeds, shift)} == {"cannot tell"} for number in range(studies)]))


def found(studies: int, gain: float, items: int, alpha: float) -> float:
    """Share of studies of one seed in which a variant that is better by `gain` is seen on so many items at the level alpha."""
    words = []
    for number in range(studies):
        draw = np.random.default_rng([11, number])
        ease = draw.uniform(0.2, 0.7, items)
        ours, theirs = (draw.random(items) < ease + gain).astype(float), (draw.random(items) < ease).astype(float)
        differences = (ours - theirs)[None]
        p = difference_p(differences, spread_of(differences), number)
        words.append(differences.mean() > 0 and p <= alpha)
    return float(np.mean(words))


def claimed_items(gain: float, alpha: float) -> int:
    """What the report asks for, from a study in which the gain was not told."""
    draw = np.random.default_rng(3)
    ease = draw.uniform(0.2, 0.7, 4000)
    differences = (draw.random(4000) < ease + gain).astype(float) - (draw.random(4000) < ease)
    claim = needs(replace(spread_of(differences[None]), mean=gain), gain, alpha, shares=True)
    assert claim and claim.items
    return claim.items


def test_studies_of_the_same_recipe_cannot_tell() -> None:
    assert silent(12, seeds=1, shift=0.0) >= 0.75  # 0.95 less three standard errors of twelve


def test_a_planted_gain_is_found_as_often_as_claimed() -> None:
    items = claimed_items(0.06, 0.05 / 6)
    assert 0.68 < found(100, 0.06, items, 0.05 / 6) < 0.92


def test_a_large_planted_gain_is_told_in_its_place_alone() -> None:
    gains = {"accuracy": [0.35, 0.0, 0.0], "perplexity": [0.0, -0.2, 0.0]}
    told = study(1, seeds=2, shift=0.0, gains=gains)
    assert [one.word for one in told] == ["helped", "cannot tell", "cannot tell", "cannot tell", "helped", "cannot tell"]
    assert all(one.word == "hurt" for one in study(1, 2, 0.0, {"accuracy": [-0.35] * 3, "perplexity": [0.2] * 3}))


@pytest.mark.long
@pytest.mark.parametrize(
    ("seeds", "shift", "least"),
    [(1, 0.0, 0.95), (2, 0.0, 0.936), (3, 0.0, 0.936), (5, 0.02, 0.92)],
)  # of several seeds less two standard errors of a thousand; a shift as large as the noise of the items costs a little more
def test_of_a_thousand_studies_of_the_same_recipe_95_in_a_hundred_cannot_tell(seeds: int, shift: float, least: float) -> None:
    assert silent(1000, seeds, shift) >= least


@pytest.mark.long
@pytest.mark.parametrize(("gain", "alpha"), [(0.06, 0.05), (0.06, 0.05 / 24), (0.03, 0.05 / 8), (0.15, 0.05)])
def test_of_a_thousand_planted_gains_as_many_are_found_as_claimed(gain: float, alpha: float) -> None:
    share = found(1000, gain, claimed_items(gain, alpha), alpha)
    assert 0.8 - 3 * 0.0127 < share < 0.9


@pytest.mark.long
def test_planted_gains_over_seeds_are_found_as_claimed() -> None:
    truth = Spread(0.05, 1500, 3, items=0.1, rest=0.15, shift=0.02**2, shift_freedom=8)
    claim = needs(truth, 0.05, 0.01, shares=True)
    assert claim and claim.seeds
    draw, seen = np.random.default_rng(5), 0
    for _ in range(1000):
        k = claim.seeds
        parts = (draw.normal(0, 0.02, (k, 1)), draw.normal(0, 0.1**0.5, (1, 1500)), draw.normal(0, 0.15**0.5, (k, 1500)))
        rows = 0.05 + sum(parts, np.zeros((k, 1500)))
        own = Shift(0.02**2 * draw.chisquare(8) / 8, 8 * (k - 1) // 2)
        seen += rows.mean() > 0 and difference_p(rows, spread_of(rows, own), 1) < 0.01
    assert seen / 1000 > 0.76
