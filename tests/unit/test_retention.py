"""What was kept and what was forgotten, against a margin: words of intervals, which effects are asked, what it takes."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scored_trials import recipe_with

from medschool.ablate.chance import Sampling, tango
from medschool.ablate.retention import bounds, kept, retained
from medschool.ablate.verdict import Effect, accuracy_effect, perplexity_effect
from medschool.recipe.evaluation import Retention

HOW = Sampling(400, 0.95, 1)


def exam(rows: list[tuple[int, int]], items: int, on: str = "law", reference: str = "base") -> Effect:
    """One (gained, lost) a seed; the reference does not train."""
    pairs = {}
    for seed, (gained, lost) in enumerate(rows):
        mine, other = np.arange(items) < gained, (np.arange(items) >= items - lost)
        tables = [
            pa.table({"exam": [on] * items, "id": [f"{k:05}" for k in range(items)], "answer": [0] * items, "correct": right})
            for right in (mine, other)
        ]
        pairs[seed] = (tables[0], tables[1])
    return accuracy_effect(on, "knowledge", reference, pairs, HOW)


def text(shift: float, documents: int = 60, seeds: int = 1) -> Effect:
    """A rise of `shift` nats per token of general text, give or take 0.02 a document."""
    pairs = {}
    for seed in range(seeds):
        draw = np.random.default_rng(seed)
        targets = draw.integers(50, 200, documents)
        hard = targets * np.random.default_rng(9).normal(3, 0.5, documents)
        ids = [f"{k:05}" for k in range(documents)]
        names = {"source": ["general"] * documents, "id": ids, "targets": np.full(documents, 100)}
        moved = hard + targets * draw.normal(shift, 0.02, documents)
        pairs[seed] = (pa.table(names | {"nll_nats": moved}), pa.table(names | {"nll_nats": hard}))
    return perplexity_effect("general", "knowledge", "base", pairs, HOW)


def spec(**values: Any) -> Retention:
    return Retention.model_validate({"against": "base", "exams": ["law"], "sources": ["general"]} | values)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-0.01, 0.03, "kept"), (-0.019, -0.001, "kept"), (-0.05, -0.021, "forgot"), (-0.05, 0.01, "cannot tell"), (-0.03, -0.01, "cannot tell")],
)  # fmt: skip
def test_the_word_of_an_interval(low: float, high: float, word: str) -> None:
    assert kept("accuracy", low, high, 0.02) == word
    assert kept("perplexity", -high, -low, 0.02) == word  # of perplexity, more is worse
    assert kept("accuracy", None, None, 0.02) == "cannot tell"


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0.001, 0.5))
def test_a_wider_interval_never_says_more(low: float, width: float, margin: float) -> None:
    word = kept("accuracy", low, low + width, margin)
    assert kept("accuracy", low - 0.1, low + width + 0.1, margin) in (word, "cannot tell")


def test_the_same_change_is_kept_or_forgotten_by_its_items() -> None:
    few, many, lost = exam([(2, 2)], 40), exam([(20, 22)], 2000), exam([(10, 160)], 2000)
    words = [entry.word for entry in retained([few, many, lost], spec(sources=[]), 0.95)]
    assert words == ["cannot tell", "kept", "forgot"]


def test_an_exam_on_which_nothing_changed_is_not_kept_for_being_small() -> None:
    same, more = exam([(0, 0)], 20), exam([(0, 0)], 400)
    small, large = retained([same, more], spec(sources=[]), 0.95)
    assert (same.low, same.high) == (0.0, 0.0) and small.word == "cannot tell" and large.word == "kept"
    low, high = bounds(exam([(0, 0), (0, 0)], 20), 0.95)  # with two seeds the t test has no width either
    assert low is not None and high is not None and low < -0.1 < 0.1 < high


def test_general_text_is_kept_within_its_margin() -> None:
    words = [entry.word for entry in retained([text(0.01), text(0.3), text(0.04)], spec(exams=[]), 0.95)]
    assert words == ["kept", "forgot", "cannot tell"]
    assert retained([text(0.3, documents=1)], spec(exams=[]), 0.95)[0].word == "cannot tell"


def test_seeds_that_lie_apart_widen_the_interval() -> None:
    close, apart = exam([(60, 60), (61, 60)], 1000), exam([(110, 10), (10, 110)], 1000)
    assert close.change == pytest.approx(apart.change, abs=1e-3)
    (low, high), (wide_low, wide_high) = (bounds(effect, 0.95) for effect in (close, apart))
    assert low is not None and high is not None and wide_low is not None and wide_high is not None
    assert wide_low < 5 * low < 0 < 5 * high < wide_high


def test_only_what_the_recipe_names_is_asked_and_only_against_the_untrained_model() -> None:
    effects = [exam([(1, 1)], 30), exam([(1, 1)], 30, reference="control"), exam([(1, 1)], 30, on="medicine"), text(0.0)]
    found = retained(effects, spec(accuracy_margin=0.1, perplexity_margin=0.2), 0.95)
    assert [(entry.on, entry.reference, entry.margin) for entry in found] == [("law", "base", 0.1), ("general", "base", 0.2)]
    assert retained(effects, None, 0.95) == []


def test_what_it_takes_to_call_a_loss_of_nothing_kept() -> None:
    entry = retained([exam([(12, 12)], 200)], spec(sources=[]), 0.95)[0]
    assert entry.word == "cannot tell" and entry.needs and entry.needs.items and entry.needs.seeds is None
    assert entry.needs.items == pytest.approx((1.959964 + 0.841621) ** 2 * 0.12 / 0.02**2, rel=0.06)
    draw = np.random.default_rng(5)
    items = entry.needs.items
    ends = [tango(int(gained), int(lost), items, 0.95) for gained, lost, _ in draw.multinomial(items, [0.06, 0.06, 0.88], 200)]
    words = [kept("accuracy", low, high, 0.02) for low, high in ends]
    assert words.count("kept") >= 143 and "forgot" not in words  # four in five of 200, less three standard errors


@pytest.mark.parametrize(
    ("retention", "said"),
    [
        ({"against": "control", "sources": ["general"]}, "'control' is trained"),
        ({"against": "nobody", "sources": ["general"]}, "'nobody' is not one of"),
        ({"against": "base", "exams": ["law"]}, "retention.exams: 'law' is not one of"),
        ({"against": "base"}, "names nothing to keep"),
        ({"against": "base", "sources": ["general"], "perplexity_margin": 0}, "greater than 0"),
    ],
)
def test_a_retention_that_cannot_be_asked_is_refused(retention: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        recipe_with(retention=retention)
