"""A store that answers late, wrongly, half or not at all: what is read is exactly what was written, or an error says what is wrong.

A real S3 store stands behind a proxy that makes the faults and counts them (tests/faulty_store.py). What was read is compared with
what numpy wrote, not with another read through the product.
"""

import hashlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_store import Faults, FaultyStore, faulty_store, seaweed

from medschool import artifact, s3, storage
from medschool.errors import InputError, StorageError
from medschool.tokens.on_ray import heldout_rows
from medschool.tokens.order import Order
from medschool.tokens.pack import Rows
from medschool.tokens.portions import open_parquet
from medschool.tokens.shards import HELDOUT, ipc_bytes, read_rows, read_table, rows_table
from medschool.tokens.stream import Feed, read_block

ROW_TOKENS, SHARD_ROWS = 64, {"books": (300, 260, 40), "papers": (280, 120)}
ORDER = Order({"books": 3, "papers": 2}, 50, SHARD_ROWS, seed=5)
TOKENS = {
    (source, shard): np.random.default_rng([shard, rows]).integers(0, 60_000, (rows, ROW_TOKENS)).astype(np.uint16)
    for source, sizes in SHARD_ROWS.items()
    for shard, rows in enumerate(sizes)
}
BUSY = Faults(latency_s=0.002, slow_down_share=0.2, reset_share=0.05, slow_share=0.05, slow_s=2, seed=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStore]:
    """The proxy, named by the AWS variables of this process."""
    home = tmp_path_factory.mktemp("seaweed") / "home"
    with seaweed(home) as variables, faulty_store(variables["AWS_ENDPOINT_URL"]) as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in (variables | {"AWS_ENDPOINT_URL": proxy.url}).items():
            patch.setenv(name, value)
        yield proxy


