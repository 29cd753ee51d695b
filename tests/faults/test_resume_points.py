"""A run that stops anywhere and goes on with any number of workers is fed the rows of the run that never stopped, in their order.

The run that never stopped is first held against what a run must be, without asking the order: indices without a gap, every epoch of
every source a permutation of its rows, and the tokens that numpy wrote.
"""

import random
from typing import Any

import numpy as np
import pytest
import ray

from medschool.tokens.on_ray import blocks
from medschool.tokens.order import Order
from medschool.tokens.pack import Rows
from medschool.tokens.shards import ipc_bytes, rows_table
from medschool.tokens.stream import Feed, rank_rows, read_block

ROW_TOKENS, BATCH_ROWS, BATCHES = 8, 13, 60  # 13: two workers do not divide it, and the mixture does not either
SHARD_ROWS = {"books": (90, 70, 41), "papers": (50, 33), "general": (20,)}
WEIGHTS = {"books": 15, "papers": 4, "general": 1}
POINTS = sorted(random.Random(9).sample(range(1, BATCHES), 20))
Fed = tuple[int, str, int, int, bytes]
"""(global index, source, shard, row, tokens)."""


@pytest.fixture(scope="module")
def tokens() -> dict[tuple[str, int], np.ndarray]:
    draw = np.random.default_rng(2)
    return {
        (source, shard): draw.integers(0, 60_000, (rows, ROW_TOKENS)).astype(np.uint16)
        for source, sizes in SHARD_ROWS.items()
        for shard, rows in enumerate(sizes)
    }


@pytest.fixture(scope="module")
def feed(tokens: dict[tuple[str, int], np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Feed:
    folder = tmp_path_factory.mktemp("shards")
    uris: dict[str, tuple[str, ...]] = {}
    for (source, shard), values in tokens.items():
        rows = Rows(values, np.ones(values.shape, bool), [["x"]] * len(values), [[ROW_TOKENS]] * len(values), 0)
        path = folder / f"{source}-{shard}.arrow"
        path.write_bytes(ipc_bytes(rows_table(rows, np.dtype(np.uint16))))
        uris[source] = (*uris.get(source, ()), str(path))
    return Feed(Order(WEIGHTS, BATCH_ROWS, SHARD_ROWS, seed=17), uris, ROW_TOKENS, "uint16")


def fed_rows(table: Any) -> list[Fed]:
    return [
        (row["global_index"], row["source"], row["shard"], row["row"], np.array(row["tokens"], np.uint16).tobytes())
        for row in table.to_pylist()
        if row["weight"]
    ]


def run(feed: Feed, start: int, stop: int, world_size: int) -> list[Fed]:
    """What the ranks are fed in batches [start, stop), rank after rank in each batch."""
    return [
        row
        for batch in range(start, stop)
        for rank in range(world_size)
        for row in fed_rows(read_block(feed, batch, rank, world_size))
    ]


@pytest.fixture(scope="module")
def whole(feed: Feed, tokens: dict[tuple[str, int], np.ndarray]) -> list[Fed]:
    """The run that never stopped, with one worker; proved here to be one."""
    rows = run(feed, 0, BATCHES, 1)
    assert [row[0] for row in rows] == list(range(BATCHES * BATCH_ROWS))
    assert all(tokens[source, shard][row].tobytes() == found for _, source, shard, row, found in rows)
    for source, sizes in SHARD_ROWS.items():
        every = sorted((shard, row) for shard, count in enumerate(sizes) for row in range(count))
        taken = [(shard, row) for _, name, shard, row, _ in rows if name == source]
        epochs, rest = divmod(len(taken), len(every))
        assert epochs >= 1 and sorted(set(taken)) == every
        counts = {place: taken.count(place) for place in every}
        assert set(counts.values()) <= {epochs, epochs + 1} and sum(count > epochs for count in counts.values()) == rest
        assert taken[: len(every)] != every, "nothing was shuffled"
    return rows


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("point", POINTS)
def test_a_run_goes_on_where_it_stopped(feed: Feed, whole: list[Fed], point: int, world_size: int) -> None:
    before = run(feed, 0, point, 3 - world_size)  # by the other number of workers
    assert before + run(feed, point, BATCHES, world_size) == whole


@ray.remote(num_cpus=0.1)
class Worker:
    """A rank that takes everything it is fed."""

    def take(self, part: Any, rows: int) -> list[Any]:
        return [
            table.combine_chunks() for table in part.iter_batches(batch_size=rows, batch_format="pyarrow", prefetch_batches=2)
        ]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    "point", [POINTS[6], *(pytest.param(point, marks=pytest.mark.long) for point in POINTS if point != POINTS[6])]
)
def test_a_run_goes_on_where_it_stopped_through_ray(feed: Feed, whole: list[Fed], point: int, world_size: int) -> None:
    parts = blocks(feed, point, BATCHES, world_size).streaming_split(world_size, equal=True)
    workers = [Worker.remote() for _ in parts]
    fed = ray.get(
        [worker.take.remote(part, rank_rows(BATCH_ROWS, world_size)) for worker, part in zip(workers, parts, strict=True)]
    )
    assert [len(tables) for tables in fed] == [BATCHES - point] * world_size
    assert [row for batch in zip(*fed, strict=True) for table in batch for row in fed_rows(table)] == whole[point * BATCH_ROWS :]
