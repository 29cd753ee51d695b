"""A set's raw files in portions, the checks of a portion, what is kept, and what is too much: without Ray. All texts are invented."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool import storage
from medschool.errors import InputError, StageError, StorageError
from medschool.exams.overlap import ExamIndex
from medschool.instructions import portions
from medschool.instructions.budget import check_files, check_identifiers
from medschool.instructions.check import Terms, check_portion, keep_portion
from medschool.instructions.choose import Choice, choose
from medschool.instructions.portions import RawFile, Reading, raw_files, read_file
from medschool.recipe import Recipe, load
from medschool.recipe.corpus import BadFiles, Identifiers
from medschool.rows import Dropped, ExamItem

ROOT = Path(__file__).parents[2]
ITEM = ExamItem(
    "tin:1", "exam", "tin", "Which of the tin organs of a clockwork gardener is oiled first?", ("ear", "nose"), 0, "", "e"
)


def record(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "instruction": "Answer the patient.",
        "input": f"Knee {number} squeaks.",
        "output": f"Oil it {number} times.",
    } | changes


def raw(folder: Path, records: list[Any], name: str = "talks.jsonl", format_: str = "alpaca", number: int = 0) -> RawFile:
    (folder / name).write_text("\n".join(map(json.dumps, records)))
    return RawFile(number, str(folder / name), f"raw/{name}", format_, None, 0)


def stored(folder: Path, below: str) -> list[dict[str, Any]]:
    return pa.concat_tables([pq.read_table(path) for path in sorted((folder / below).glob("*.parquet"))]).to_pylist()


RECORDS = [record(number) if number % 5 else {"instruction": "x"} for number in range(23)]


@pytest.mark.parametrize(("rows", "size"), [(1, 10**9), (4, 10**9), (10**9, 1), (10**9, 200), (10**9, 10**9)])
def test_portions_hold_what_one_portion_holds(rows: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = raw(tmp_path, RECORDS)
    whole = read_file(file, "set", None, 7, str(tmp_path / "whole"))
    monkeypatch.setattr(portions, "PORTION_ROWS", rows)
    monkeypatch.setattr(portions, "PORTION_BYTES", size)
    reading = read_file(file, "set", None, 7, str(tmp_path / "cut"))
    assert (reading.rows, reading.malformed) == (23, 5) == (whole.rows, whole.malformed) and whole.portions == 1
    for kind in ("made", "refused"):
        assert stored(tmp_path / "cut" / "read", kind) == stored(tmp_path / "whole" / "read", kind)
        assert sorted(path.name for path in (tmp_path / "cut" / "read" / kind).iterdir()) == reading.names()
    assert reading.portions == {(1, 10**9): 23, (4, 10**9): 6, (10**9, 1): 23, (10**9, 10**9): 1}.get(
        (rows, size), reading.portions
    )
    assert [row.id for row in reading.first_malformed] == ["raw/talks.jsonl:1", "raw/talks.jsonl:6", "raw/talks.jsonl:11"]


def test_a_file_that_breaks_off_leaves_one_row_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portions, "PORTION_ROWS", 2)
    (tmp_path / "talks.json").write_text(json.dumps([record(number) for number in range(9)])[:-1])
    reading = read_file(
        RawFile(3, str(tmp_path / "talks.json"), "raw/talks.json", "alpaca", None, 0), "set", None, 7, str(tmp_path)
    )
    assert (reading.names(), reading.rows) == (["00003-00000.parquet"], 0) and reading.unreadable
    assert not pq.read_table(tmp_path / "read" / "made" / "00003-00000.parquet").num_rows
    (row,) = pq.read_table(tmp_path / "read" / "refused" / "00003-00000.parquet").to_pylist()
    assert row == vars(reading.unreadable) and (row["step"], row["id"]) == ("unreadable", "raw/talks.json:1")


def test_the_recipe_s_licence_and_subjects_hold(tmp_path: Path) -> None:
    file = raw(tmp_path, RECORDS)
    read_file(RawFile(**vars(file) | {"licence": "own"}), "set", None, 7, str(tmp_path))
    assert {row["licence"] for row in stored(tmp_path, "read/made")} == {"own"}
    options = {f"answer_{letter}": letter for letter in "abcd"}
    questions = [{"question": "Red?", **options, "correct_answer": "A", "topic": topic} for topic in ("tin", "zinc", "lead")]
    found = read_file(raw(tmp_path, questions, "mmlu.jsonl", "mmlu", 1), "set", ("zinc",), 7, str(tmp_path / "some"))
    assert found.subjects == {"tin", "zinc", "lead"} and found.rows == 6
    assert {row["id"] for row in stored(tmp_path / "some", "read/made")} == {"zinc:2:direct", "zinc:2:shuffled"}


def test_a_file_that_is_gone_stops_the_stage(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="was listed and is gone"):
        read_file(RawFile(0, str(tmp_path / "none"), "none", "alpaca", None, 0), "set", None, 7, str(tmp_path))


def test_raw_files_are_listed_in_the_order_of_the_recipe_and_their_format_must_exist(tmp_path: Path) -> None:
    def recipe(format_: str) -> Recipe:
        asked = f'{{files: [{{uri: "raw/z/*", format: alpaca}}, {{uri: raw/a.obo, format: {format_}}}], licences: [own]}}'
        overrides = (f"instructions={{talks: {asked}}}", "variants.instructed.instructions={talks: 1}")
        return load(ROOT / "recipes" / "quickstart.yaml", overrides)

    for name in ("a.obo", "z/0.json", "z/1.json"):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).touch()
    files = raw_files(recipe("hpo_graph"), "talks", str(tmp_path))
    assert [(file.number, file.name, file.format, file.entry) for file in files] == [
        (0, "raw/z/0.json", "alpaca", 0), (1, "raw/z/1.json", "alpaca", 0), (2, "raw/a.obo", "hpo_graph", 1),
    ]  # fmt: skip
    with pytest.raises(InputError, match="there is no format 'obo'"):
        raw_files(recipe("obo"), "talks", str(tmp_path))


# ---- checks -------------------------------------------------------------------------------------------------------------------


def test_the_first_check_that_refuses_names_itself(tmp_path: Path) -> None:
    call = "Call me at (555) 010-0199 or at (555) 010-0142."
    talks = [record(0), record(1, output=f"{ITEM.question} ear, nose"), record(2, output=call), record(0)]
    read_file(raw(tmp_path, talks), "set", None, 7, str(tmp_path))
    terms = Terms(frozenset({"unstated"}), Identifiers(max_per_document=1), 7)
    checked = check_portion("00000-00000.parquet", terms, ExamIndex([ITEM]), str(tmp_path))
    assert checked.passed.tolist() == [True, False, False, True] and checked.quarantined == 1 and checked.found == {"phone": 2}
    assert checked.hashes[0] == checked.hashes[3] and len(set(checked.ranks.tolist())) == 4
    exam, person = pq.read_table(tmp_path / "checked" / "00000-00000.parquet").to_pylist()
    assert (exam["step"], exam["id"]) == ("exam", "raw/talks.jsonl:2") and "of exam item tin:1" in exam["reason"]
    held = [(row["id"], row["exam"], row["item"]) for row in checked.held.to_pylist()]
    assert held == [("raw/talks.jsonl:2", ITEM.exam, "tin:1")]
    assert person["step"] == "identifiers" and "[phone] or at [phone]" in person["sample"] and "555" not in str(person)
    kept = keep_portion(
        4, "00000-00000.parquet", choose([checked.passed], [checked.hashes], [checked.ranks], None)[0], str(tmp_path)
    )
    assert (kept.made, kept.conversations) == (4, 1) and dict(kept.dropped) == {"exam": 1, "identifiers": 1, "duplicate": 1}
    assert [row["id"] for row in stored(tmp_path, "conversations")] == ["raw/talks.jsonl:1"]
    assert {file.path for file in kept.files} == {"conversations/00004.parquet", "dropped/00004.parquet"}
    unlicensed = check_portion("00000-00000.parquet", Terms(frozenset({"mit"}), None, 7), ExamIndex([ITEM]), str(tmp_path))
    assert unlicensed.held.num_rows == 0
    assert not unlicensed.passed.any() and {row["step"] for row in stored(tmp_path, "checked")} == {"licence"}


PORTION = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=8)


@given(st.lists(PORTION, min_size=1, max_size=5), st.none() | st.integers(1, 12), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_what_is_kept_agrees_with_a_plain_loop(parts: list[list[tuple[bool, int]]], sample: int | None, draw: Any) -> None:
    ranks = [[draw.randrange(2**64) for _ in part] for part in parts]
    passed = [np.array([good for good, _ in part], dtype=bool) for part in parts]
    hashes = [np.array([key for _, key in part], dtype=np.uint64) for part in parts]
    found = choose(passed, hashes, [np.array(part, dtype=np.uint64) for part in ranks], sample)
    seen: set[int] = set()
    first, repeats = [], set()
    for number, part in enumerate(parts):
        for row, (good, key) in enumerate(part):
            if good and key in seen:
                repeats.add((number, row))
            elif good:
                seen.add(key)
                first.append((number, row))
    kept = set(sorted(first, key=lambda place: ranks[place[0]][place[1]])[:sample])
    assert {(number, int(row)) for number, choice in enumerate(found) for row in np.flatnonzero(choice.kept)} == kept
    assert {(number, int(row)) for number, choice in enumerate(found) for row in np.flatnonzero(choice.repeats)} == repeats


def test_no_conversation_at_all_is_no_fault_of_the_choice() -> None:
    empty = np.zeros(0)
    (found,) = choose([empty.astype(bool)], [empty.astype(np.uint64)], [empty.astype(np.uint64)], 3)
    assert isinstance(found, Choice) and not len(found.kept)


# ---- the budget ---------------------------------------------------------------------------------------------------------------


def reading(number: int, rows: int = 100, malformed: int = 0, broken: bool = False, entry: int = 0) -> Reading:
    why = Dropped(f"raw/{number}", "set", "unreadable", "cut short; fetch it", "", f"raw/{number}") if broken else None
    first = [Dropped(f"raw/{number}:1", "set", "malformed", "line 1: x is empty", "", f"raw/{number}")] * min(malformed, 3)
    return Reading(RawFile(number, "", f"raw/{number}", "alpaca", None, entry), 1, rows, malformed, first, unreadable=why)


def test_malformed_records_count_as_a_share_of_all_that_was_read() -> None:
    check_files([reading(0, 100, 2), reading(1, 100, 0)], BadFiles(max_share=0.01), "instructions.set")
    with pytest.raises(StageError, match=r"3 of 200 records are malformed.*raw/0:1: line 1: x is empty") as raised:
        check_files([reading(0, 100, 3), reading(1, 100, 0)], BadFiles(max_share=0.01), "instructions.set")
    assert raised.value.where == "instructions.set" and "instructions.set.bad_files.max_share" in raised.value.remedy


def test_files_that_cannot_be_read_count_as_files_and_an_entry_of_them_alone_is_refused() -> None:
    some = [reading(0), reading(1, 0, broken=True), reading(2, 0, broken=True)]
    check_files(some, BadFiles(max_files=2), "instructions.set")
    with pytest.raises(StageError, match=r"2 of 3 files could not be read.*raw/1: cut short"):
        check_files(some, BadFiles(max_files=1), "instructions.set")
    with pytest.raises(StageError, match="not one of its 1 files could be read as alpaca: raw/3") as raised:
        check_files([*some, reading(3, 0, broken=True, entry=1)], BadFiles(max_files=9), "instructions.set")
    assert raised.value.where == "instructions.set.files[1]"


def test_too_many_people_stop_the_stage(tmp_path: Path) -> None:
    talks = [record(number, output="Call me at (555) 010-0199." if number < 2 else "Oil it.") for number in range(10)]
    read_file(raw(tmp_path, talks), "set", None, 7, str(tmp_path))
    limits = Identifiers(max_per_document=0, max_quarantined_share=0.2)
    checked = [check_portion("00000-00000.parquet", Terms(frozenset({"unstated"}), limits, 7), ExamIndex([]), str(tmp_path))]
    check_identifiers(checked, limits, "instructions.set")
    strict = Identifiers(max_per_document=0, max_quarantined_share=0.19)
    with pytest.raises(StageError, match=r"2 of 10 conversations hold identifiers of people \(phone 2\)"):
        check_identifiers(checked, strict, "instructions.set")
    assert storage.exists(str(tmp_path / "checked" / "00000-00000.parquet"))