@pytest.fixture(autouse=True)
def cold(store: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing kept on this node, no fault, and short waits for silence."""
    monkeypatch.setenv("MEDSCHOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 4.0)
    s3._s3.cache_clear()
    forget_shards()
    store.set(Faults())
    yield
    store.set(Faults())


def forget_shards() -> None:
    from medschool.tokens import shards

    shards._shard.cache_clear()


def write_shards(prefix: str) -> Feed:
    uris: dict[str, tuple[str, ...]] = {}
    for (source, shard), tokens in TOKENS.items():
        rows = Rows(
            tokens,
            np.ones(tokens.shape, bool),
            [[f"{shard}:{row}"] for row in range(len(tokens))],
            [[ROW_TOKENS]] * len(tokens),
            0,
        )
        uri = f"{prefix}/{source}/{shard}.arrow"
        storage.write_bytes(uri, ipc_bytes(rows_table(rows, np.dtype(np.uint16))))
        uris[source] = (*uris.get(source, ()), uri)
    return Feed(ORDER, uris, ROW_TOKENS, "uint16")


def read_epoch(feed: Feed, world_size: int = 2, forget: bool = True) -> Counter[tuple[str, int, int, bytes]]:
    """Every row of 20 batches: an epoch of the books (600 rows) and of the papers (400), as read."""
    found: Counter[tuple[str, int, int, bytes]] = Counter()
    for batch in range(20):
        for rank in range(world_size):
            if forget:  # as if every block were read by a process that has nothing mapped, on a node that has nothing kept
                forget_shards()
                for path in Path(os.environ["MEDSCHOOL_CACHE"]).glob("shards/*"):
                    path.unlink()
            for row in read_block(feed, batch, rank, world_size).to_pylist():
                tokens = np.array(row["tokens"], np.uint16).tobytes()
                found[row["source"], row["shard"], row["row"], tokens] += 1
    return found


def written_rows() -> Counter[tuple[str, int, int, bytes]]:
    return Counter(
        {
            (source, shard, row, tokens[row].tobytes()): 1
            for (source, shard), tokens in TOKENS.items()
            for row in range(len(tokens))
        }
    )


def fired(store: FaultyStore, *names: str) -> Counter[str]:
    counts = store.counts()
    assert all(counts[name] for name in names), counts
    return counts


def test_a_busy_store_gives_every_row_once(store: FaultyStore) -> None:
    feed = write_shards("s3://medschool/busy")
    store.set(BUSY)
    assert read_epoch(feed, world_size=1) == written_rows()  # each rank more would wait out as many faults again
    fired(store, "slow_down", "reset before", "slow")


def test_a_store_that_hangs_is_asked_again(store: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = write_shards("s3://medschool/hang")
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 1.5)
    s3._s3.cache_clear()
    store.set(Faults(hang_share=1, most=2, only="GET"))
    assert read_epoch(feed, forget=False) == written_rows()
    assert fired(store, "hang")["hang"] == 2


@pytest.mark.parametrize("outage_s", [5, pytest.param(60, marks=pytest.mark.long)])
def test_an_outage_is_waited_out(store: FaultyStore, outage_s: int) -> None:
    feed = write_shards(f"s3://medschool/outage-{outage_s}")
    began = time.monotonic()
    store.set(Faults(down_s=outage_s))
    assert read_epoch(feed, forget=False) == written_rows()
    assert fired(store, "down")["down"] >= 3 and time.monotonic() - began > outage_s - 1


def test_an_outage_without_end_is_an_error_with_a_remedy(store: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PATIENCE_S", 2.0)
    store.set(Faults(down_s=600))
    with pytest.raises(StorageError, match="does not answer") as raised:
        storage.read_bytes("s3://medschool/outage/x")
    assert "medschool up" in raised.value.remedy and fired(store, "down")["down"] >= 2


@pytest.mark.parametrize("fault", ["cut", "lie", "reset within"])
def test_an_answer_cut_on_its_way_is_asked_for_again(store: FaultyStore, tmp_path: Path, fault: str) -> None:
    data = random.Random(1).randbytes(9_000_001)
    storage.write_bytes("s3://medschool/cut/data.bin", data)
    share = {"cut": {"cut_share": 0.4}, "lie": {"lie_share": 0.4}, "reset within": {"reset_share": 0.6}}[fault]
    store.set(Faults(**share, only="GET", seed=2))
    for _ in range(3):
        assert storage.read_bytes("s3://medschool/cut/data.bin") == data
    assert storage.read_range("s3://medschool/cut/data.bin", 5, 700_000) == data[5:700_000]
    assert storage.size_and_sha256("s3://medschool/cut/data.bin") == (len(data), hashlib.sha256(data).hexdigest())
    storage.download("s3://medschool/cut/data.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    fired(store, fault)


def test_a_faulty_store_holds_what_was_written(store: FaultyStore, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    files = {f"{number}.bin": random.Random(number).randbytes(200_000) for number in range(30)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    store.set(Faults(slow_down_share=0.2, reset_share=0.1, lost_share=0.1, seed=4))
    made = artifact.make(
        "s3://medschool/made",
        "corpus/x",
        "f" * 16,
        {},
        lambda prefix: artifact.Output(artifact.upload_folder(prefix, folder), {}),
    )
    fired(store, "slow_down", "reset before", "lost")
    store.set(Faults())
    assert {file.path: file.sha256 for file in made.files} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }
    assert {file.path: storage.read_bytes(made.uri(file.path)) for file in made.files} == files


def test_a_write_whose_answer_is_lost_is_still_the_winner(store: FaultyStore) -> None:
    for number in range(5):
        uri = f"s3://medschool/won/{number}"
        store.set(Faults(lost_share=1, most=1, only="PUT"))
        assert storage.put_if_absent(uri, b"mine") is True
        assert fired(store, "lost")["lost"] == 1
        assert storage.put_if_absent(uri, b"mine") is False


def first_batch(store: FaultyStore, feed: Feed, batch: int, world_size: int) -> tuple[int, int]:
    """(requests, bytes) that the first batch of a start at `batch` costs a node that has nothing."""
    forget_shards()
    for path in Path(os.environ["MEDSCHOOL_CACHE"]).glob("shards/*"):
        path.unlink()
    store.set(Faults())
    for rank in range(world_size):
        read_block(feed, batch, rank, world_size)
        forget_shards()  # each rank's block is read by another process of the node
    counts = store.counts()
    return counts["requests"], counts["bytes"]


def test_a_file_read_whole_is_asked_for_in_large_pieces(store: FaultyStore) -> None:
    data = np.random.default_rng(1).bytes(3 * s3.CHUNK_BYTES // 2)
    storage.write_bytes("s3://medschool/large", data)
    store.set(Faults())
    assert storage.open_binary("s3://medschool/large").read() == data
    assert storage.open_raw("s3://medschool/large", "large").read() == data
    assert store.counts()["requests"] == 2 * (1 + 2)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_start_in_the_middle_reads_no_more_than_one_at_the_beginning(store: FaultyStore, world_size: int) -> None:
    """A batch of 50 rows lies in at most two shards of each source; nothing before it is read."""
    feed = write_shards("s3://medschool/seek")
    largest = sum(2 * max(sizes) * (ROW_TOKENS * 3 + 200) for sizes in SHARD_ROWS.values())
    for batch in (0, 12, 19, 12_000_000):
        requests, size = first_batch(store, feed, batch, world_size)
        touched = {(ref.source, ref.shard) for ref in ORDER.batch(batch)}
        assert requests == len(touched) <= 4 and 0 < size < largest


def parquet_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table({"id": [str(n) for n in range(500)], "text": [f"word {n} " * 20 for n in range(500)]}), sink, compression="zstd"
    )
    return bytes(sink.getvalue())


def arrow_bytes() -> bytes:
    rows = TOKENS["books", 2]
    return ipc_bytes(rows_table(Rows(rows, np.ones(rows.shape, bool), [["a"]] * 40, [[ROW_TOKENS]] * 40, 0), rows.dtype))


STORED: dict[str, tuple[Callable[[], bytes], Callable[[str], object]]] = {
    "corpus part, whole": (parquet_bytes, lambda uri: storage.read_parquet(uri, ["id"])),
    "corpus part, in portions": (parquet_bytes, lambda uri: open_parquet(uri, lambda file: file.read())),
    "token shard": (arrow_bytes, lambda uri: read_rows(uri, [3, 39])),
    "held-out table": (arrow_bytes, lambda uri: heldout_rows(held(uri))),
    "any table": (arrow_bytes, read_table),
}


def held(uri: str) -> artifact.Artifact:
    prefix = uri.removesuffix("/" + HELDOUT)
    return artifact.Artifact(
        "tokens/x", "f", f"{prefix}/manifest.json", prefix, (artifact.ArtifactFile(HELDOUT, 0, ""),), {}, {}, 0
    )


@pytest.mark.parametrize("kind", STORED)
def test_a_truncated_object_is_always_reported(store: FaultyStore, kind: str) -> None:
    make, read = STORED[kind]
    data, draw = make(), random.Random(7)
    whole = f"s3://medschool/whole/{kind.replace(' ', '-')}/{HELDOUT}"
    storage.write_bytes(whole, data)
    read(whole)  # so that what fails below fails because it is cut
    for number, size in enumerate([0, 1, 8, len(data) - 1, len(data) - 8, *(draw.randrange(len(data)) for _ in range(15))]):
        uri = f"s3://medschool/short/{kind.replace(' ', '-')}/{number}/{HELDOUT}"
        storage.write_bytes(uri, data[:size])
        with pytest.raises(InputError) as raised:
            read(uri)
        assert raised.value.where == uri and raised.value.remedy, size


def test_a_shard_that_was_changed_in_the_store_is_never_fed(store: FaultyStore) -> None:
    data, uri = arrow_bytes(), "s3://medschool/changed/0.arrow"
    at = data.index(TOKENS["books", 2][7].tobytes())
    sha256 = hashlib.sha256(data).hexdigest()
    storage.write_bytes(uri, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    read_rows(uri, [7])  # a whole Arrow file
    forget_shards()
    for path in Path(os.environ["MEDSCHOOL_CACHE"]).glob("shards/*"):
        path.unlink()
    with pytest.raises(InputError, match=sha256) as raised:
        read_rows(uri, [7], sha256)
    assert raised.value.where == uri and raised.value.remedy
    storage.write_bytes(uri, data)
    assert read_rows(uri, [7], sha256).num_rows == 1
