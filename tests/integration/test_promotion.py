"""A model gets its alias in MLflow's registry, with its card, and the alias can be given back."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from scored_trials import finish, promoted_recipe
from typer.testing import CliRunner, Result

from jobs.publish import publish
from jobs.run import Run
from medschool import registry
from medschool.cli import app
from medschool.errors import ServiceError
from medschool.recipe.dump import dump
from medschool.track import mlflow_client


def test_a_model_is_promoted_with_its_card_and_the_alias_can_be_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, path, said = promoted_recipe(), tmp_path / "recipe.yaml", list[str]()
    path.write_text(dump(recipe))
    monkeypatch.setenv("MEDSCHOOL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MEDSCHOOL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/registry.db")
    finish(recipe, tmp_path / "store")

    def promote(*words: str) -> Result:
        return CliRunner().invoke(app, ["promote", str(path), *words])

    first = promote("--alias", "champion", "--json")
    assert first.exit_code == 0, first.exception
    told = json.loads(first.stdout)
    assert (told["version"], told["trial"]) == ("1", "knowledge")
    assert "Not for clinical use" in Path(told["card"]).read_text()
    nothing = promote("--rollback").exception
    assert isinstance(nothing, ServiceError) and "version 1 is the only one that had it" in str(nothing)
    second = promote("--variant", "instructed")
    assert "version 2, @champion" in second.stdout, second.exception
    assert registry.manifest_of("models:/sample@champion")[1] == "2"
    promote("--variant", "instructed")  # again: nothing new to go back to
    back = promote("--rollback")
    assert "@champion is version 1 again, not 2" in back.stdout, back.exception
    assert registry.manifest_of("models:/sample@champion")[1] == "1"
    assert isinstance(promote("--rollback").exception, ServiceError)

    run = Run(recipe, str(tmp_path / "store"), SimpleNamespace(put=said.append))  # what a whole run does at its end
    assert publish(run) == "1" and "registered knowledge as sample version 1, @champion, card " in said[-1]
    client = mlflow_client()
    runs = client.search_runs([client.get_experiment_by_name("sample").experiment_id])
    assert len(runs) == 5 and {one.info.status for one in runs} == {"FINISHED"}
    version = client.get_model_version_by_alias("sample", "champion")
    assert Path(version.tags["card"]).read_text() == Path(told["card"]).read_text()
