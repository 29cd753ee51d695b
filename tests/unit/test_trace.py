"""Questions to the ledgers of a store, against a walk over every batch and every row of small runs whose rows are really read."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from medschool import artifact
from medschool.artifact import Artifact, Output, write_file, write_parquet
from medschool.cli import app
from medschool.errors import InputError
from medschool.ledger import LEDGER, Ledger, ledger_bytes
from medschool.tokens.order import Order
from medschool.tokens.pack import pack
from medschool.tokens.shards import (
    HELDOUT,
    INDEX,
    Index,
    index_bytes,
    ipc_bytes,
    parse_index,
    rows_table,
    shard_path,
    where_path,
    where_table,
)
from medschool.tokens.stream import Feed, read_block
from medschool.trace.checkpoints import checkpoints, find_run
from medschool.trace.compare import diff
from medschool.trace.withdraw import read_ids, why, withdraw
from medschool.train.checkpoint import Position, State, commit_state, state_prefix
from medschool.train.loop import rows_fed

ROW_TOKENS, EOS, BATCH_ROWS = 8, 0, 5
HELD = ["books:held", "papers:held"]


def make_rows(store: str, stage: str, seed: int, documents: int = 30) -> Artifact:
    """Packed rows of invented documents in three shards, as the tokens stage leaves them."""
    draw, source = np.random.default_rng(seed), stage.split("/")[1]
    ids = [f"{source}:{number}" for number in range(documents)]
    texts = [draw.integers(1, 60, draw.integers(1, 3 * ROW_TOKENS)).astype(np.uint16) for _ in ids]
    rows = pack(ids, texts, ROW_TOKENS, EOS, np.dtype(np.uint16))
    table = rows_table(rows, rows.tokens.dtype)
    table = table.take(draw.permutation(table.num_rows))
    cuts = ((0, 13), (13, 21), (21, table.num_rows))

    def do(prefix: str) -> Output:
        files = []
        for number, (start, stop) in enumerate(cuts):
            shard = table.slice(start, stop - start).combine_chunks()
            files.append(write_file(prefix, shard_path(number), ipc_bytes(shard)))
            files.append(write_parquet(prefix, where_path(number), where_table(shard)))
        shards = tuple((shard_path(number), stop - start) for number, (start, stop) in enumerate(cuts))
        index = Index(ROW_TOKENS, "uint16", EOS, shards, documents, 0, 1, 1)
        held = pa.table({"id": [f"{source}:held"], "tokens": pa.array([[1]], pa.list_(pa.uint16()))})
        return Output((*files, write_file(prefix, HELDOUT, ipc_bytes(held)), write_file(prefix, INDEX, index_bytes(index))))

    return artifact.make(store, stage, f"{seed:016x}", {}, do)


def index_of(made: Artifact) -> Index:
    return parse_index(Path(made.uri(INDEX)).read_bytes())


@dataclass
class Walk:
    """What a run was really fed, row by row, as a plain loop over its blocks saw it."""

    name: str
    steps: list[list[tuple[str, list[tuple[str, int]]]]]
    """For each step the rows: source, and (id, tokens) of the pieces."""

    def visits(self, id_: str, until: int) -> list[tuple[int, int]]:
        return sorted(
            (step, tokens)
            for step, rows in enumerate(self.steps[:until], 1)
            for _, pieces in rows
            for piece, tokens in pieces
            if piece == id_
        )

    def documents(self, source: str) -> set[str]:
        return {id_ for rows in self.steps for name, pieces in rows if name == source for id_, _ in pieces}

    def rows(self) -> Counter[str]:
        return Counter(name for rows in self.steps for name, _ in rows)


def run(
    store: str,
    kind: str,
    name: str,
    tokens: dict[str, Artifact],
    order: Order,
    batches: list[int],
    model: str,
    saved: tuple[int, ...],
) -> tuple[Walk, Artifact | None]:
    """Feed the batches to nobody, save states after some of them, and finish unless the last batch is one of these."""
    uris = {source: tuple(made.uri(path) for path, _ in index_of(made).shards) for source, made in tokens.items()}
    feed = Feed(order, uris, ROW_TOKENS, "uint16")
    ledger = Ledger(order, ROW_TOKENS, {source: tokens[source].digest for source in order.sources}, model)
    base, walk = artifact.stage_uri(store, kind, name), Walk(f"{kind}/{name}", [])
    for batch in batches:
        block = read_block(feed, batch, 0, 1)
        ledger = ledger.after(batch, rows_fed(block))
        pieces = (list(zip(row["doc_ids"], row["doc_lengths"], strict=True)) for row in block.to_pylist())
        walk.steps.append(list(zip(block.column("source").to_pylist(), pieces, strict=True)))
        if batch in saved:
            prefix = state_prefix(base, ledger.steps, "a")
            files = (write_file(prefix, LEDGER, ledger_bytes(ledger)), write_file(prefix, "state/x.pt", b"x"))
            assert commit_state(base, State(Position(batch + 1, ledger.steps), 1, 1, prefix, files))
    ledger.check(len(batches), name)
    if batches[-1] in saved:
        return walk, None
    files = (LEDGER, ledger_bytes(ledger)), ("export/model.safetensors", f"{kind} {name}".encode())
    return walk, artifact.make(store, kind, name, {}, lambda prefix: Output(tuple(write_file(prefix, *file) for file in files)))


@dataclass
class Store:
    uri: str
    walks: dict[str, Walk]
    model: Artifact


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One base model; runs a (finished), b (other seed, a curriculum, a skipped batch, under way with two states), c (papers only,
    finished), and an instruction tuning of each finished one."""
    uri = str(tmp_path_factory.mktemp("store"))
    model = artifact.make(uri, "model", "0" * 16, {}, lambda prefix: Output((write_file(prefix, "model.safetensors", b"base"),)))
    tokens = {name: make_rows(uri, f"tokens/{name}", seed) for name, seed in (("books", 1), ("papers", 2))}
    chats = {"graph": make_rows(uri, "chats/graph", 3)}
    sizes = {name: index_of(made).shard_rows for name, made in (tokens | chats).items()}
    withheld = {"books": {0: (2, 5), 2: (0,)}}
    order = Order({"books": 3, "papers": 1}, BATCH_ROWS, {name: sizes[name] for name in ("books", "papers")}, 7, withheld)
    curriculum = replace(order, seed=8, weights_from={4: {"papers": 1}})
    papers = Order({"papers": 1}, BATCH_ROWS, {"papers": sizes["papers"]}, 7)
    found: dict[str, Walk] = {}
    made: dict[str, Artifact | None] = {}
    for name, of, batches, saved in (
        ("a" * 16, order, list(range(23)), ()),
        ("b" * 16, curriculum, [0, 1, 2, 4, 5, 6, 7], (1, 7)),
        ("c" * 16, papers, list(range(2)), ()),
    ):
        found[name[0]], made[name[0]] = run(uri, "pretrain", name, tokens, of, batches, model.digest, saved)
    for name, begun in (("d" * 16, "a"), ("e" * 16, "c")):
        parent = made[begun]
        assert parent is not None
        graph = Order({"graph": 1}, BATCH_ROWS, {"graph": sizes["graph"]}, 7)
        found[name[0]], made[name[0]] = run(uri, "instruct", name, chats, graph, [0, 1], parent.digest, ())
    return Store(uri, found, model)


