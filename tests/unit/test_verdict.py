"""Changes, intervals and words against slow, plain calculations; what they say when there is nothing; seeds that disagree."""

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.ablate.chance import Sampling, chance_p, mcnemar_p, sign_flip_p, wilson
from medschool.ablate.probes import gap_change, mean_change
from medschool.ablate.verdict import Effect, accuracy_effect, perplexity_effect, share_change
from medschool.errors import StageError

HOW = Sampling(resamples=400, confidence=0.95, seed=1)
Tables = tuple[pa.Table, pa.Table]


def losses(nll: np.ndarray, targets: np.ndarray, source: str = "papers") -> pa.Table:
    ids = [f"d{number:03}" for number in range(len(nll))]
    return pa.table({"source": [source] * len(nll), "id": ids, "nll_nats": nll, "targets": targets})


def answers(right: np.ndarray, exam: str = "mmlu") -> pa.Table:
    ids = [f"i{number:03}" for number in range(len(right))]
    return pa.table({"exam": [exam] * len(right), "id": ids, "answer": [0] * len(right), "correct": right.astype(bool)})


def drawn_losses(seed: int, shift: float, count: int = 40) -> Tables:
    """A variant that differs from its reference by `shift` nats per token, give or take 0.05 a document."""
    draw = np.random.default_rng(seed)
    targets = draw.integers(50, 200, count)
    hard = targets * draw.normal(3.0, 0.5, count)
    return losses(hard + targets * draw.normal(shift, 0.05, count), targets), losses(hard, targets)


def drawn_answers(seed: int, better: float, count: int = 200) -> Tables:
    """Both know four items in ten, and often the same ones; the variant has a share `better` of the others right, too."""
    draw = np.random.default_rng(seed)
    ease = draw.beta(0.8, 1.2, count)
    reference, variant = draw.random((2, count)) < ease
    return answers(variant | (draw.random(count) < better)), answers(reference)


def perplexity(tables: Tables, how: Sampling = HOW) -> Effect:
    return perplexity_effect("papers", "knowledge", "control", {7: tables}, how)


def accuracy(tables: Tables, how: Sampling = HOW) -> Effect:
    return accuracy_effect("mmlu", "instructed", "control", {7: tables}, how)


# ---- perplexity ---------------------------------------------------------------------------------------------------------------


def test_the_interval_of_perplexity_is_that_of_a_plain_bootstrap_loop() -> None:
    variant, reference = drawn_losses(1, -0.03)
    found = perplexity((variant, reference), Sampling(4000, 0.95, 5))
    d = variant.column("nll_nats").to_numpy() - reference.column("nll_nats").to_numpy()
    n = reference.column("targets").to_numpy()
    draw = np.random.default_rng(9)
    changes = []
    for _ in range(4000):
        pick = draw.integers(0, len(d), len(d))
        changes.append(math.exp(d[pick].sum() / n[pick].sum()) - 1)
    assert found.change == pytest.approx(math.exp(d.sum() / n.sum()) - 1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(changes, [0.025, 0.975])), abs=2e-3)
    assert (found.word, found.n, found.seeds, found.by_seed) == ("helped", 40, 1, {"7": found.change})
    assert found.p == found.p_adjusted == pytest.approx(plain_flips_p(d), abs=2e-3)
    assert found.gained is None and found.lost is None
    assert found.spread.mean == pytest.approx(math.log1p(found.change))


def plain_flips_p(d: np.ndarray) -> float:
    """Share of 5,000 random sets of signs under which the sum is as large, one set at a time."""
    draw = np.random.default_rng(4)
    return sum(abs((draw.choice([-1, 1], len(d)) * d).sum()) >= abs(d.sum()) for _ in range(5000)) / 5000


def test_the_same_change_of_every_token_has_no_width_however_long_the_documents() -> None:
    _, reference = drawn_losses(1, 0.0)
    nll, targets = (reference.column(name).to_numpy() for name in ("nll_nats", "targets"))
    found = perplexity((losses(nll - 0.5 * targets, targets), reference))
    assert (found.change, found.low, found.high) == pytest.approx((math.expm1(-0.5),) * 3)


def test_perplexity_without_an_effect_is_called_so_about_as_often_as_promised() -> None:
    words = [perplexity(drawn_losses(seed, 0.0)).word for seed in range(200)]
    assert 180 <= words.count("cannot tell") < 200  # 95% of 200 is 190; the percentile method is a little narrow at n = 40


def test_a_planted_change_of_perplexity_is_found_with_its_sign() -> None:
    assert perplexity(drawn_losses(2, 0.05)).word == "hurt"
    assert perplexity(drawn_losses(2, -0.05)).word == "helped"


