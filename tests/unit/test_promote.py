"""Promotion from a store of finished stages: what is missing is named, and the card says what is known."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scored_trials import BASE, KEEPS, KNOWLEDGE, PROOF, finish, promoted_recipe
from typer.testing import CliRunner, Result

from medschool.ablate.compare import read_verdict
from medschool.ablate.gain import gains
from medschool.ablate.gate import study_word
from medschool.ablate.promote import Candidate, candidate, card, checks
from medschool.ablate.settle import settle
from medschool.artifact import Artifact
from medschool.cli import app
from medschool.commands.finished import finder
from medschool.commands.verdict import EXIT_CODES
from medschool.errors import RecipeError, StageError
from medschool.recipe import Recipe
from medschool.recipe.dump import dump

RECIPE = promoted_recipe()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One in which everything but the verdict is finished."""
    folder = tmp_path_factory.mktemp("promote") / "store"
    finish(RECIPE, folder)
    return folder


@pytest.fixture(scope="module")
def found(store: Path) -> tuple[dict[str, Any], Callable[[str], Artifact]]:
    """The verdict, and what finds a finished stage."""
    made, done = settle(RECIPE, str(store))
    return read_verdict(made), finder(done)


def run(recipe: Recipe, store: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Result:
    path = store.parent / "recipe.yaml"
    path.write_text(dump(recipe))
    monkeypatch.setenv("MEDSCHOOL_STORE", str(store))
    monkeypatch.setenv("MEDSCHOOL_HOME", str(store.parent / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store.parent}/registry.db")
    return CliRunner().invoke(app, [words[0], str(path), *words[1:]])


# ---- verdict ------------------------------------------------------------------------------------------------------------------


def test_the_verdict_is_worked_out_from_finished_scores_and_its_status_is_the_word(
    store: Path, found: tuple[dict[str, Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = run(RECIPE, store, monkeypatch, "verdict", "--json")
    plain = json.loads(told.stdout)
    assert (plain["word"], told.exit_code) == ("helped", EXIT_CODES["helped"])
    assert {key: plain[key] for key in found[0]} == found[0]
    assert [entry["word"] for entry in plain["retention"] if entry["variant"] == "knowledge"] == ["kept", "kept"]
    assert plain["contamination"][0]["rows"] == 3
    last = plain["contamination"][-1]
    assert (last["exam"], last["source"], last["found"], last["rows"]) == ("clinical", "instructions/school", 1, 0)
    assert {trial["exams"]["clinical"]["uncontaminated"]["items"] for trial in plain["trials"]} == {58}, "without i00 and i01"
    again = run(RECIPE, store, monkeypatch, "verdict")
    assert again.exit_code == 0 and "Verdict: helped." in again.stdout and "Forgetting" in again.stdout
    assert len(list((store / "artifacts" / "verdict").iterdir())) == 1


def test_what_is_not_finished_is_named(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = promoted_recipe(variants=BASE["variants"] | {"instructed": {"weights": KNOWLEDGE, "instructions": {"school": 2}}})
    error = run(other, store, monkeypatch, "verdict").exception
    assert isinstance(error, StageError) and error.where == "evaluate/instructed" and error.exit_code == 1


@pytest.mark.parametrize(
    ("passed", "words", "word"),
    [
        (True, ["helped", "hurt"], "helped"), (False, ["hurt", "hurt"], "hurt"), (False, ["hurt", "cannot tell"], "cannot tell"),
        (None, ["helped", "hurt"], "hurt"), (None, ["helped", "cannot tell"], "helped"), (None, ["cannot tell"], "cannot tell"),
    ],
)  # fmt: skip
def test_the_word_of_a_study(passed: bool | None, words: list[str], word: str) -> None:
    named = [{"word": one} for one in words]
    candidates = {} if passed is None else {str(place): one for place, one in enumerate(named)}
    gate = {"passed": bool(passed), "candidates": candidates}
    assert study_word({"gate": gate, "effects": named if passed is None else [], "retention": []}) == word
    lost = {"gate": {"passed": False, "candidates": {}}, "effects": [], "retention": [{"word": "forgot"}]}
    assert study_word(lost) == "hurt" and sorted(EXIT_CODES.values()) == [0, 3, 4]


def test_a_gain_is_the_change_by_the_hours_that_the_reference_does_not_share() -> None:
    recipe = RECIPE
    seconds = {
        "pretrain/control": 7200.0,
        "pretrain/knowledge": 3600.0,
        "pretrain/instructed": 3600.0,
        "instruct/instructed": 1800.0,
    }
    uris = {name: "shared" if name in ("pretrain/knowledge", "pretrain/instructed") else name for name in seconds}

    def find(name: str) -> Artifact:
        return Artifact(name, "f", uris[name], "", (), {}, {}, seconds[name])

    effect = {"measure": "perplexity", "on": "papers", "change": -0.06, "word": "helped"}
    pairs = [("knowledge", "control"), ("instructed", "knowledge"), ("instructed", "base"), ("knowledge", "instructed")]
    effects = [effect | {"variant": variant, "reference": reference} for variant, reference in pairs]
    effects.append(effects[0] | {"word": "cannot tell"})
    found = gains(recipe, {"effects": effects}, find)
    assert [gain.worker_hours for gain in found] == [2.0, 1.0, 3.0]  # two workers; knowledge has nothing that instructed lacks
    assert found[0].per_hour == pytest.approx(math.log(0.94) / 2) and found[0].accelerator_hours == 0
    wide = recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update={"num_workers": 4, "gpus_per_worker": 2})})
    assert gains(wide, {"effects": effects}, find)[0].hours == 8.0


# ---- what must be there -------------------------------------------------------------------------------------------------------


def one_of(found: tuple[dict[str, Any], Any], variant: str | None = None) -> Candidate:
    return candidate(RECIPE, *found, variant)


def failing(one: Candidate, **facts: dict[str, Any]) -> list[str]:
    """Checks that fail once the facts of all stages of a kind are replaced."""

    def find(name: str) -> Artifact:
        made = one.find(name)
        return replace(made, facts=facts[name.split("/")[0]]) if name.split("/")[0] in facts else made

    return [check.name for check in checks(replace(one, find=find)) if not check.ok]


@pytest.mark.parametrize(
    ("facts", "variant", "missing"),
    [
        ({}, None, []),
        ({}, "instructed", []),
        ({"pretrain": {"tokens": 1}}, None, ["export"]),
        ({"pretrain": {"proof": PROOF | {"largest_logit_difference": 0.5}}}, None, ["export"]),
        ({"pretrain": {"proof": PROOF | {"largest_logit_difference": float("nan")}}}, None, ["export"]),
        ({"instructions": {"licences": {}}}, "instructed", ["contamination"]),
        ({"chats": {"rows": 3}}, "instructed", ["mask"]),
        ({"chats": {"rows": 3}}, "knowledge", []),
    ],
)
def test_what_a_stage_lacks_is_named(found: Any, facts: dict[str, Any], variant: str | None, missing: list[str]) -> None:
    assert failing(one_of(found, variant), **facts) == missing


def test_what_the_recipe_or_the_verdict_lacks_is_named(found: Any) -> None:
    one, (verdict, _) = one_of(found), found
    assert failing(replace(one, recipe=promoted_recipe(retention=None))) == ["retention"]
    assert failing(replace(one, verdict=verdict | {"contamination": []})) == ["contamination"]
    lost = [entry | {"word": "cannot tell"} for entry in verdict["retention"]]
    assert failing(replace(one, verdict=verdict | {"retention": lost})) == ["retention"]
    assert failing(replace(one, verdict=verdict | {"retention": []})) == ["retention"]
    judged = {name: entry | {"passed": False} for name, entry in verdict["gate"]["candidates"].items()}
    assert failing(replace(one, verdict=verdict | {"gate": verdict["gate"] | {"candidates": judged}})) == ["gate"]
    bare = promoted_recipe(exams={}, gate=BASE["gate"] | {"keeps": []}, retention=KEEPS | {"exams": []})
    assert failing(replace(one, recipe=bare)) == ["exams", "contamination"]


def test_only_a_candidate_of_the_gate_can_be_promoted(found: Any) -> None:
    with pytest.raises(RecipeError, match="'control' is no candidate") as refused:
        one_of(found, "control")
    assert "knowledge, instructed" in refused.value.remedy
    with pytest.raises(RecipeError, match="has no gate"):
        candidate(promoted_recipe(gate=None, probes=None, serve=None), *found, None)


def test_a_gate_with_retention_asks_for_all_of_it(store: Path) -> None:
    made, _ = settle(promoted_recipe(retention=KEEPS | {"accuracy_margin": 0.001}), str(store))
    verdict = read_verdict(made)
    words = [(entry["on"], entry["word"]) for entry in verdict["retention"] if entry["variant"] == "knowledge"]
    assert words == [("general", "kept"), ("clinical", "cannot tell")]
    judged = verdict["gate"]["candidates"]["knowledge"]
    assert not judged["passed"] and judged["word"] == "cannot tell" and "margin 0.1 pts (cannot tell)" in judged["reason"]


def test_the_card_says_what_was_measured_what_it_learned_from_and_what_it_is_not_for(found: Any) -> None:
    one = one_of(found, "instructed")
    text = card(one, checks(one)).replace("\\", "")
    assert text.startswith("---\n") and "**Not for clinical use.**" in text and "## Intended use" in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert ["clinical", "letters", "-", "60", "33.3% [22.7, 45.9]", "58", "31.0% [20.6, 43.8]", "-"] in rows
    assert ["clinical", "generated", "-", "8", "12.5% [2.2, 47.1]", "6", "0.0% [0.0, 39.0]", "75% of 8"] in rows
    assert ["papers", "cc-by", "34"] in rows and ["school", "mit", "55"] in rows
    assert any(row[:2] == ["perplexity", "papers"] and row[-1] == "helped" for row in rows)
    ledger = next(file.sha256 for file in one.checkpoint.files if file.path == "ledger.json")
    assert ledger in text and one.checkpoint.digest in text


def test_promote_refuses_and_says_why(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = promoted_recipe(retention=None)
    told = run(recipe, store, monkeypatch, "promote", "--alias", "champion")
    assert isinstance(told.exception, StageError) and "retention (the recipe does not say what must be kept" in str(
        told.exception
    )
    assert "gate           ok" in told.stdout and "retention      LACKING" in told.stdout
    plain = run(recipe, store, monkeypatch, "promote", "--json")
    assert json.loads(plain.stdout)["promoted"] is False and not (store.parent / "registry.db").exists()