def told(found: dict[str, Any]) -> dict[tuple[str, int], tuple[str | None, list[dict[str, Any]]]]:
    return {(one["checkpoint"].split("/")[1][0], one["step"]): (one["through"], one["seen"]) for one in found["checkpoints"]}


STATES = {("a", 23), ("b", 2), ("b", 7), ("c", 2), ("d", 2), ("e", 2)}


@pytest.mark.parametrize("source", ["books", "papers", "graph"])
def test_why_equals_a_walk_over_every_row(store: Store, source: str) -> None:
    assert {(one.run[0], one.ledger.steps) for one in checkpoints(store.uri)} == STATES
    some = 0
    for id_ in (f"{source}:{number}" for number in range(0, 30, 3)):
        found = why(store.uri, id_)
        answers, place = told(found), found["stands_in"][0]
        assert len(found["stands_in"]) == 1 and place["artifact"].split("/")[1] == source
        exposed = {"d": ("a", 23), "e": ("c", 2)}
        for name, step in STATES:
            visits = store.walks[name].visits(id_, step)
            through, seen = answers.get((name, step), (None, []))
            parent = exposed.get(name)
            begun = bool(parent and store.walks[parent[0]].visits(id_, parent[1]))
            assert (through is not None) == begun and (through is None or through.split("/")[1][0] == exposed[name][0])
            assert [(one["source"], one["steps"], one["tokens"]) for one in seen] == (
                [(source, sorted({at for at, _ in visits}), sum(count for _, count in visits))] if visits else []
            )
            assert not seen or seen[0]["times"] == pytest.approx(seen[0]["tokens"] / place["tokens"], abs=1e-3)
            some += bool(visits)
    assert some > 5


def test_a_document_that_is_held_out_or_unknown_was_seen_by_nobody(store: Store) -> None:
    for id_, places in (("books:held", 1), ("nobody:1", 0)):
        found = why(store.uri, id_)
        assert [place["held_out"] for place in found["stands_in"]] == [True] * places and found["checkpoints"] == []


