"""Paired effects against a plain bootstrap loop, what they do under no effect, and the gate."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from medschool.ablate.compare import gate_result
from medschool.ablate.verdict import Effect, effect
from medschool.errors import StageError
from medschool.recipe import load

ROOT = Path(__file__).parents[2]


def losses(nll: np.ndarray, targets: np.ndarray, source: str = "papers") -> pa.Table:
    ids = [f"d{number:03}" for number in range(len(nll))]
    return pa.table({"source": [source] * len(nll), "id": ids, "nll_nats": nll, "targets": targets})


def drawn(seed: int, shift: float, count: int = 40) -> dict[str, pa.Table]:
    draw = np.random.default_rng(seed)
    targets = draw.integers(50, 200, count)
    hard = targets * draw.normal(3.0, 0.5, count)
    return {
        "control": losses(hard, targets),
        "knowledge": losses(hard + targets * draw.normal(shift, 0.05, count), targets),
    }


def test_the_interval_is_that_of_a_plain_bootstrap_loop() -> None:
    tables = drawn(1, -0.03)
    found = effect("papers", "knowledge", "control", tables, 4000, 0.95, 5)
    d = tables["knowledge"].column("nll_nats").to_numpy() - tables["control"].column("nll_nats").to_numpy()
    n = tables["control"].column("targets").to_numpy()
    draw = np.random.default_rng(9)
    changes = []
    for _ in range(4000):
        pick = draw.integers(0, len(d), len(d))
        changes.append(np.exp(d[pick].sum() / n[pick].sum()) - 1)
    assert found.change == pytest.approx(np.exp(d.sum() / n.sum()) - 1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(changes, [0.025, 0.975])), abs=2e-3)
    assert found.word == "helped" and found.documents == 40


def test_without_an_effect_it_says_cannot_tell_about_as_often_as_promised() -> None:
    words = [effect("papers", "knowledge", "control", drawn(seed, 0.0), 400, 0.95, 1).word for seed in range(120)]
    assert words.count("cannot tell") >= 104  # 95% of 120 is 114; 104 is 3.5 standard errors below, at n = 40 documents


def test_a_harm_is_called_a_harm() -> None:
    assert effect("papers", "knowledge", "control", drawn(2, 0.05), 400, 0.95, 1).word == "hurt"


def test_row_order_does_not_matter_and_other_documents_are_refused() -> None:
    tables = drawn(3, -0.02)
    turned = tables | {"knowledge": tables["knowledge"].take(list(range(39, -1, -1)))}
    assert effect("papers", "knowledge", "control", tables, 200, 0.95, 1) == effect(
        "papers", "knowledge", "control", turned, 200, 0.95, 1
    )
    with pytest.raises(StageError, match="same documents"):
        effect("papers", "knowledge", "control", tables | {"knowledge": tables["knowledge"].slice(1)}, 200, 0.95, 1)


def test_one_document_tells_nothing() -> None:
    assert effect("papers", "knowledge", "control", drawn(4, -1.0, count=1), 200, 0.95, 1).word == "cannot tell"


@pytest.mark.parametrize(("high", "passed"), [(-0.01, True), (0.01, False)])
def test_the_gate_asks_for_an_interval_below_zero(high: float, passed: bool) -> None:
    recipe = load(ROOT / "recipes" / "quickstart.yaml")
    effects = [
        Effect("papers", "knowledge", "control", 40, -0.02, -0.03, high),
        Effect("papers", "knowledge", "base", 40, -0.5, -0.6, -0.4),
    ]
    assert gate_result(recipe, effects)[0] is passed
