"""Holm's correction against values by hand, from statsmodels and from the definition; words by adjusted p."""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medschool.ablate.chance import Sampling
from medschool.ablate.family import family, holm, judged
from medschool.ablate.verdict import Effect, accuracy_effect
from medschool.recipe.evaluation import Evaluate

GOLDEN = (
    ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 x 0.005, 3 x 0.01, 2 x 0.03, then not below that
    ([0.5, 0.5, 0.02], [1.0, 1.0, 0.06]),
    ([0.0012, 0.2, 0.0011, 0.013, 0.9, 0.049], [0.0066, 0.4, 0.0066, 0.052, 0.9, 0.147]),
)
"""statsmodels 0.15: multipletests(p, method="holm")[1]"""


@pytest.mark.parametrize(("p", "adjusted"), GOLDEN)
def test_holm_by_hand_and_as_statsmodels(p: list[float], adjusted: list[float]) -> None:
    assert holm(p) == pytest.approx(adjusted)


def plain_holm(p: tuple[float, ...], level: float) -> list[bool]:
    """Rejected or not, as Holm (1979) wrote it: the smallest first, until one is not small enough."""
    rejected = [False] * len(p)
    for step, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[index] > level / (len(p) - step):
            break
        rejected[index] = True
    return rejected


@given(st.lists(st.floats(0.0001, 1), min_size=1, max_size=9), st.floats(0.01, 0.2))
def test_adjusted_p_say_what_the_steps_say(p: list[float], level: float) -> None:
    near = any(abs(p[i] * k - level) < 1e-9 for i, k in itertools.product(range(len(p)), range(1, len(p) + 1)))
    if not near:
        assert [adjusted <= level for adjusted in holm(p)] == plain_holm(tuple(p), level)


@given(st.lists(st.floats(0, 1), max_size=9))
def test_adjusted_p_keep_the_order_and_lie_between_p_and_m_p(p: list[float]) -> None:
    found = holm(p)
    assert all(one <= adjusted <= min(1, len(p) * one) + 1e-12 for one, adjusted in zip(p, found, strict=True))
    assert all(found[a] <= found[b] for a, b in itertools.permutations(range(len(p)), 2) if p[a] < p[b])


def exam(gained: int, lost: int, items: int = 200, on: str = "mmlu") -> Effect:
    mine, other = np.arange(items) < gained, (np.arange(items) >= gained) & (np.arange(items) < gained + lost)
    rows = [
        pa.table({"exam": [on] * items, "id": [f"{k:04}" for k in range(items)], "answer": [0] * items, "correct": right})
        for right in (mine, other)
    ]
    return accuracy_effect(on, "knowledge", "control", {7: (rows[0], rows[1])}, Sampling(50, 0.95, 1))


def spec(**values: Any) -> Evaluate:
    return Evaluate(bootstrap_resamples=50, **values)


def test_a_word_that_stands_alone_falls_among_many() -> None:
    strong, weak = exam(40, 5), exam(20, 8)
    assert weak.p < 0.05 and weak.alone == weak.word == "helped"
    assert [effect.word for effect in judged([strong, weak], spec())] == ["helped", "helped"]
    found = judged([strong, weak, *(exam(9, 9) for _ in range(6))], spec())
    assert [effect.word for effect in found] == ["helped", *["cannot tell"] * 7]
    assert found[1].alone == "helped" and found[1].p == weak.p and found[1].p_adjusted == pytest.approx(7 * weak.p)
    assert judged([exam(5, 40)], spec())[0].word == "hurt"


def test_what_cannot_be_told_says_what_it_takes_and_nothing_where_nothing_was_seen() -> None:
    strong, weak, none = judged([exam(40, 5), exam(14, 8), exam(9, 9)], spec())
    assert strong.needs is None and none.needs is None
    assert weak.needs and weak.needs.items and weak.needs.items > 200 and weak.needs.effect == weak.change
    stated = judged([exam(14, 8), exam(9, 9)], spec(smallest_accuracy_change=0.05))
    assert [effect.needs and effect.needs.effect for effect in stated] == [0.05, 0.05]
    more = judged([exam(14, 8), *[exam(9, 9)] * 20], spec())[0].needs
    assert more and more.items and more.items > weak.needs.items  # the correction has its price


def test_the_family_is_said() -> None:
    assert family([exam(1, 2)] * 3, spec(confidence=0.9)) == {"method": "holm", "comparisons": 3, "level": 0.1, "power": 0.8}
    assert judged([], spec()) == [] and holm([]) == []
