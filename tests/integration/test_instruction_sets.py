"""The instructions stage on a real Ray: a large file in portions, what is broken, and what holds people. All texts are invented."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medschool.artifact import Output
from medschool.errors import StageError
from medschool.instructions import on_ray, portions
from medschool.instructions.on_ray import make_instructions
from medschool.procedure import stages
from medschool.recipe import Recipe, load

pytestmark = pytest.mark.usefixtures("ray_cluster")
ROOT = Path(__file__).parents[2]
CALL = "Call me at (555) 010-0199 or at (555) 010-0142."


def recipe(*overrides: str, identifiers: str = "null") -> Recipe:
    files = '[{uri: "raw/talks/*", format: alpaca, licence: own}, {uri: raw/more.json, format: alpaca, licence: own}]'
    asked = f"instructions={{talks: {{files: {files}, licences: [own]}}}}"
    base = (asked, "variants.instructed.instructions={talks: 1}", f"clean.identifiers={identifiers}")
    return load(ROOT / "recipes" / "quickstart.yaml", (*base, *overrides))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of JSON lines and an array, 900 records: 30 copies, 9 broken, 5 with telephone numbers."""
    folder, draw = tmp_path_factory.mktemp("talks"), random.Random(1)
    talks: list[dict[str, Any]] = [
        {"instruction": "Answer.", "input": f"Knee {number} squeaks.", "output": f"Oil it {draw.random()} times."}
        for number in range(900)
    ]
    for number in range(30):
        talks[600 + number] = talks[number]
    for number in range(100, 109):
        talks[number] = {"instruction": "Answer.", "input": "It squeaks."}
    for number in range(700, 705):
        talks[number]["output"] = f"{number}. {CALL}"
    (folder / "raw" / "talks").mkdir(parents=True)
    for part in range(2):
        lines = map(json.dumps, talks[300 * part : 300 * part + 300])
        (folder / "raw" / "talks" / f"{part}.jsonl").write_text("\n".join(lines))
    (folder / "raw" / "more.json").write_text(json.dumps(talks[600:]))
    return folder


def rows(prefix: Path, below: str) -> list[dict[str, Any]]:
    return pa.concat_tables([pq.read_table(path) for path in sorted((prefix / below).glob("*.parquet"))]).to_pylist()


def make(store: Path, prefix: Path, *overrides: str, identifiers: str = "null") -> Output:
    return make_instructions(recipe(*overrides, identifiers=identifiers), "talks", (), str(store), str(prefix))


@pytest.mark.parametrize("sample", [None, 50])
def test_portions_make_the_same_conversations_as_whole_files(
    sample: int | None, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("instructions.talks.bad_files={max_share: 0.01}", f"instructions.talks.conversations={sample or 'null'}")
    plain = make(store, tmp_path / "plain", *asked)

    def small(*args: Any) -> Any:  # the limit is set where the task runs, in a process of Ray's, which serves other tests too
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(portions, "PORTION_ROWS", 70)
            return portions.read_file(*args)

    monkeypatch.setattr(on_ray, "read_file", small)
    cut = make(store, tmp_path / "cut", *asked)
    assert len(plain.files) == 7 and len(cut.files) == 31 and cut.facts == plain.facts
    for kind in ("conversations", "dropped"):
        found, wanted = rows(tmp_path / "cut", kind), rows(tmp_path / "plain", kind)
        assert Counter(map(str, found)) == Counter(map(str, wanted))
        assert kind == "dropped" or found == wanted  # of what is dropped, repeats stand at the end of their portion
    assert plain.facts["dropped"] == {"duplicate": 30, "malformed": 9} and plain.facts["made"] == 900
    assert plain.facts["conversations"] == (sample or 861)
    assert not list((tmp_path / "cut").glob("read*")) and not list((tmp_path / "cut").glob("checked*"))


def test_more_broken_records_than_allowed_stop_the_stage(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"9 of 900 records are malformed.*raw/talks/0\.jsonl:101: line 101: output is missing"):
        make(store, tmp_path)


def test_a_file_that_breaks_off_is_left_out_within_the_budget(store: Path, tmp_path: Path) -> None:
    broken = store / "raw" / "talks" / "2.json"
    broken.write_text(json.dumps([{"instruction": "Answer.", "output": "Never."}])[:-3])
    try:
        made = make(store, tmp_path / "a", "instructions.talks.bad_files={max_share: 0.01}")
        assert made.facts["dropped"]["unreadable"] == 1 and made.facts["made"] == 900
        assert made.facts["overlap"] == {"exam_items": 0, "checked": 891, "removed": 0}
        assert "Never." not in str(rows(tmp_path / "a", "conversations"))
        (row,) = [row for row in rows(tmp_path / "a", "dropped") if row["step"] == "unreadable"]
        assert row["uri"] == "raw/talks/2.json"
        with pytest.raises(StageError, match=r"1 of 4 files could not be read.*raw/talks/2\.json"):
            make(store, tmp_path / "b", "instructions.talks.bad_files={max_share: 0.01, max_files: 0}")
    finally:
        broken.unlink()


def test_people_are_left_out_and_too_many_of_them_stop_the_stage(store: Path, tmp_path: Path) -> None:
    loose = "instructions.talks.bad_files={max_share: 0.01}"
    made = make(store, tmp_path / "a", loose, identifiers="{max_per_document: 1}")
    assert made.facts["dropped"]["identifiers"] == 5 and made.facts["identifiers"] == {"phone": 10}
    assert "010-01" not in str(rows(tmp_path / "a", "conversations")) + str(rows(tmp_path / "a", "dropped"))
    with pytest.raises(StageError, match=r"5 of 891 conversations hold identifiers of people \(phone 10\)"):
        make(store, tmp_path / "b", loose, identifiers="{max_per_document: 1, max_quarantined_share: 0.005}")


def test_what_the_scan_allows_is_part_of_the_fingerprint_and_a_budget_is_not() -> None:
    def decided(*overrides: str, identifiers: str = "null") -> Any:
        found = stages(recipe(*overrides, identifiers=identifiers))
        return next(stage.sections for stage in found if stage.name == "instructions/talks")

    one = decided(identifiers="{max_per_document: 1}")
    assert one != decided() and one != decided(identifiers="{max_per_document: 2}")
    assert one == decided(
        "instructions.talks.bad_files={max_files: 0}", identifiers="{max_per_document: 1, max_quarantined_share: 0.5}"
    )