def test_the_change_over_seeds_is_that_of_the_mean_loss_of_each_document() -> None:
    variant, reference = drawn_losses(3, -0.02)
    nll, n = (reference.column(name).to_numpy() for name in ("nll_nats", "targets"))
    other = losses(nll * 0.98, n)
    found = perplexity_effect("papers", "knowledge", "base", {7: (variant, reference), 8: (other, reference)}, HOW)
    mean = [
        (a + b) / 2 for a, b in zip(variant.column("nll_nats").to_pylist(), other.column("nll_nats").to_pylist(), strict=True)
    ]
    assert found.change == pytest.approx(math.exp((sum(mean) - nll.sum()) / n.sum()) - 1)
    assert found.by_seed["8"] == pytest.approx(math.exp(-0.02 * nll.sum() / n.sum()) - 1)
    assert found.seeds == 2 and list(found.by_seed) == ["7", "8"]


def test_seeds_that_point_both_ways_cannot_tell_even_where_the_mean_is_clear() -> None:
    down, up = drawn_losses(4, -0.2), drawn_losses(4, 0.05)
    alone = perplexity(down)
    both = perplexity_effect("papers", "knowledge", "control", {7: down, 8: up}, HOW)
    assert alone.word == "helped"
    assert both.high is not None and both.high < 0 and both.word == "cannot tell"


def test_one_document_tells_nothing_and_one_without_a_target_is_none() -> None:
    found = perplexity(drawn_losses(4, -1.0, count=1))
    assert (found.word, found.low, found.high, found.n) == ("cannot tell", None, None, 1)
    nll, targets = np.array([5.0, 7.0, 0.0]), np.array([2, 3, 0])
    assert perplexity((losses(nll, targets), losses(nll + 0.5, targets))).n == 2


# ---- accuracy -----------------------------------------------------------------------------------------------------------------


def plain_mcnemar(gained: int, lost: int) -> float:
    """Twice the tail of a fair coin, by counting."""
    flips = gained + lost
    tail = sum(math.comb(flips, k) for k in range(min(gained, lost) + 1)) / 2**flips
    return min(1.0, 2 * tail)


def plain_sign_flips(differences: list[float]) -> float:
    """Share of all sets of signs under which the sum is as large."""
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in all_signs(len(differences))]
    return sum(value >= abs(sum(differences)) - 1e-9 for value in sums) / len(sums)


def all_signs(count: int) -> list[tuple[int, ...]]:
    return list(itertools.product((-1, 1), repeat=count))


def test_mcnemar_by_hand() -> None:
    assert mcnemar_p(8, 2) == pytest.approx(0.109375)
    assert mcnemar_p(0, 0) == mcnemar_p(3, 3) == 1.0


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_a_count_of_coin_tosses(gained: int, lost: int) -> None:
    assert mcnemar_p(gained, lost) == pytest.approx(plain_mcnemar(gained, lost), rel=1e-9)


def test_sign_flips_estimate_the_share_over_all_signs() -> None:
    draw = np.random.default_rng(3)
    for _ in range(4):
        few, more = draw.choice([-1.0, -0.5, 0.5, 1.0], 9), draw.choice([-1.0, -0.5, 0.5, 1.0], 14)
        assert sign_flip_p(few, 5) == pytest.approx(plain_sign_flips(few.tolist()))
        assert sign_flip_p(more, 5) == pytest.approx(plain_sign_flips(more.tolist()), abs=0.02)


def test_mcnemar_is_the_sign_flip_test_of_one_seed() -> None:
    differences = np.array([1.0] * 8 + [-1.0] * 2 + [0.0] * 30)
    assert chance_p(differences, 5) == pytest.approx(0.109375)
    assert sign_flip_p(differences, 5) == pytest.approx(0.109375, abs=0.012)  # 4 standard errors of 10,000 flips


def test_a_p_from_flips_is_never_zero() -> None:
    assert sign_flip_p(np.array([1.0, 0.5] * 40), 5) == pytest.approx(1 / 10_001)


def test_an_exam_counts_gained_and_lost_and_its_interval_is_that_of_a_plain_loop() -> None:
    variant, reference = drawn_answers(1, 0.2)
    found = accuracy((variant, reference), Sampling(4000, 0.95, 5))
    d = [int(a) - int(b) for a, b in zip(*(table.column("correct").to_pylist() for table in (variant, reference)), strict=True)]
    draw = np.random.default_rng(9)
    means = [np.mean([d[k] for k in draw.integers(0, len(d), len(d))]) for _ in range(2000)]
    assert found.change == pytest.approx(sum(d) / len(d))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.01)
    assert (found.gained, found.lost, found.n) == (d.count(1), d.count(-1), 200)
    assert found.p == pytest.approx(plain_mcnemar(d.count(1), d.count(-1)))


def test_a_planted_gain_of_right_answers_is_found() -> None:
    words = [accuracy(drawn_answers(seed, 0.4)).word for seed in range(40)]
    assert words.count("helped") >= 38 and "hurt" not in words
    assert accuracy(drawn_answers(1, 0.4)[::-1]).word == "hurt"


def test_accuracy_without_an_effect_is_called_so_at_least_as_often_as_promised() -> None:
    words = [accuracy(drawn_answers(seed, 0.0)).word for seed in range(200)]
    assert 184 <= words.count("cannot tell") < 200  # the exact test errs on the safe side


