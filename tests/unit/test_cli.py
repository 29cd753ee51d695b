"""What the command line refuses before it asks any service."""

import shutil
from pathlib import Path

import pytest

from medschool.cli import submit
from medschool.errors import RecipeError

ROOT = Path(__file__).parents[2]


def test_a_recipe_that_would_not_travel_is_refused_with_the_copy_that_would(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    for name in ("whole_run", "search"):
        (tmp_path / "jobs" / f"{name}.py").touch()
    recipe = tmp_path / ".medschool" / "results" / "best.yaml"
    recipe.parent.mkdir(parents=True)
    shutil.copyfile(ROOT / "recipes" / "quickstart.yaml", recipe)
    with pytest.raises(RecipeError, match="does not travel") as refused:
        submit(recipe)
    assert refused.value.remedy == f"copy it: cp {recipe} {tmp_path}/recipes/"
