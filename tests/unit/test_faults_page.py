"""docs/faults.md names tests that there are, and calls long those that `make test` leaves out."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if re.match(r"\| [A-Z]+\d+ \|", line)]
NAMED = re.compile(r"`(\w+/\w+\.py)::(\w+)`")


@cache
def named_in(path: str) -> dict[str, bool]:
    """Whether each test of a file is always long: by its own mark, or by that of the whole file."""
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    whole = any(
        isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark" and "pytest.mark.long" in ast.unparse(node)
        for node in tree.body
    )
    return {
        node.name: whole or any(ast.unparse(mark) == "pytest.mark.long" for mark in node.decorator_list)
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_there_are_rows_of_every_kind() -> None:
    found = [row.split("|")[1].strip() for row in ROWS]
    assert len(found) == len(set(found)) > 40
    assert {re.sub(r"\d", "", one) for one in found} == {"T", "D", "S", "SEC", "E"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_a_row_names_tests_that_there_are_and_says_which_are_long(row: str) -> None:
    always, _, long = row.split("|")[4].partition("*long:* `")
    assert NAMED.search(row)
    for part, is_long in ((always, False), ("`" + long, True)):
        for path, name in NAMED.findall(part):
            assert named_in(path).get(name) is is_long, (path, name)
