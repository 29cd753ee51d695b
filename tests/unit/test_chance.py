"""Tests and intervals of differences against slow, plain calculations; what seeds add to them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import t

from medschool.ablate.chance import Shift, Spread, mean_interval, pooled_shift, seeds_p, spread_of, tango


def drawn(seed: int, seeds: int, n: int, mean: float, shift: float, items: float, rest: float) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return mean + draw.normal(0, shift, (seeds, 1)) + draw.normal(0, items, (1, n)) + draw.normal(0, rest, (seeds, n))


# ---- what makes a difference vary ---------------------------------------------------------------------------------------------


def test_the_parts_of_the_spread_are_those_that_were_drawn() -> None:
    found = [spread_of(drawn(seed, 4, 300, 0.1, 0.2, 0.5, 0.8)) for seed in range(200)]
    means = {name: float(np.mean([getattr(one, name) for one in found])) for name in ("mean", "items", "rest", "shift")}
    assert means == pytest.approx({"mean": 0.1, "items": 0.25, "rest": 0.64, "shift": 0.04}, rel=0.15)


def test_the_error_is_the_standard_deviation_of_the_mean() -> None:
    means = [float(drawn(seed, 3, 50, 0.0, 0.1, 0.4, 0.6).mean()) for seed in range(3000)]
    spread = Spread(0.0, 50, 3, items=0.16, rest=0.36, shift=0.01, shift_freedom=2)
    assert spread.error(50, 3) == pytest.approx(float(np.std(means)), rel=0.05)
    assert spread.error(50, 3) ** 2 == pytest.approx(0.16 / 50 + 0.36 / 150 + 0.01 / 3)


def test_one_seed_says_nothing_of_seeds() -> None:
    found = spread_of(np.array([[1.0, 0.0, -1.0, 1.0]]))
    assert (found.mean, found.n, found.seeds, found.rest, found.shift) == (0.25, 4, 1, 0.0, None)
    assert found.items == pytest.approx(np.var([1, 0, -1, 1], ddof=1)) and found.freedom(4, 1) == math.inf
    assert pooled_shift([np.zeros((1, 9))]) is None and pooled_shift([]) is None


def test_a_shift_that_is_known_from_elsewhere_takes_the_place_of_the_own() -> None:
    differences = drawn(1, 2, 100, 0.0, 1.0, 0.1, 0.1)
    own, told = spread_of(differences), spread_of(differences, Shift(0.5, 7).between(2))
    assert own.shift_freedom == 1 and (told.shift, told.shift_freedom) == (1.0, 7)
    assert (own.items, own.rest) == (told.items, told.rest)


def test_the_pooled_shift_is_the_mean_over_variants_whatever_their_level_and_items() -> None:
    ways = [pooled_shift([drawn(100 * v + seed, 3, 200, v, 0.3, 2.0, 0.5) for v in range(3)]) for seed in range(150)]
    assert np.mean([way.variance for way in ways if way]) == pytest.approx(0.09, rel=0.15)
    assert {way.freedom for way in ways if way} == {6}


def test_without_noise_of_items_the_test_over_seeds_is_student_s() -> None:
    spread = spread_of(np.array([[0.2] * 50, [0.5] * 50, [0.3] * 50]))
    statistic = np.mean([0.2, 0.5, 0.3]) / (np.std([0.2, 0.5, 0.3], ddof=1) / math.sqrt(3))
    assert seeds_p(spread) == pytest.approx(2 * t.sf(statistic, 2))
    low, high = mean_interval(spread, 0.95)
    assert (low + high) / 2 == pytest.approx(1 / 3) and (high - low) / 2 == pytest.approx(t.isf(0.025, 2) * (1 / 3) / statistic)
    assert seeds_p(spread_of(np.zeros((2, 5)))) == 1.0 and seeds_p(spread_of(np.ones((2, 5)))) == 0.0


# ---- Tango's interval ---------------------------------------------------------------------------------------------------------


def plain_score(gained: int, lost: int, items: int, difference: float) -> float:
    """The score statistic with the share of `lost` found by climbing the likelihood, not by the formula."""

    def unlikely(share: float) -> float:
        cells = ((gained, share + difference), (lost, share), (items - gained - lost, 1 - 2 * share - difference))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    share = float(minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x)
    return (gained - lost - items * difference) / math.sqrt(items * (2 * share + difference - difference**2))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 200))
def test_the_ends_of_tango_s_interval_have_the_score_of_the_level(gained: int, lost: int, same: int) -> None:
    items = gained + lost + same
    if not same or items < 3:
        return
    low, high = tango(gained, lost, items, 0.95)
    assert low < (gained - lost) / items < high
    assert plain_score(gained, lost, items, low) == pytest.approx(1.959964, abs=1e-3)
    assert plain_score(gained, lost, items, high) == pytest.approx(-1.959964, abs=1e-3)


def test_two_sides_that_answer_alike_leave_a_width_that_shrinks_with_the_items() -> None:
    widths = [high - low for low, high in (tango(0, 0, items, 0.95) for items in (20, 200, 2000))]
    assert widths[0] == pytest.approx(2 * 1.959964**2 / (20 + 1.959964**2), rel=1e-6)  # z^2 / (n + z^2) on either side
    assert widths[0] > 5 * widths[1] > 25 * widths[2]


def test_tango_mirrors_and_reaches_the_ends() -> None:
    low, high = tango(12, 5, 60, 0.9)
    assert tango(5, 12, 60, 0.9) == pytest.approx((-high, -low))
    assert tango(9, 0, 9, 0.95)[1] == 1.0 and tango(0, 9, 9, 0.95)[0] == -1.0