def test_the_exact_test_decides_where_the_interval_is_too_sure() -> None:
    reference = np.zeros(40)
    variant = np.array([1.0] * 5 + [0.0] * 35)
    found = accuracy((answers(variant), answers(reference)), Sampling(4000, 0.95, 5))
    assert found.low is not None and found.low > 0
    assert found.p == pytest.approx(2 / 32) and found.word == "cannot tell"


def test_accuracy_over_seeds() -> None:
    base = answers(np.zeros(60))
    some, more = answers(np.arange(60) < 21), answers(np.arange(60) < 24)
    found = accuracy_effect("mmlu", "instructed", "base", {7: (some, base), 8: (more, base)}, HOW)
    assert found.change == pytest.approx(0.375) and found.by_seed == pytest.approx({"7": 0.35, "8": 0.4})
    assert (found.gained, found.lost, found.word) == (45, 0, "helped")
    apart = accuracy_effect("mmlu", "instructed", "base", {7: (answers(np.arange(60) < 9), base), 8: (more, base)}, HOW)
    assert apart.p > 0.05 and apart.word == "cannot tell"  # all items say so, but the two seeds are as far apart as the change is
    harm = {7: (more, base), 8: (base, answers(np.arange(60) >= 57))}  # +24 and -3 items
    mixed = accuracy_effect("mmlu", "instructed", "base", harm, HOW)
    assert mixed.word == "cannot tell"
    assert accuracy_effect("mmlu", "instructed", "base", {7: (base, more), 8: (base, some)}, HOW).word == "hurt"


def test_wilson_by_formula() -> None:
    z, n, share = 1.959963984540054, 200, 51 / 200
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    assert wilson(51, 200, 0.95) == pytest.approx(((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)))
    assert wilson(0, 10, 0.95)[0] == 0.0 and wilson(0, 10, 0.95)[1] > 0.2


# ---- facts under several seeds ------------------------------------------------------------------------------------------------


def test_facts_of_two_seeds_are_pooled_and_each_counts_under_its_own() -> None:
    nan = math.nan
    found = share_change(np.array([[1, 1, 0, nan, nan], [nan, nan, nan, 1, 0]]), HOW)
    assert found.change == pytest.approx(3 / 5) and found.by_seed == pytest.approx((2 / 3, 1 / 2))
    assert found.p == pytest.approx(plain_mcnemar(3, 0))


def test_a_gap_is_resampled_on_both_sides() -> None:
    draw = np.random.default_rng(2)
    facts, twins = draw.normal(0.3, 0.2, (1, 40)), draw.normal(0.1, 0.2, (1, 30))
    found = gap_change(facts, twins, Sampling(4000, 0.95, 5))
    gaps = [draw.choice(facts[0], 40).mean() - draw.choice(twins[0], 30).mean() for _ in range(4000)]
    assert found.change == pytest.approx(facts.mean() - twins.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(gaps, [0.025, 0.975])), abs=0.01)
    assert found.word == "helped" and mean_change(-facts, HOW).word == "hurt"


def test_a_seed_without_facts_says_nothing_about_the_sign() -> None:
    facts = np.array([[0.3, 0.4, 0.5], [math.nan] * 3])
    assert mean_change(facts, HOW).word == "helped"
    assert gap_change(facts, np.array([[0.1, 0.1], [0.1, 0.0]]), HOW).word == "helped"


def test_nothing_measured_is_no_number() -> None:
    nothing = np.empty((1, 0))
    for found in (share_change(nothing, HOW), mean_change(nothing, HOW), gap_change(nothing, np.ones((1, 3)), HOW)):
        assert (found.change, found.low, found.high, found.word) == (None, None, None, "cannot tell")


# ---- what must be the same on both sides --------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(12)))
def test_the_order_of_rows_does_not_matter(order: list[int]) -> None:
    how = Sampling(60, 0.95, 1)
    loss, answer = drawn_losses(3, -0.02, count=12), drawn_answers(3, 0.1, count=12)
    assert perplexity(loss, how) == perplexity((loss[0].take(order), loss[1]), how)
    assert accuracy(answer, how) == accuracy((answer[0], answer[1].take(order)), how)


def test_other_documents_or_items_are_refused() -> None:
    variant, reference = drawn_losses(3, -0.02)
    longer = losses(variant.column("nll_nats").to_numpy(), reference.column("targets").to_numpy() + 1)
    for other in (variant.slice(1), longer):
        with pytest.raises(StageError, match="same documents"):
            perplexity((other, reference))
    first, second = drawn_answers(3, 0.1)
    rekeyed = second.set_column(2, "answer", pa.array([1] * 200))
    for other in (second.slice(1), rekeyed):
        with pytest.raises(StageError, match="same documents or items"):
            accuracy((first, other))
    with pytest.raises(StageError, match="nothing was scored"):
        accuracy_effect("pubmedqa", "instructed", "control", {7: (first, second)}, HOW)
