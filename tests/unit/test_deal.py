"""Rows dealt to shards: the bytes follow from rows and seed alone, and finished work is used again, unless it is damaged."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medschool.errors import InputError
from medschool.tokens import deal as deals
from medschool.tokens import portions as cuts
from medschool.tokens.deal import Deal, Dealt, Group, deal_portion, plan_deal, segments, write_group
from medschool.tokens.pack import PADDING, Rows
from medschool.tokens.portions import cut_portions, read_portion, sample

ROW, PORTIONS, SHARDS = 4, 5, 7


def rows_of(portion: int) -> Rows:
    """As many rows as the portion's number says, twice; the first token names the row, every third row has padding."""
    count = 2 * portion
    tokens = np.repeat((np.arange(count, dtype=np.uint16) + 100 * portion)[:, None], ROW, axis=1)
    ids = [
        [f"{portion}-{row}", PADDING] if row % 3 == 0 else [f"{portion}-{row}", f"{portion}-{row + 1}"] for row in range(count)
    ]
    return Rows(tokens, np.ones(tokens.shape, bool), ids, [[3, 1]] * count, portion, count)


def planned(folder: Path, attempt: str, group_shards: int = 2) -> Deal:
    plan = plan_deal(
        [f"portion {number}" for number in range(PORTIONS)], SHARDS, 1, 3, str(folder / "work"), str(folder / attempt)
    )
    return replace(plan, group_shards=group_shards)


