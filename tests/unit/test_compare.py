"""The verdict stage from tables to JSON: which comparisons, what each trial scored, probes, the gate, and what the user reads."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from scored_trials import BASE, SOURCES, recipe_with, scored, trials

from medschool.ablate.compare import VERDICT, Scored, comparisons, make_verdict, read_verdict
from medschool.ablate.report import Spent, mlflow_metrics, table
from medschool.artifact import Artifact
from medschool.errors import StageError
from medschool.recipe import Recipe


def verdict_of(folder: Path, recipe: Recipe, found: list[Scored]) -> dict[str, Any]:
    output = make_verdict(recipe, found, str(folder))
    artifact = Artifact("verdict", "f", str(folder / "manifest.json"), str(folder), output.files, output.facts, {}, 1.0)
    verdict = read_verdict(artifact)
    assert json.loads((folder / VERDICT).read_text(), parse_constant=pytest.fail) == verdict
    assert output.facts == {"gate": verdict["gate"]}
    return verdict


def effect(verdict: dict[str, Any], variant: str, reference: str, on: str) -> dict[str, Any]:
    found = [e for e in verdict["effects"] if (e["variant"], e["reference"], e["on"]) == (variant, reference, on)]
    assert len(found) == 1
    return dict(found[0])


# ---- comparisons --------------------------------------------------------------------------------------------------------------


def test_which_variants_are_compared() -> None:
    assert comparisons(recipe_with()) == [
        ("control", "base"),
        ("knowledge", "control"), ("knowledge", "base"),
        ("instructed", "control"), ("instructed", "knowledge"), ("instructed", "base"),
    ]  # fmt: skip
    assert comparisons(recipe_with(gate=None, probes=None))[:2] == [("control", "base"), ("knowledge", "base")]
    only_tuned = {"base": {}, "tuned": {"instructions": {"school": 1}}}
    assert comparisons(recipe_with(gate=None, probes=None, variants=only_tuned)) == [("tuned", "base")]


def test_the_verdict_has_every_measure_of_every_comparison(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, recipe_with(), trials())
    assert verdict["confidence"] == 0.95
    assert len(verdict["effects"]) == 6 * 4
    compared = [(probe["variant"], probe["reference"]) for probe in verdict["probes"]]
    assert len(compared) == 5 and ("instructed", "knowledge") not in compared  # knowledge has read these facts too
    papers = effect(verdict, "knowledge", "control", "papers")
    assert (papers["measure"], papers["n"], papers["word"], papers["needs"]) == ("perplexity", 24, "helped", None)
    assert papers["p"] == pytest.approx(1 / 10_001) and papers["p_adjusted"] == pytest.approx(24 / 10_001)
    assert verdict["family"] == {"method": "holm", "comparisons": 24, "level": 0.05, "power": 0.8}
    exam = effect(verdict, "instructed", "control", "clinical")
    assert (exam["measure"], exam["n"], exam["gained"], exam["lost"], exam["change"]) == (
        "accuracy",
        60,
        5,
        0,
        pytest.approx(5 / 60),
    )
    assert exam["p"] == pytest.approx(2 / 32) and exam["p_adjusted"] > exam["p"] and exam["word"] == "cannot tell"
    assert exam["needs"]["items"] > 60 and exam["needs"]["effect"] == exam["change"]


def test_the_scores_of_a_trial_are_plain_sums(tmp_path: Path) -> None:
    found = trials()
    base = verdict_of(tmp_path, recipe_with(), found)["trials"][0]
    rows = [row for row in found[0].losses.to_pylist() if row["source"] == "papers"]
    value = math.exp(sum(row["nll_nats"] for row in rows) / sum(row["targets"] for row in rows))
    assert base["perplexity"]["papers"] == {"value": pytest.approx(value), "documents": 24, "targets": 720}
    exam = base["exams"]["clinical"]
    assert (exam["items"], exam["correct"], exam["accuracy"]) == (60, 15, 0.25)
    assert exam["low"] < 0.25 < exam["high"]
    written = exam["written"]
    assert (written["items"], written["correct"], written["unparsed"]) == (8, 1, 6)
    assert (written["parse_rate"]["value"], written["accuracy"]["value"]) == (0.25, 0.125)
    assert base["probes"] == {"graph/books": {"trained": {"items": 20, "correct": 8}, "twins": {"items": 20, "correct": 8}}}
    assert (base["seed"], base["variant"]) == (None, "base")


def test_a_recipe_without_exams_and_probes_has_neither(tmp_path: Path) -> None:
    recipe = recipe_with(exams={}, probes=None, gate=BASE["gate"] | {"keeps": []})
    nothing = pa.table({})
    bare = [Scored(t.name, t.variant, t.seed, t.losses, nothing, nothing, nothing) for t in trials()]
    verdict = verdict_of(tmp_path, recipe, bare)
    assert {e["measure"] for e in verdict["effects"]} == {"perplexity"} and verdict["probes"] == []
    text = table(recipe, verdict, {})
    assert "Exams" not in text and "Facts" not in text and "Likelihood" not in text


def test_a_trial_that_diverged_is_named(tmp_path: Path) -> None:
    found = trials()
    broken = found[2].losses.to_pylist()
    broken[3]["nll_nats"] = math.nan
    found[2] = Scored(
        "knowledge", "knowledge", 7, pa.Table.from_pylist(broken), *(found[2].answers, found[2].written, found[2].probes)
    )
    with pytest.raises(StageError, match=r"trial knowledge.*not a finite number"):
        make_verdict(recipe_with(), found, str(tmp_path))


# ---- probes -------------------------------------------------------------------------------------------------------------------


def test_what_was_learned_is_told_from_what_was_generalised(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, recipe_with(), trials())
    probe = next(p for p in verdict["probes"] if (p["variant"], p["reference"]) == ("knowledge", "base"))
    assert (probe["kind"], probe["items"], probe["twins"], probe["already_knew"]) == ("graph/books", 20, 20, 0.4)
    assert (probe["learned"]["change"], probe["learned"]["word"]) == (pytest.approx(0.5), "helped")
    assert (probe["generalised"]["change"], probe["generalised"]["word"]) == (pytest.approx(0.1), "cannot tell")
    likelihood = probe["likelihood"]
    assert likelihood["learned"]["change"] == pytest.approx(0.1 * 10 / 3)
    assert likelihood["generalised"]["change"] == pytest.approx(0.1 * 2 / 3)
    assert likelihood["specific"]["change"] == pytest.approx(0.1 * 8 / 3) and likelihood["specific"]["word"] == "helped"


def seeded(papers: dict[int, float], facts: dict[int, int]) -> list[Scored]:
    found = [scored("base", None, {}, 15, (8, 8), (7, 8))]
    for seed in (8, 7):  # in no particular order
        found += [
            scored(variant, seed, levels, 15, (known, 8), (7, 8), f"{variant}-seed{seed}")
            for variant, levels, known in (
                ("control", {}, 8),
                ("knowledge", {"papers": papers[seed]}, facts[seed]),
                ("instructed", {"papers": papers[seed] + 0.01}, 8),
            )
        ]
    return found


def test_facts_of_each_seed_are_asked_of_the_trial_with_that_seed(tmp_path: Path) -> None:
    recipe = recipe_with(train_seeds=[7, 8])
    verdict = verdict_of(tmp_path, recipe, seeded({7: 0.9, 8: 0.92}, {7: 12, 8: 18}))
    probe = next(p for p in verdict["probes"] if (p["variant"], p["reference"]) == ("knowledge", "base"))
    assert (probe["items"], probe["twins"], probe["already_knew"]) == (40, 20, 0.4)
    assert probe["learned"]["change"] == pytest.approx((4 + 10) / 40) and probe["generalised"]["change"] == 0
    counts = {trial["name"]: trial["probes"]["graph/books"]["trained"] for trial in verdict["trials"]}
    assert counts["base"] == {"items": 40, "correct": 16}
    assert counts["knowledge-seed8"] == {"items": 20, "correct": 18}


# ---- several seeds and the gate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("best", [7, 8])
def test_the_winner_of_several_seeds_is_the_trial_with_the_lowest_perplexity(tmp_path: Path, best: int) -> None:
    recipe = recipe_with(train_seeds=[7, 8])
    verdict = verdict_of(tmp_path, recipe, seeded({7: 0.93, 8: 0.93} | {best: 0.927}, {7: 8, 8: 8}))
    papers = effect(verdict, "knowledge", "control", "papers")
    assert papers["seeds"] == 2 and list(papers["by_seed"]) == ["7", "8"]
    assert min(papers["by_seed"], key=papers["by_seed"].get) == str(best)
    assert (verdict["gate"]["winner"], verdict["gate"]["winner_trial"]) == ("instructed", f"instructed-seed{best}")


def test_seeds_that_disagree_do_not_pass_the_gate(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, recipe_with(train_seeds=[7, 8]), seeded({7: 0.8, 8: 1.02}, {7: 8, 8: 8}))
    papers = effect(verdict, "knowledge", "control", "papers")
    assert papers["high"] < 0 and papers["word"] == "cannot tell"
    assert verdict["gate"]["passed"] is False


def test_sides_with_other_seeds_are_refused(tmp_path: Path) -> None:
    found = [trial for trial in seeded({7: 0.9, 8: 0.9}, {7: 8, 8: 8}) if trial.name != "control-seed8"]
    with pytest.raises(StageError, match="knowledge have the seeds 8, 7, those of control 7"):
        make_verdict(recipe_with(train_seeds=[7, 8]), found, str(tmp_path))
    with pytest.raises(StageError, match="of no trial"):
        make_verdict(recipe_with(), trials()[1:], str(tmp_path))


def test_the_first_candidate_that_passes_wins(tmp_path: Path) -> None:
    gate = verdict_of(tmp_path, recipe_with(), trials())["gate"]
    assert (gate["passed"], gate["winner"], gate["winner_trial"]) == (True, "instructed", "instructed")
    assert gate["reason"].startswith("instructed improves on control: papers -")
    assert "not worse beyond chance: clinical +8.3 pts [" in gate["reason"]


def test_a_candidate_that_hurts_an_exam_gives_way_to_the_next(tmp_path: Path) -> None:
    gate = verdict_of(tmp_path, recipe_with(), trials(instructed_right=5))["gate"]
    assert (gate["passed"], gate["winner"]) == (True, "knowledge")
    assert gate["reason"].startswith("instructed does not pass against control: clinical -16.7 pts [")
    assert "(hurt). knowledge improves on control: papers -" in gate["reason"]


def test_a_failed_gate_says_for_each_candidate_what_failed(tmp_path: Path) -> None:
    gate = verdict_of(tmp_path, recipe_with(), trials(knowledge=1.0, instructed=1.05))["gate"]
    assert (gate["passed"], gate["winner"], gate["winner_trial"]) == (False, None, None)
    first, second = gate["reason"].split(". knowledge ")
    assert first.startswith("instructed does not pass against control: papers +") and first.endswith("(hurt)")
    assert "papers +0.0% [+0.0%, +0.0%] (cannot tell)" in second


def test_without_a_gate_nothing_is_registered(tmp_path: Path) -> None:
    gate = verdict_of(tmp_path, recipe_with(gate=None, probes=None), trials())["gate"]
    assert gate["passed"] is False and "no gate" in gate["reason"]


# ---- what the user and MLflow read --------------------------------------------------------------------------------------------


def spent(*names: str) -> dict[str, Spent]:
    return {name: Spent(23_040, 1.25) for name in names}


def test_the_report_fits_its_width_and_ends_with_its_warnings(tmp_path: Path) -> None:
    recipe = recipe_with()
    text = table(recipe, verdict_of(tmp_path, recipe, trials()), spent("control", "knowledge", "instructed"))
    assert max(map(len, text.splitlines())) <= 130
    assert "With 23,040 training tokens at most this shows that the procedure works" in text
    assert text.endswith("Not for clinical use.\n")
    assert "Gate: passed. instructed improves on control" in text
    assert "69,120" not in table(recipe, verdict_of(tmp_path, recipe, trials()), {"control": Spent(2_000_000, 9.0)})


def test_the_report_of_two_seeds_fits_too_and_shows_each_seed(tmp_path: Path) -> None:
    recipe = recipe_with(train_seeds=[7, 8])
    text = table(recipe, verdict_of(tmp_path, recipe, seeded({7: 0.9, 8: 0.92}, {7: 12, 8: 18})), {})
    assert max(map(len, text.splitlines())) <= 130
    assert "by seed" in text and "knowledge-seed8" in text


def test_report_json_and_mlflow_have_the_same_numbers(tmp_path: Path) -> None:
    recipe = recipe_with()
    verdict = verdict_of(tmp_path, recipe, trials())
    text = table(recipe, verdict, spent("knowledge"))
    metrics = mlflow_metrics(verdict, "knowledge")
    assert set(metrics) == {
        *(f"perplexity_{source}" for source in SOURCES), "accuracy_clinical", "unparsed_clinical",
        "probe_trained_graph_books", "probe_twins_graph_books",
    }  # fmt: skip
    first, second, said, third = (line.split() for line in text.splitlines() if line.startswith("knowledge  "))
    assert first == ["knowledge", *(f"{metrics[f'perplexity_{source}']:.2f}" for source in SOURCES), "23,040", "1.2"]
    assert second[:6] == ["knowledge", "clinical", "letters", "-", "60", f"{100 * metrics['accuracy_clinical']:.1f}%"]
    assert said[:6] == ["knowledge", "clinical", "generated", "-", "8", "12.5%"]
    assert said[-3:] == ["75%", "of", "8"] and metrics["unparsed_clinical"] == 0.75
    assert third[:4] == ["knowledge", "clinical", "8", "25.0%"]
    assert metrics["probe_trained_graph_books"] == 0.9


def test_rows_in_another_order_give_the_same_verdict(tmp_path: Path) -> None:
    turned = [
        Scored(
            t.name, t.variant, t.seed, *(x.take(list(range(len(x)))[::-1]) for x in (t.losses, t.answers, t.written, t.probes))
        )
        for t in trials()
    ]
    assert verdict_of(tmp_path / "a", recipe_with(), trials()) == verdict_of(tmp_path / "b", recipe_with(), turned)
