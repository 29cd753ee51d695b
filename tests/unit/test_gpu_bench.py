"""The script for a GPU: what it runs, that it goes on where it stopped, and, at toy size on the CPU, that a part works."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medschool.procedure import trials
from medschool.recipe import load

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "gpu" / "all.sh"
PARTS = re.search(r"for part in (.*); do", SCRIPT.read_text())[1].split()  # type: ignore[index]


def run(results: Path, *words: str, parts_s: str = "600") -> str:
    environment = os.environ | {"PYTHON": sys.executable, "PART_S": parts_s}
    ran = subprocess.run(["bash", SCRIPT, *words, results], env=environment, capture_output=True, text=True, check=True)
    return ran.stdout


def lines(results: Path) -> Iterator[dict[str, object]]:
    return (json.loads(line) for line in results.read_text().splitlines())


def test_parts_with_a_result_are_not_run_again(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps({"part": part, "tiny": True}) + "\n" for part in PARTS))
    before = results.read_bytes()
    assert run(results, "--tiny").splitlines() == [f"{part}: has a result" for part in PARTS]
    assert results.read_bytes() == before


def test_a_result_at_toy_size_is_none(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps({"part": part, "tiny": part == "serving"}) + "\n" for part in PARTS))
    said = run(results, parts_s="0.01")
    assert "serving: no result" in said and said.count("has a result") == len(PARTS) - 1


def test_the_eight_rows_are_eight_under_three_orders() -> None:
    recipe = load(SCRIPT.with_name("eight_rows.yaml"))
    assert len(recipe.variants) == 8 and len(trials(recipe)) == 1 + 7 * 3


@pytest.mark.long
def test_parts_work_at_toy_size_and_a_cut_one_leaves_no_result(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    others = [part for part in PARTS if part not in ("mfu_zero3", "memory")]
    results.write_text(
        "".join(json.dumps({"part": part, "tiny": True, "result": {"peak_bytes": None}}) + "\n" for part in others)
    )
    assert "mfu_zero3: no result (exit code 124)" in run(results, "--tiny", parts_s="1")
    assert len(list(lines(results))) == len(others)
    run(results, "--tiny")
    found = {str(line["part"]): line for line in lines(results) if line["part"] not in others}
    assert set(found) == {"mfu_zero3", "memory"}
    trained = found["mfu_zero3"]
    assert trained["result"]["tokens_per_s"] > 0 and trained["result"]["proof"]["argmax_agreement"] > 0.9  # type: ignore[index]
    assert trained["commit"] and trained["device"] and trained["versions"]["torch"]  # type: ignore[index]