def test_withdrawal_names_what_is_affected_and_the_last_clean_checkpoint(store: Store) -> None:
    late = next(
        id_
        for id_ in sorted(store.walks["b"].documents("papers"))
        if not store.walks["b"].visits(id_, 2) and not store.walks["c"].visits(id_, 2) and store.walks["a"].visits(id_, 23)
    )
    found = withdraw(store.uri, [late, "books:held", "nobody:1"])
    assert (found["documents"], found["unknown"], found["held_out"]) == (3, ["nobody:1"], ["books:held"])
    assert {name[:10] for name in found["clean_runs"]} == {"pretrain/c", "instruct/e"}
    by_run = {one["run"].split("/")[1][0]: one for one in found["runs"]}
    assert set(by_run) == {"a", "b", "d"}
    for name in ("a", "b"):
        visits = store.walks[name].visits(late, 99)
        one = by_run[name]
        assert one["steps"] == sorted({step for step, _ in visits}) and one["clean_until_step"] == visits[0][0] - 1
        assert one["tokens"] == {"papers": sum(tokens for _, tokens in visits)} and one["documents"] == 1
    assert by_run["b"]["last_clean"]["step"] == 2 and "/state/00000002/" in by_run["b"]["last_clean"]["uri"]
    assert [one["step"] for one in by_run["b"]["affected"]] == [7] and not by_run["b"]["finished"]
    for name in ("a", "d"):
        assert by_run[name]["last_clean"]["uri"] == store.model.manifest_uri and by_run[name]["finished"]
    assert by_run["d"]["through"] == "pretrain/" + "a" * 16 and by_run["d"]["documents"] == 0


def test_withdrawal_of_many_equals_a_walk(store: Store) -> None:
    ids = [f"{source}:{number}" for source in ("books", "papers") for number in range(30)]
    for one in withdraw(store.uri, ids)["runs"]:
        walk = store.walks[one["run"].split("/")[1][0]]
        visits = [
            (name, step, tokens)
            for name in ("books", "papers")
            for i in range(30)
            for step, tokens in walk.visits(f"{name}:{i}", 99)
        ]
        sums = Counter[str]()
        for name, _, tokens in visits:
            sums[name] += tokens
        assert one["tokens"] == dict(sums) and one["steps"] == sorted({step for _, step, _ in visits})
        assert one["documents"] == len(walk.documents("books") | walk.documents("papers"))


@pytest.mark.parametrize(("a", "b"), [("a", "b"), ("a", "c"), ("b", "c"), ("d", "e"), ("a", "d"), ("a", "a")])
def test_diff_equals_a_walk(store: Store, a: str, b: str) -> None:
    found, walks = diff(store.uri, a * 16, b * 3), (store.walks[a], store.walks[b])
    for source, one in found["sources"].items():
        documents = [walk.documents(source) for walk in walks]
        assert one["documents"] == {
            "only_a": len(documents[0] - documents[1]), "only_b": len(documents[1] - documents[0]), "both": len(documents[0] & documents[1])
        }  # fmt: skip
        assert one["rows"] == dict(zip("ab", (walk.rows()[source] for walk in walks), strict=True))
        assert one["tokens"] == {side: rows * ROW_TOKENS for side, rows in one["rows"].items()}
    assert set(found["sources"]) == {name for walk in walks for rows in walk.steps for name, _ in rows}
    differ = (step for step, rows in enumerate(zip(walks[0].steps, walks[1].steps, strict=False), 1) if rows[0] != rows[1])
    assert found["first_different_step"] == next(differ, None)


def test_a_run_is_found_by_the_first_digits_of_its_fingerprint(store: Store) -> None:
    found = checkpoints(store.uri)
    assert find_run(found, "b").ledger.steps == 7 and find_run(found, "instruct/" + "d" * 16).kind == "instruct"
    for wrong in ("", "f"):
        with pytest.raises(InputError) as raised:
            find_run(found, wrong)
        assert "pretrain/aaaaaaaaaaaaaaaa (23 steps)" in raised.value.remedy


def test_ids_are_read_from_lines_and_from_tables(tmp_path: Path) -> None:
    file = tmp_path / "ids"
    for text in ("x:1\nx:2\n\nx:1\n", "reason,Id\nbad,x:1\nworse,x:2\n", "x:1,bad\nx:2,worse"):
        file.write_text(text)
        assert read_ids(file) == ["x:1", "x:2"]
    for text in ("", "id\n"):
        file.write_text(text)
        with pytest.raises(InputError, match="no ids"):
            read_ids(file)


def test_the_verbs_print_tables_and_json(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSCHOOL_STORE", store.uri)
    monkeypatch.setenv("MEDSCHOOL_HOME", str(tmp_path))
    ids = tmp_path / "ids.csv"
    ids.write_text("books:1\nnobody:1\n")
    for words, says in (
        (["why", "books:1"], "books:1 stands in tokens/books/"),
        (["withdraw", "--ids", str(ids)], "1 in no token artifact of this store: nobody:1"),
        (["diff", "a", "b"], "first step that differs: 1"),
    ):
        shown = CliRunner().invoke(app, ["ledger", *words], catch_exceptions=False)
        assert shown.exit_code == 0 and says in shown.output, shown.output
        told_json = CliRunner().invoke(app, ["ledger", *words, "--json"], catch_exceptions=False)
        assert isinstance(json.loads(told_json.output), dict)
