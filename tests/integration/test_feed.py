"""The contract of the ordered feed: through Ray Data and Ray Train, each rank gets exactly the rows that the order gives it.

Ray documents no order for its splitter, so this holds it together: reads that end out of order, two and three ranks, batches that
the ranks do not divide, several epochs, and a worker group that starts again in the middle.
"""

import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
import ray.train
from ray import cloudpickle
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from medschool.errors import StageError
from medschool.tokens.on_ray import BLOCK_BYTES, READ_AHEAD, READERS_A_RANK, OrderedData, blocks
from medschool.tokens.order import Order, RowRef
from medschool.tokens.pack import Rows
from medschool.tokens.shards import ipc_bytes, rows_schema, rows_table
from medschool.tokens.stream import Feed, rank_rows, rank_slice, read_block
from medschool.train.checkpoint import Position
from medschool.train.loop import train
from medschool.train.on_ray import WORKER_ENV

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not have this folder on their path

ROW_TOKENS, BATCH_ROWS, BATCHES, MIDDLE = 16, 5, 24, 11
SHARD_ROWS = {"books": (7, 5, 9), "papers": (6, 4)}
PREFETCH = 2
POLL = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
ORDER = Order({"books": 3, "papers": 1}, BATCH_ROWS, SHARD_ROWS, seed=11)


class SlowOrder(Order):
    """The same order; asking for a batch takes 0 to 150 ms, so that reads end in another order than they began."""

    def batch(self, index: int) -> list[RowRef]:
        time.sleep(random.uniform(0, 0.15))
        return super().batch(index)


