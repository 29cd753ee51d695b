"""Shards, blocks and the held-out choice, checked with plain pyarrow."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medschool import storage
from medschool.errors import InputError, StageError, StorageError
from medschool.seed import seed_of
from medschool.tokens.heldout import choose_heldout
from medschool.tokens.order import Order
from medschool.tokens.pack import Rows
from medschool.tokens.shards import BATCH_ROWS, ipc_bytes, read_rows, rows_table, tokens_of
from medschool.tokens.stream import Feed, rank_rows, read_block
from medschool.tokens.tokenizer import Tokenizer

ROW = 4


def shard(folder: Path, name: str, rows: int, base: int) -> str:
    """A shard whose first token of row r is base + r."""
    tokens = np.repeat(np.arange(base, base + rows, dtype=np.uint16)[:, None], ROW, axis=1)
    packed = Rows(tokens, np.ones(tokens.shape, bool), [["a", "b"]] * rows, [[1, ROW - 1]] * rows, 0)
    path = folder / name
    path.write_bytes(ipc_bytes(rows_table(packed, np.dtype(np.uint16))))
    return str(path)


def test_plain_pyarrow_reads_a_shard(tmp_path: Path) -> None:
    with pa.OSFile(shard(tmp_path, "s.arrow", 5, 100)) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.schema.field("tokens").type == pa.list_(pa.uint16(), ROW)
    assert table.column("tokens").to_pylist()[4] == [104] * ROW
    assert table.column("doc_lengths").to_pylist()[0] == [1, 3]


def test_rows_are_found_in_any_record_batch_and_order(tmp_path: Path) -> None:
    uri = shard(tmp_path, "s.arrow", 2 * BATCH_ROWS + 3, 0)
    wanted = [2 * BATCH_ROWS + 2, 0, BATCH_ROWS, 5, 0]
    assert tokens_of(read_rows(uri, wanted))[:, 0].tolist() == wanted
    with pytest.raises(IndexError):
        read_rows(uri, [2 * BATCH_ROWS + 3])


def test_a_truncated_shard_is_an_error_that_names_it(tmp_path: Path) -> None:
    uri = shard(tmp_path, "s.arrow", 20, 0)
    Path(uri).write_bytes(Path(uri).read_bytes()[:-30])
    with pytest.raises(InputError, match="not a whole shard") as raised:
        read_rows(uri, [3])
    assert raised.value.where == uri
    with pytest.raises(InputError, match="not a whole shard"):
        read_rows(f"{uri}.gone", [3])


@contextmanager
def store_that_answers(monkeypatch: pytest.MonkeyPatch, answers: list[tuple[int, str]]) -> Iterator[list[str]]:
    """An S3 endpoint with these (status, error code) answers, the last one again and again; the methods it was asked with."""
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, code = answers[min(len(asked), len(answers) - 1)]
            asked.append(self.command)
            body = f"<Error><Code>{code}</Code></Error>".encode() if code and self.command != "HEAD" else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()


def test_a_store_that_refuses_is_not_a_damaged_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "s3://bucket/s.arrow"
    with store_that_answers(monkeypatch, [(403, "AccessDenied")]), pytest.raises(StorageError, match="refuses") as raised:
        read_rows(uri, [3])
    assert raised.value.where == uri


def test_a_conflict_is_tried_again_and_only_412_is_a_lost_race(monkeypatch: pytest.MonkeyPatch) -> None:
    conflict, uri = (409, "ConditionalRequestConflict"), "s3://bucket/manifest.json"
    with store_that_answers(monkeypatch, [conflict, (200, "")]) as asked:
        assert storage.put_if_absent(uri, b"x") is True
    assert asked == ["PUT"] * 2
    with store_that_answers(monkeypatch, [conflict, (412, "PreconditionFailed"), (200, "")]):
        assert storage.put_if_absent(uri, b"x") is False
    monkeypatch.setattr(storage, "CONFLICT_WAITS_S", (0.0, 0.0))
    with store_that_answers(monkeypatch, [conflict]) as asked, pytest.raises(StorageError, match="ConditionalRequestConflict"):
        storage.put_if_absent(uri, b"x")
    assert asked == ["PUT"] * 3


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_blocks_of_all_ranks_are_the_batch(tmp_path: Path, world: int) -> None:
    order = Order({"x": 3, "y": 1}, 7, {"x": (5, 6), "y": (4,)}, 3)
    uris = {"x": (shard(tmp_path, "x0", 5, 0), shard(tmp_path, "x1", 6, 100)), "y": (shard(tmp_path, "y0", 4, 200),)}
    feed = Feed(order, uris, ROW, "uint16")
    base = {("x", 0): 0, ("x", 1): 100, ("y", 0): 200}
    for batch in range(5):
        blocks = [read_block(feed, batch, rank, world) for rank in range(world)]
        assert {block.num_rows for block in blocks} == {rank_rows(7, world)}
        whole = pa.concat_tables(blocks)
        real = whole.filter(pa.compute.field("weight") == 1.0)
        refs = order.batch(batch)
        assert real.column("global_index").to_pylist() == [ref.global_index for ref in refs]
        assert tokens_of(real)[:, 0].tolist() == [base[ref.source, ref.shard] + ref.row for ref in refs]
        padding = whole.filter(pa.compute.field("weight") == 0.0)
        assert set(padding.column("global_index").to_pylist()) <= {-1}
        assert padding.column("doc_lengths").to_pylist() == [[ROW]] * padding.num_rows


class Words:
    """A tokenizer of words for these tests: one token a word."""

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> list["Words.Ids"]:
        return [Words.Ids([len(word) for word in text.split()]) for text in texts]

    class Ids:
        def __init__(self, ids: list[int]) -> None:
            self.ids = ids


def parts(folder: Path, ids: list[str], files: int) -> list[str]:
    uris = []
    for number in range(files):
        mine = ids[number::files]
        path = folder / f"{files}-{number}.parquet"
        pq.write_table(pa.table({"id": mine, "text": [f"{id_} one two three" for id_ in mine]}), path)
        uris.append(str(path))
    return uris


def test_the_held_out_choice_does_not_depend_on_how_files_are_cut(tmp_path: Path) -> None:
    ids, tokenizer = [f"doc{number}" for number in range(300)], Tokenizer(Words(), 0, 100)
    chosen = [choose_heldout(parts(tmp_path, order, files), tokenizer, 40, 3, 7) for order, files in ((ids, 1), (ids[::-1], 4))]
    assert chosen[0].equals(chosen[1])
    assert sum(map(len, chosen[0].column("tokens").to_pylist())) == 40
    assert max(map(len, chosen[0].column("tokens").to_pylist())) == 3
    other = choose_heldout(parts(tmp_path, ids, 2), tokenizer, 40, 3, 8)
    assert set(other.column("id").to_pylist()) != set(chosen[0].column("id").to_pylist())


def test_a_source_of_one_document_cannot_be_held_out(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="cannot be split"):
        choose_heldout(parts(tmp_path, ["only"], 1), Tokenizer(Words(), 0, 100), 40, 3, 7)


def test_a_canary_is_never_held_out(tmp_path: Path) -> None:
    ids = [f"canary:{number:04}:0" for number in range(50)] + [f"doc{number}" for number in range(50)]
    chosen = choose_heldout(parts(tmp_path, ids, 3), Tokenizer(Words(), 0, 100), 400, 3, 7).column("id").to_pylist()
    assert chosen and all(id_.startswith("doc") for id_ in chosen)


def test_what_duplicates_removed_is_not_held_out_and_others_take_its_place(tmp_path: Path) -> None:
    uris, tokenizer = parts(tmp_path, [f"doc{number}" for number in range(300)], 3), Tokenizer(Words(), 0, 100)
    before = choose_heldout(uris, tokenizer, 40, 3, 7).column("id").to_pylist()
    removed = frozenset(before[::2])
    after = choose_heldout(uris, tokenizer, 40, 3, 7, removed).column("id").to_pylist()
    assert [id_ for id_ in before if id_ not in removed] == after[: len(before) - len(removed)]
    assert len(after) == len(before) and not removed & set(after)


def test_the_held_out_choice_equals_a_plain_loop_over_all_documents(tmp_path: Path) -> None:
    texts = {f"doc{number}": "word " * (3 + number % 7) for number in range(400)}
    uris = []
    for file in range(3):
        mine = list(texts)[file::3]
        path = tmp_path / f"{file}.parquet"
        pq.write_table(pa.table({"id": mine, "text": [texts[id_] for id_ in mine]}), path, row_group_size=9)
        uris.append(str(path))
    expected, total = [], 0
    for id_ in sorted(texts, key=lambda id_: seed_of(5, "heldout", id_))[: -(-90 // 4)]:
        if total >= 90:
            break
        expected.append((id_, [4] * min(len(texts[id_].split()), 4, 90 - total)))
        total += len(expected[-1][1])
    found = choose_heldout(uris, Tokenizer(Words(), 0, 100), 90, 4, 5)
    assert list(zip(found.column("id").to_pylist(), found.column("tokens").to_pylist(), strict=True)) == expected and total > 80


def test_an_id_in_two_parts_is_held_out_once(tmp_path: Path) -> None:
    ids = [f"doc{number}" for number in range(100)]
    uris = [*parts(tmp_path, ids, 1), *parts(tmp_path, ids[:50], 2)]
    chosen = choose_heldout(uris, Tokenizer(Words(), 0, 100), 30, 3, 7).column("id").to_pylist()
    assert len(chosen) == len(set(chosen)) == 10