def run(deal: Deal, backwards: bool = False) -> tuple[list[Dealt], list[Group]]:
    numbers = range(PORTIONS)[::-1] if backwards else range(PORTIONS)
    dealt = dict((number, deal_portion(deal, number, lambda number=number: rows_of(number))) for number in numbers)  # type: ignore[misc]
    ordered = [dealt[number] for number in range(PORTIONS)]
    groups = range(deal.groups)[::-1] if backwards else range(deal.groups)
    written = {group: write_group(deal, group, segments(ordered, group)) for group in groups}
    return ordered, [written[group] for group in range(deal.groups)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def firsts(path: Path) -> list[int]:
    return [tokens[0] for tokens in pa.ipc.open_file(str(path)).read_all().column("tokens").to_pylist()]


def test_every_row_is_in_one_shard_and_where_says_which(tmp_path: Path) -> None:
    dealt, groups = run(planned(tmp_path, "a"))
    found = []
    for group in groups:
        for path, count in group.shards:
            shard = pa.ipc.open_file(str(tmp_path / "a" / path)).read_all()
            assert shard.num_rows == count > 0
            found += firsts(tmp_path / "a" / path)
            expected = [
                (id_, row) for row, ids in enumerate(shard.column("doc_ids").to_pylist()) for id_ in ids if id_ != PADDING
            ]
            where = pq.read_table(tmp_path / "a" / path.replace("shards", "where").replace(".arrow", ".parquet"))
            assert where.schema.equals(pa.schema([("id", pa.string()), ("row", pa.int32())]))
            assert list(zip(where.column("id").to_pylist(), where.column("row").to_pylist(), strict=True)) == expected
    assert sorted(found) == sorted(100 * portion + row for portion in range(PORTIONS) for row in range(2 * portion))
    assert sum(part.documents for part in dealt) == len(found) and sum(part.tail_tokens for part in dealt) == 10
    assert sum(part.padding_tokens for part in dealt) == sum(-(-2 * portion // 3) for portion in range(PORTIONS))


def test_neither_the_order_of_tasks_nor_the_cut_into_groups_changes_a_byte(tmp_path: Path) -> None:
    run(planned(tmp_path / "one", "a"))
    for number, (backwards, group_shards) in enumerate([(True, 2), (False, 1), (True, SHARDS)]):
        run(planned(tmp_path / f"{number}", "a", group_shards), backwards)
        assert contents(tmp_path / f"{number}" / "a") == contents(tmp_path / "one" / "a")


def test_rows_are_shuffled_over_shards_and_inside_them(tmp_path: Path) -> None:
    _, groups = run(planned(tmp_path, "a"))
    inside = [firsts(tmp_path / "a" / path) for group in groups for path, _ in group.shards]
    assert (
        any(shard != sorted(shard) for shard in inside)
        and sum(len({first // 100 for first in shard}) > 1 for shard in inside) > 1
    )


def test_a_second_attempt_makes_nothing_that_is_finished(tmp_path: Path) -> None:
    first = planned(tmp_path, "a")
    run(first)
    again = planned(tmp_path, "b")
    dealt = [deal_portion(again, number, lambda: pytest.fail("made again")) for number in range(PORTIONS)]
    shutil.rmtree(tmp_path / "work" / Path(again.work_uri).name / "dealt")  # the second pass does not need it any more
    groups = [write_group(again, group, segments(dealt, group)) for group in range(again.groups)]
    assert all(part.reused for part in dealt) and all(group.reused for group in groups)
    assert contents(tmp_path / "b") == contents(tmp_path / "a")


@pytest.mark.parametrize("harm", ["gone", "cut", "changed"])
def test_a_finished_shard_that_is_damaged_is_made_again(tmp_path: Path, harm: str) -> None:
    _, groups = run(planned(tmp_path, "a"))
    whole = contents(tmp_path / "a")
    victim = tmp_path / "a" / groups[1].files[0].path
    data = bytearray(victim.read_bytes())
    if harm == "gone":
        victim.unlink()
    else:
        data[len(data) // 2] ^= 1
        victim.write_bytes(data[:-9] if harm == "cut" else data)
    _, again = run(planned(tmp_path, "b"))
    assert [group.reused for group in again] == [group != 1 for group in range(len(again))]
    assert contents(tmp_path / "b") == whole


def test_damaged_rows_of_a_portion_are_named(tmp_path: Path) -> None:
    deal = planned(tmp_path, "a")
    dealt = [deal_portion(deal, number, lambda number=number: rows_of(number)) for number in range(PORTIONS)]  # type: ignore[misc]
    data = Path(deal.work_uri, dealt[-1].file)
    data.write_bytes(data.read_bytes()[: dealt[-1].ends[0] // 2])
    with pytest.raises(InputError, match="not whole") as raised:
        for group in range(deal.groups):
            write_group(deal, group, segments(dealt, group))
    assert raised.value.where == str(data) and "delete the folder" in raised.value.remedy


def test_another_cut_of_the_corpus_never_meets_these_markers(tmp_path: Path) -> None:
    plans = [plan_deal(parts, SHARDS, 1, 3, str(tmp_path), "x").work_uri for parts in (["a", "b"], ["ab"], ["a", "b"])]
    assert plans[0] == plans[2] != plans[1]


def test_a_group_is_bounded_in_number_and_bytes() -> None:
    def group_shards(shards: int, shard_bytes: int) -> int:
        return plan_deal([], shards, shard_bytes, 0, "w", "p").group_shards

    assert group_shards(1, 16 * 2**20) == group_shards(deals.GROUPS, 16 * 2**20) == 1
    assert group_shards(1000, 16 * 2**20) == 4
    assert group_shards(9000, 16 * 2**20) * 16 * 2**20 == deals.GROUP_BYTES
    assert group_shards(9000, 2**30) == 1


# ---- portions -----------------------------------------------------------------------------------------------------------------


def corpus(folder: Path, sizes: list[int]) -> list[str]:
    """Files of so many documents of about 100 bytes, ten in a row group."""
    uris = []
    for number, size in enumerate(sizes):
        ids = [f"{number}:{row}" for row in range(size)]
        texts = [f"{id_} " + "word " * 19 for id_ in ids]
        path = folder / f"{number:03}.parquet"
        pq.write_table(
            pa.table({"id": pa.array(ids, pa.string()), "text": pa.array(texts, pa.large_string())}),
            path,
            row_group_size=10,
            use_dictionary=False,
        )
        uris.append(str(path))
    return uris


def test_portions_hold_every_document_once_in_order_and_are_of_about_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuts, "PORTION_BYTES", 5_000)
    monkeypatch.setattr(cuts, "ENCODE_BYTES", 350)
    portions = cut_portions(corpus(tmp_path, [3, 1, 200, 0, 2, 45]))
    assert json.loads(json.dumps(portions)) == [[list(piece) for piece in portion] for portion in portions]
    read = [list(read_portion(portion, pa.array(["2:7", "5:44"]))) for portion in portions]
    found = [id_ for portion in read for ids, _ in portion for id_ in ids]
    everything = [f"{number}:{row}" for number, size in enumerate([3, 1, 200, 0, 2, 45]) for row in range(size)]
    assert found == [id_ for id_ in everything if id_ not in ("2:7", "5:44")]
    assert all(text.startswith(id_) for portion in read for ids, texts in portion for id_, text in zip(ids, texts, strict=True))
    assert max(len(ids) for portion in read for ids, _ in portion) == 3
    sizes = [sum(len(ids) for ids, _ in portion) for portion in read]
    assert len(portions) > 3 and max(sizes[:-1]) - min(sizes[:-1]) <= 10


def test_a_large_corpus_has_no_more_portions_than_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "PORTION_BYTES", 1)
    monkeypatch.setattr(cuts, "MOST_PORTIONS", 4)
    assert len(cut_portions(corpus(tmp_path, [100, 60]))) == 4


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    uris = corpus(tmp_path, [30, 30])
    Path(uris[1]).write_bytes(Path(uris[1]).read_bytes()[:-20])
    with pytest.raises(InputError, match="not a whole Parquet file") as raised:
        cut_portions(uris)
    assert raised.value.where == uris[1]


def test_the_sample_is_taken_from_all_over_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "PORTION_BYTES", 2_000)
    texts = sample(cut_portions(corpus(tmp_path, [40, 40, 40])), 1_000)
    assert {text[0] for text in texts} == {"0", "1", "2"} and 600 < sum(map(len, texts)) <= 1_000
    assert sample([], 1_000) == []