@pytest.fixture(scope="module")
def shard_uris(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """Shards of random tokens; no two rows are alike."""
    folder, draw = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    schema = rows_schema(ROW_TOKENS, "uint16")
    uris: dict[str, tuple[str, ...]] = {}
    for source, sizes in SHARD_ROWS.items():
        for shard, rows in enumerate(sizes):
            tokens = draw.integers(0, 60_000, (rows, ROW_TOKENS)).astype(np.uint16).tolist()
            trained = [[True] * ROW_TOKENS] * rows
            columns = [tokens, trained, [[f"{source}:{shard}:{row}"] for row in range(rows)], [[ROW_TOKENS]] * rows]
            path = folder / f"{source}-{shard}.arrow"
            path.write_bytes(ipc_bytes(pa.table(columns, schema=schema)))
            uris[source] = (*uris.get(source, ()), str(path))
    return uris


def record(config: dict[str, Any]) -> None:
    """A training loop that only writes down what it is fed, and fails once when it has seen the whole run."""
    context, start = ray.train.get_context(), ray.train.get_dataset_shard("resume")
    batches = ray.train.get_dataset_shard("train").iter_batches(
        batch_size=rank_rows(BATCH_ROWS, context.get_world_size()), batch_format="pyarrow", prefetch_batches=2
    )
    tables = [table.combine_chunks() for table in batches]
    path = Path(config["folder"], f"{start.batch_index}-{context.get_world_rank()}.arrow")
    with pa.ipc.new_file(path, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    ray.train.report({})  # waits for all ranks
    if start.batch_index == 0:
        raise RuntimeError("start again, in the middle")


def decide(folder: Path) -> Position:
    return Position(batch_index=MIDDLE if any(folder.glob("0-*.arrow")) else 0)


def stored_tokens(shard_uris: dict[str, tuple[str, ...]]) -> dict[tuple[str, int, int], list[int]]:
    """Tokens by (source, shard, row), with plain pyarrow."""
    return {
        (source, shard, row): tokens
        for source, uris in shard_uris.items()
        for shard, uri in enumerate(uris)
        for row, tokens in enumerate(pa.ipc.open_file(uri).read_all().column("tokens").to_pylist())
    }


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("world_size", [*(pytest.param(count, marks=pytest.mark.long) for count in (1, 2)), 3])
def test_every_rank_gets_its_slice_of_every_batch_in_order(
    shard_uris: dict[str, tuple[str, ...]], world_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POLL, WORKER_ENV[POLL])  # as in our trainings
    slow = SlowOrder(ORDER.weights, ORDER.batch_rows, ORDER.shard_rows, ORDER.seed)
    TorchTrainer(
        record,
        train_loop_config={"folder": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=world_size),
        datasets={"train": lambda: None, "resume": lambda: None},
        dataset_config=OrderedData(Feed(slow, shard_uris, ROW_TOKENS, "uint16"), BATCHES, partial(decide, tmp_path)),
        run_config=RunConfig(storage_path=str(tmp_path / "ray_train"), failure_config=FailureConfig(max_failures=1)),
    ).fit()
    stored = stored_tokens(shard_uris)
    for start in (0, MIDDLE):
        readers = [pa.ipc.open_file(tmp_path / f"{start}-{rank}.arrow") for rank in range(world_size)]
        assert [reader.num_record_batches for reader in readers] == [BATCHES - start] * world_size
        for batch in range(start, BATCHES):
            union: list[tuple[Any, ...]] = []
            for rank, reader in enumerate(readers):
                fed = reader.get_batch(batch - start).to_pylist()
                real = [row for row in fed if row["weight"]]
                found = [(row["global_index"], row["source"], row["shard"], row["row"]) for row in real]
                assert found == [places(ref) for ref in rank_slice(ORDER, batch, rank, world_size)]
                assert len(fed) == rank_rows(BATCH_ROWS, world_size)
                assert {row["global_index"] for row in fed[len(real) :]} <= {-1}
                assert [row["tokens"] for row in real] == [stored[row["source"], row["shard"], row["row"]] for row in real]
                union += found
            assert union == [places(ref) for ref in ORDER.batch(batch)]


def places(ref: RowRef) -> tuple[int, str, int, int]:
    return ref.global_index, ref.source, ref.shard, ref.row


class NotedOrder(Order):
    """The same order; every batch that is asked for, once by each read, leaves a line in a file."""

    notes: str

    def batch(self, index: int) -> list[RowRef]:
        with Path(self.notes).open("a") as file:
            file.write(f"{index}\n")
        return super().batch(index)


@ray.remote(num_cpus=0.1)
class Consumer:
    """A rank that takes one batch and then, when it is told to, the others."""

    def take_one(self, part: Any, rows: int) -> int:
        self.batches = iter(part.iter_batches(batch_size=rows, batch_format="pyarrow", prefetch_batches=PREFETCH))
        return int(next(self.batches).num_rows)

    def take_all(self) -> int:
        return sum(1 for _ in self.batches)


def at_rest(count: Callable[[], int], least: int, calm_s: float = 3.0) -> int:
    """The count, once it is no longer below `least` and has not changed for so long."""
    found, since_s = count(), time.monotonic()
    while found < least or time.monotonic() - since_s < calm_s:
        time.sleep(0.1)
        if (now := count()) != found:
            found, since_s = now, time.monotonic()
    return found


def coordinators_use(seconds: float) -> float:
    """Cores that the coordinators of feeds use for so long."""
    found = [process for process in psutil.process_iter(["name"]) if "ray::SplitCoord" in process.info["name"]]
    assert found

    def spent_s() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in found)

    before_s = spent_s()
    time.sleep(seconds)
    return (spent_s() - before_s) / seconds


@pytest.mark.usefixtures("ray_cluster")
def test_no_more_is_read_than_the_bound_says(tmp_path: Path) -> None:
    """While two ranks do nothing with their first batch, the reads of a run of 40 batches come to a rest far before its end."""
    ranks, rows, batches, row_tokens = 2, 128, 40, 2**15
    tokens = np.random.default_rng(1).integers(0, 60_000, (256, row_tokens)).astype(np.uint16)
    path = tmp_path / "shard.arrow"
    path.write_bytes(
        ipc_bytes(rows_table(Rows(tokens, np.ones(tokens.shape, bool), [["x"]] * 256, [[row_tokens]] * 256, 0), tokens.dtype))
    )
    order = NotedOrder({"x": 1}, rows, {"x": (256,)}, seed=1)
    object.__setattr__(order, "notes", str(tmp_path / "notes"))
    parts = blocks(Feed(order, {"x": (str(path),)}, row_tokens, "uint16"), 0, batches, ranks).streaming_split(ranks, equal=True)
    consumers = [Consumer.remote() for _ in range(ranks)]
    sizes = ray.get([consumer.take_one.remote(part, rows // ranks) for consumer, part in zip(consumers, parts, strict=True)])
    read = at_rest(lambda: len((tmp_path / "notes").read_text().splitlines()), ranks * READ_AHEAD)
    assert rows // ranks * row_tokens * 2 >= BLOCK_BYTES  # so that a block is one batch
    assert sizes == [rows // ranks] * ranks
    assert ranks * READ_AHEAD <= read <= ranks * (READ_AHEAD + READERS_A_RANK + 1 + PREFETCH) < ranks * batches / 4
    assert coordinators_use(2.0) < 0.25  # of a core; Ray's own loop takes a whole one while it is ahead of its consumers
    assert ray.get([consumer.take_all.remote() for consumer in consumers]) == [batches - 1] * ranks


@pytest.mark.usefixtures("lone_group")
@pytest.mark.parametrize("fault", ["another batch", "two rows changed places", "a row is missing", "a row came twice"])
def test_training_stops_at_a_row_that_the_order_does_not_give(shard_uris: dict[str, tuple[str, ...]], fault: str) -> None:
    feed = Feed(ORDER, shard_uris, ROW_TOKENS, "uint16")
    right = read_block(feed, 3, 0, 1)
    wrong = {
        "another batch": read_block(feed, 4, 0, 1),
        "two rows changed places": right.take([1, 0, 2, 3, 4]),
        "a row is missing": right.slice(1),
        "a row came twice": right.take([0, 0, 2, 3, 4]),
    }[fault]
    with pytest.raises(StageError, match="rank 0 of 1 received rows") as raised:
        next(train(None, [wrong], ORDER, 3, 3))
    assert raised.value.where == "batch 3" and raised.value.remedy
