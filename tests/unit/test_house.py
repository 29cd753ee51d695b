"""Rules of the house: the standard library's `platform` stays itself, recipes plan, help has examples, errors are two lines."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medschool.cli import app
from medschool.plan import Plan, make_plan
from medschool.recipe import load

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
VERBS = sorted(command.callback.__name__ for command in app.registered_commands if command.callback)
MACHINE = ["/" + folder + "/" for folder in ("work", "root", "Users")]
REGISTRIES = [
    "pypi" + ".org", "python" + "hosted.org", "npm" + "js.org", "npm" + "js.com", "ana" + "conda.org", "conda" + ".io",
    "proxy.golang" + ".org", "crates" + ".io", "ruby" + "gems.org",
]  # fmt: skip


def command(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A program of this Python environment, run as a user would; PYTHONPATH only as given."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "MEDSCHOOL_", "AWS_", "MLFLOW_"))
    }
    path = str(Path(sys.executable).with_name(words[0]))
    return subprocess.run(
        [path, *words[1:]], cwd=ROOT, env=kept | variables, capture_output=True, text=True, timeout=60, check=False
    )


def files() -> Iterator[Path]:
    """All files of the repository, and those that are about to enter it."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git working tree")
    yield from (ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file())


def test_platform_has_no_init() -> None:
    assert (ROOT / "platform" / "medschool" / "__init__.py").is_file()
    assert not (ROOT / "platform" / "__init__.py").exists()


@pytest.mark.parametrize("python_path", ["", ".", "platform", "platform:."])
def test_python_at_the_root_has_the_standard_library_s_platform(python_path: str) -> None:
    code = "import platform; print(platform.__file__); platform.system()"
    found = command("python", "-c", code, PYTHONPATH=python_path)
    assert found.returncode == 0 and found.stdout.strip() == platform.__file__, found.stderr


def test_pytest_starts_at_the_root() -> None:
    found = command("python", "-m", "pytest", "--version", PYTHONPATH=".")
    assert found.returncode == 0 and "pytest" in found.stdout, found.stderr


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    return {path.stem: make_plan(load(path), "") for path in RECIPES}


def test_every_shipped_recipe_plans_without_services(plans: dict[str, Plan]) -> None:
    assert {"quickstart", "pmc_llama_7b", "pmc_llama_13b"} <= plans.keys()
    for plan in plans.values():
        assert {item.state for item in plan.stages.values()} == {"blocked"}
        assert all("medschool up" in item.reason for item in plan.stages.values())
        assert len(plan.lines()) >= len(plan.stages)


def test_the_13b_plan_has_the_paper_s_size(plans: dict[str, Plan]) -> None:
    totals = plans["pmc_llama_13b"].as_json()["totals"]["pretrain"]
    assert 26.6e9 <= totals["tokens"] <= 26.8e9
    assert 4060 <= totals["steps"] <= 4080
    assert 2.0e21 <= totals["flops"] <= 2.2e21


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, "--help"])
    assert shown.exit_code == 0, shown.output
    assert re.search(rf"Example: medschool {verb}\b", " ".join(shown.output.split())), shown.output


def test_the_verbs_are_those_that_are_promised() -> None:
    assert {"up", "down", "doctor", "fetch", "plan", "submit", "status"} <= set(VERBS)


@pytest.mark.parametrize(
    ("words", "error", "fix"),
    [
        (["plan", "recipes/quickstart.yaml", "--set", "pretrain.batch_row=3"], "pretrain.batch_row: unknown key", "`batch_rows`"),
        (["plan", "recipes/quickstar.yaml"], "recipes/quickstar.yaml: no such file", "recipes/quickstart.yaml"),
    ],
)
def test_a_typo_gives_two_lines_and_exit_code_2(words: list[str], error: str, fix: str, tmp_path: Path) -> None:
    found = command("medschool", *words, MEDSCHOOL_HOME=str(tmp_path))
    lines = found.stderr.splitlines()
    assert (found.returncode, found.stdout, len(lines)) == (2, "", 2), found.stdout + found.stderr
    assert lines[0].startswith("error: ") and error in lines[0]
    assert lines[1].startswith("fix: ") and fix in lines[1]


def test_no_file_names_a_machine_or_a_package_registry() -> None:
    marks = [mark.encode() for mark in (*MACHINE, *REGISTRIES)]
    found = [f"{path.relative_to(ROOT)}: {mark.decode()}" for path in files() for mark in marks if mark in path.read_bytes()]
    assert found == []
