"""What the plan says of repeats, caps and curricula, before anything runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medschool.cli import app
from medschool.errors import PlanError, RecipeError
from medschool.plan import Course, check_repeats, make_plan, phase_steps
from medschool.recipe import load
from medschool.tokens.mixture import Schedule

ROOT = Path(__file__).parents[2]
BIG = ROOT / "recipes" / "pmc_llama_13b.yaml"
CURRICULUM = "variants.knowledge.weights_from={2000: {papers: 3, general: 1}}"


def course(*overrides: str) -> Course:
    return next(one for one in make_plan(load(BIG, overrides), "").courses if one.stage == "pretrain/knowledge")


def test_the_paper_s_run_sees_books_five_times_and_little_of_the_rest() -> None:
    found = course()
    assert found.steps is not None and found.tokens == found.steps * 3200 * 2048
    assert abs(found.steps - 4070) < 5 and abs(found.tokens - 26.7e9) < 0.05e9
    assert found.epochs_by_source == {"books": 5, "general": 0, "papers": 0}
    assert found.repeats_by_source["books"] == pytest.approx(5, abs=2e-3)
    assert found.repeats_by_source["papers"] == pytest.approx(found.tokens * 4 / 20 / 75e9, abs=1e-3)


def test_a_curriculum_is_planned_by_its_segments() -> None:
    found = course(CURRICULUM, "pretrain.length={steps: 3000}")
    rows = {name: tokens // 2048 for name, tokens in found.tokens_by_source.items()}
    assert rows == {"books": 2000 * 2400, "papers": 2000 * 640 + 1000 * 2400, "general": 2000 * 160 + 1000 * 800}


def test_a_source_that_comes_late_is_planned_too() -> None:
    found = course("variants.knowledge.weights={general: 1}", "variants.knowledge.weights_from={10: {books: 1}}")
    assert found.tokens_by_source["general"] == 10 * 3200 * 2048 and found.epochs_by_source["books"] == 5


def test_epochs_of_a_source_that_goes_before_they_are_over_are_refused() -> None:
    with pytest.raises(PlanError, match="the curriculum of knowledge stops taking books before 5 epochs") as raised:
        course(CURRICULUM)
    assert "pretrain.length.steps" in raised.value.remedy


def test_a_variant_that_would_see_a_source_too_often_is_refused() -> None:
    assert course("pretrain.max_repeats={books: 5, papers: 1}").steps
    with pytest.raises(PlanError) as raised:
        course("pretrain.max_repeats={books: 4}")
    assert raised.value.where == "pretrain/knowledge" and "books 5.001 times" in raised.value.problem
    assert "the cap is 4" in raised.value.problem and "pretrain.max_repeats.books" in raised.value.remedy


def test_a_cap_counts_the_rows_that_can_be_trained_on() -> None:
    recipe = load(BIG, ["pretrain.max_repeats={books: 4}"])
    schedule = Schedule({"books": 1, "papers": 1}, 20)
    for steps, rows, fits in ((40, 100, True), (40, None, True), (40, 98, True), (40, 97, False), (41, 100, False), (1, 2, True)):
        if fits:
            check_repeats(recipe, "pretrain/knowledge", "pretrain", schedule, steps, {"books": rows})
            continue
        with pytest.raises(PlanError, match=rf"times \({steps * 10} rows, it has {rows}\); the cap is 4"):
            check_repeats(recipe, "pretrain/knowledge", "pretrain", schedule, steps, {"books": rows})


def test_the_length_counts_epochs_of_the_rows_that_are_left() -> None:
    recipe = load(BIG)
    assert phase_steps(recipe, "pretrain", {"books": 2400}) == 5 and phase_steps(recipe, "pretrain", {"books": 2401}) == 6


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("variants.knowledge.weights_from={5: {bookz: 1}}", "variants.knowledge.weights_from.5: 'bookz' is not one of"),
        ("variants.base.weights_from={5: {books: 1}}", "variants.base.weights_from: needs `weights`"),
        ("variants.knowledge.weights_from={0: {books: 1}}", "greater than 0"),
        ("variants.knowledge.weights_from={5: {}}", "at least 1"),
        ("pretrain.max_repeats={bookz: 1}", "pretrain.max_repeats: 'bookz' is not one of"),
        ("pretrain.max_repeats={books: 0}", "greater than 0"),
    ],
)
def test_what_means_nothing_is_refused(override: str, says: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load(BIG, [override])
    assert says in raised.value.problem


def test_the_plan_prints_and_tells_repeats_epochs_and_curriculum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEDSCHOOL_HOME", str(tmp_path))
    monkeypatch.delenv("MEDSCHOOL_STORE", raising=False)
    words = ["plan", str(BIG), "--set", CURRICULUM, "--set", "pretrain.length={steps: 3000}"]
    shown = CliRunner().invoke(app, words, catch_exceptions=False).output
    assert "books 9,830,400,000 (2.46 x, 2)" in shown and "after step 2,000: general 1, papers 3" in shown
    told: dict[str, Any] = json.loads(CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False).output)
    phase = told["phases"][0]
    assert phase["epochs_by_source"]["books"] == 2 and phase["repeats_by_source"]["books"] == 2.458
    assert phase["weights_from"] == {"2000": {"general": 1, "papers": 3}}
