"""What a run registers: it refuses for the reasons that `medschool promote` has, as far as its recipe has the parts."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scored_trials import BASE, KEEPS, finish, promoted_recipe

from jobs.publish import publish
from jobs.run import Run
from medschool.ablate.alias import asked_by, give_alias
from medschool.ablate.compare import read_verdict
from medschool.ablate.promote import candidate, checks
from medschool.ablate.settle import settle
from medschool.commands.finished import finder
from medschool.errors import StageError
from medschool.recipe import Recipe

EVERY = ["gate", "exams", "retention", "contamination", "mask", "export"]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One in which everything but the verdict is finished, and no MLflow."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    finish(promoted_recipe(), tmp_path)
    return tmp_path


def run_of(recipe: Recipe, store: Path) -> Run:
    settle(recipe, str(store))
    board: Any = SimpleNamespace(put=lambda line: None)
    return Run(recipe, str(store), board)


def test_a_run_refuses_what_promote_refuses_and_names_all_of_it(store: Path) -> None:
    for manifest in (store / "artifacts" / "pretrain").glob("*/manifest.json"):
        said = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(said | {"facts": {"tokens": 1}}))
    narrow = promoted_recipe(retention=KEEPS | {"accuracy_margin": 0.001, "perplexity_margin": 0.0001})
    with pytest.raises(StageError) as refused:
        publish(run_of(narrow, store))
    said = str(refused.value)
    assert "gate (knowledge does not pass" in said and "instructed does not pass" in said
    assert "retention (" in said and "export (its export was never compared" in said and "exams (" not in said
    one = candidate(narrow, read_verdict(settle(narrow, str(store))[0]), finder(settle(narrow, str(store))[1]), None)
    with pytest.raises(StageError) as promoted:
        give_alias(one, checks(one), "sample", "champion", str(store))
    assert str(promoted.value) == said


def test_a_run_asks_for_what_its_recipe_has(store: Path) -> None:
    made, done = settle(promoted_recipe(), str(store))
    found = checks(candidate(promoted_recipe(), read_verdict(made), finder(done), None))
    assert [check.name for check in found] == EVERY and all(check.ok for check in found)
    bare = promoted_recipe(exams={}, gate=BASE["gate"] | {"keeps": []}, retention=None)
    assert [check.name for check in asked_by(promoted_recipe(), found)] == EVERY
    assert [check.name for check in asked_by(promoted_recipe(retention=None), found)] == [
        name for name in EVERY if name != "retention"
    ]
    assert [check.name for check in asked_by(bare, found)] == ["gate", "mask", "export"]


def test_a_recipe_that_serves_nothing_registers_nothing(store: Path) -> None:
    assert publish(run_of(promoted_recipe(serve=None), store)) is None
