"""The resume proof on a real Ray: workers are killed, their number changes, and the outcome is held against an undisturbed run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medschool.cluster.drill import Outcome, drill_resume
from medschool.cluster.slice import tiny_slice
from medschool.recipe import load

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"


def drilled(store: Path, sizes: list[int], kills: int, stage: int, dtype: str, steps: int) -> Outcome:
    recipe = load(RECIPE, [f"cluster.zero_stage={stage}", f"model.dtype={dtype}", "cluster.micro_batch_tokens=256"])
    course, rows = tiny_slice(recipe, str(store), str(store / "drill"), steps)
    told: list[str] = []
    outcome = drill_resume(course, rows, sizes, kills, told.append)
    assert len([line for line in told if "killed worker" in line]) == len(outcome.kills)
    assert len([line for line in told if "resuming at step" in line]) >= len(outcome.kills)
    return outcome


def test_a_kill_costs_time_and_not_one_bit(ray_cluster: None, tmp_path: Path) -> None:
    outcome = drilled(tmp_path, [2], 1, stage=1, dtype="fp32", steps=8)
    assert (outcome.result, outcome.reasons) == ("PASS", ())
    assert outcome.sha256[0] == outcome.sha256[1] and [kill.workers for kill in outcome.kills] == [(2, 2)]
    assert all(0 < kill.resumed_step < kill.step for kill in outcome.kills) and outcome.lost_steps >= 1
    assert outcome.ledgers_equal and outcome.largest_loss_difference == 0
    assert 0 < outcome.goodput < 1 and 0 < outcome.recovery_s < outcome.drilled_s


@pytest.mark.long
@pytest.mark.parametrize(
    ("stage", "dtype", "sizes"),
    [
        *((stage, dtype, sizes) for sizes in ([2], [2, 1, 2]) for stage in (1, 2, 3) for dtype in ("fp32", "bf16")),
        (0, "fp32", [2]),
        (1, "fp32", [1, 2]),
        (1, "bf16", [3, 2]),
    ],
)
def test_every_stage_and_precision(ray_cluster: None, tmp_path: Path, stage: int, dtype: str, sizes: list[int]) -> None:
    outcome = drilled(tmp_path, sizes, 2, stage, dtype, steps=24)
    assert (outcome.result, outcome.reasons) == ("PASS", ())
    assert len(outcome.kills) == 2
    if len(sizes) == 1:
        assert outcome.sha256[0] == outcome.sha256[1] and outcome.largest_loss_difference == 0
    else:
        assert {size for kill in outcome.kills for size in kill.workers} == set(sizes)


@pytest.mark.long
def test_the_command_runs_without_services_and_leaves_nothing(tmp_path: Path) -> None:
    words = ["--tiny", "--kills", "1", "--world-sizes", "2,1", "--steps", "8", "--json", "--set", "model.dtype=fp32"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MEDSCHOOL_"))}
    ran = subprocess.run(
        [sys.executable, "-m", "medschool.cli", "drill", "resume", str(RECIPE), *words],
        env=environment | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout)
    assert found["result"] == "PASS" and found["world_sizes"] == [2, 1] and found["ledgers_equal"]
    assert list(tmp_path.iterdir()) == []
