"""Rows that hold an exam item: found against a plain loop over packed rows, and never given by the order."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.ablate.contamination import contamination
from medschool.artifact import Artifact, Output, make, write_file, write_parquet
from medschool.errors import InputError
from medschool.exams.overlap import ExamIndex
from medschool.overlap.search import OVERLAP, OVERLAP_SCHEMA, search, search_file
from medschool.rows import DOCUMENT_SCHEMA, Document, ExamItem, table
from medschool.tokens.order import Order
from medschool.tokens.pack import pack
from medschool.tokens.shards import INDEX, Index, index_bytes, ipc_bytes, rows_table, shard_path, where_path, where_table
from medschool.tokens.withheld import make_withheld, read_withheld

ROW_TOKENS = 8
QUESTION = "Which organ of the tin gardener turns yellow after he has eaten carrots for a year"
ITEM = ExamItem("diet:1", "board", "diet", QUESTION, ("The palms", "The nose", "The knee", "None"), 0, "", "e.jsonl")
OTHER = ExamItem("metal:1", "second", "metal", "Which rust of an iron lung is the one that a tin surgeon fears", ("Red", "Green"), 0, "", "e.jsonl")  # fmt: skip


def store(folder: Path, name: str, files: dict[str, bytes], facts: dict[str, object]) -> Artifact:
    def do(prefix: str) -> Output:
        return Output(tuple(write_file(prefix, path, data) for path, data in files.items()), facts)

    return make(str(folder), name, f"{len(list(folder.rglob('manifest.json'))):016}", {}, do)


def tokens_of(folder: Path, shards: list[list[tuple[str, int]]]) -> tuple[Artifact, list[list[list[str]]]]:
    """A token artifact of shards of documents (id, tokens), and by shard and row the ids that stand in it.

    The file numbers have a gap, as where a shard got no rows.
    """
    files, sizes, ids = {}, [], []
    for number, documents in enumerate(shards):
        texts = [np.zeros(length, np.uint16) for _, length in documents]
        rows = pack([id_ for id_, _ in documents], texts, ROW_TOKENS, 1, np.dtype(np.uint16))
        shard = rows_table(rows, np.dtype(np.uint16))
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(where_table(shard), sink)
        files |= {shard_path(2 * number): ipc_bytes(shard), where_path(2 * number): sink.getvalue().to_pybytes()}
        sizes.append((shard_path(2 * number), shard.num_rows))
        ids.append(shard.column("doc_ids").to_pylist())
    index = Index(ROW_TOKENS, "uint16", 1, tuple(sizes), sum(map(len, shards)), 0, 0, 0)
    return store(folder, "tokens/x", files | {INDEX: index_bytes(index)}, {}), ids


def overlap_of(folder: Path, found: list[tuple[str, str]]) -> Artifact:
    rows = [{"id": id_, "exam": exam, "item": "i:1", "share": 1.0, "hits": 1} for id_, exam in found]

    def do(prefix: str) -> Output:
        exams = {exam: {"items": 5, "found": 1, "documents": 1} for exam in ("board", "second")}
        return Output((write_parquet(prefix, OVERLAP, pa.Table.from_pylist(rows, schema=OVERLAP_SCHEMA)),), {"exams": exams})

    return make(str(folder), "overlap/x", f"{len(list(folder.rglob('manifest.json'))):016}", {}, do)


def withheld_of(folder: Path, tokens: Artifact, overlap: Artifact) -> Artifact:
    count = len(list(folder.rglob("manifest.json")))
    return make(str(folder), "withheld/x", f"{count:016}", {}, lambda prefix: make_withheld(tokens, overlap, prefix))


SHARDS = st.lists(st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=4)


@settings(deadline=None, max_examples=15)
@given(SHARDS, st.data())
def test_every_row_with_a_piece_of_a_found_document_is_withheld_and_no_other(sizes: list[list[int]], data: st.DataObject) -> None:
    import tempfile

    names = [[f"d{shard}-{at % 5}" for at in range(len(lengths))] for shard, lengths in enumerate(sizes)]  # ids that come back
    with tempfile.TemporaryDirectory(prefix="c-withheld-") as folder:
        known = sorted({name for some in names for name in some} | {"absent"})
        found = data.draw(st.lists(st.tuples(st.sampled_from(known), st.sampled_from(["board", "second"])), max_size=5))
        tokens, rows = tokens_of(Path(folder), [list(zip(*pair, strict=True)) for pair in zip(names, sizes, strict=True)])
        made = withheld_of(Path(folder), tokens, overlap_of(Path(folder), found))
        out = read_withheld(made)
        expected = {
            (shard, row): set(ids) & {id_ for id_, _ in found} for shard, some in enumerate(rows) for row, ids in enumerate(some)
        }
        expected = {place: ids for place, ids in expected.items() if ids}
        assert {(shard, row) for shard, some in out.items() for row in some} == set(expected)
        assert all(some == tuple(sorted(set(some))) and some for some in out.values())
        assert made.facts["rows"] == len(expected)
        assert made.facts["documents"] == len({id_ for ids in expected.values() for id_ in ids})
        for exam, counts in made.facts["exams"].items():
            of_exam = {id_ for id_, name in found if name == exam}
            assert counts["rows"] == sum(bool(ids & of_exam) for ids in expected.values())


def test_the_bytes_depend_on_the_rows_alone_so_another_exam_costs_nothing(tmp_path: Path) -> None:
    tokens, _ = tokens_of(tmp_path, [[("a", 20), ("b", 20), ("c", 5)]])
    one = withheld_of(tmp_path, tokens, overlap_of(tmp_path, [("b", "board")]))
    two = withheld_of(tmp_path, tokens, overlap_of(tmp_path, [("b", "second"), ("b", "board"), ("absent", "second")]))
    none = [withheld_of(tmp_path, tokens, overlap_of(tmp_path, found)) for found in ([], [("absent", "board")])]
    assert one.digest == two.digest != none[0].digest == none[1].digest
    assert "second" not in one.facts["exams"] and two.facts["exams"]["second"] == two.facts["exams"]["board"]
    assert read_withheld(none[0]) == {}


def test_an_epoch_of_the_order_is_every_row_but_those_withheld(tmp_path: Path) -> None:
    tokens, rows = tokens_of(tmp_path, [[(f"a{at}", 13) for at in range(20)], [(f"b{at}", 21) for at in range(9)]])
    out = read_withheld(withheld_of(tmp_path, tokens, overlap_of(tmp_path, [("a3", "board"), ("b0", "board"), ("b8", "second")])))
    order = Order({"x": 1}, 4, {"x": tuple(map(len, rows))}, 5, {"x": out})
    left = sum(map(len, rows)) - sum(map(len, out.values()))
    given_rows = [order.locate("x", position)[1:] for position in range(left)]
    assert Counter(given_rows) == Counter(
        (shard, row) for shard, some in enumerate(rows) for row in range(len(some)) if row not in out.get(shard, ())
    )
    assert not {"a3", "b0", "b8"} & {id_ for shard, row in given_rows for id_ in rows[shard][row]}
    assert all(order.locate("x", left + position)[0] == 1 for position in range(3))


def test_tokens_that_do_not_say_where_their_documents_are_are_refused(tmp_path: Path) -> None:
    index = index_bytes(Index(ROW_TOKENS, "uint16", 1, (("shards/00000.arrow", 3),), 1, 0, 0, 0))
    tokens = store(tmp_path, "tokens/x", {INDEX: index}, {})
    with pytest.raises(InputError, match=r"has no where/00000\.parquet"):
        withheld_of(tmp_path, tokens, overlap_of(tmp_path, [("a", "board")]))


# ---- the search ---------------------------------------------------------------------------------------------------------------


def test_all_items_of_a_document_are_listed_with_their_exam() -> None:
    text = f"A page. {QUESTION}: the palms, the nose, the knee, none? {OTHER.question}: red or green? The end."
    found = search([("d:1", "Nothing."), ("d:2", text), ("d:3", OTHER.question)], ExamIndex([ITEM, OTHER])).to_pylist()
    assert [(row["id"], row["exam"], row["item"]) for row in found] == [
        ("d:2", "board", "diet:1"), ("d:2", "second", "metal:1"), ("d:3", "second", "metal:1"),
    ]  # fmt: skip
    assert all(row["share"] >= 0.5 and row["hits"] > 0 for row in found)


def test_a_file_of_documents_is_searched_and_a_broken_one_is_named(tmp_path: Path) -> None:
    documents = [Document(f"d:{at}", "x", QUESTION if at == 130 else "Nothing.", "", "cc0", None, "a", "u") for at in range(200)]
    write_parquet(str(tmp_path), "p.parquet", table(documents, DOCUMENT_SCHEMA))
    found, checked = search_file(str(tmp_path / "p.parquet"), ExamIndex([ITEM]))
    assert checked == 200 and found.column("id").to_pylist() == ["d:130"]
    (tmp_path / "p.parquet").write_bytes((tmp_path / "p.parquet").read_bytes()[:-20])
    with pytest.raises(InputError, match="not a whole Parquet file"):
        search_file(str(tmp_path / "p.parquet"), ExamIndex([ITEM]))


def test_the_report_s_table_joins_what_was_found_with_what_was_withheld(tmp_path: Path) -> None:
    tokens, _ = tokens_of(tmp_path, [[("a", 20), ("b", 20)]])
    overlap = overlap_of(tmp_path, [("b", "board")])
    rows = contamination({"x": overlap}, {"x": withheld_of(tmp_path, tokens, overlap)}, {})
    counts = {"items": 5, "found": 1, "documents": 1}
    assert rows == [
        {"exam": "board", "source": "x", **counts, "rows": 3}, {"exam": "second", "source": "x", **counts, "rows": 0},
    ]  # fmt: skip
