"""Which stored row is the n-th of the run: a pure function of (weights, seed, batch index).

    batch b, slot i --Mixture--> k-th row of a source --epoch = k // rows, shuffle(seed, source, epoch)--> (shard, row)

In each epoch of a source its shards are visited in a new random order, and the rows of a shard in a new random order within it; a
batch therefore touches few shards, and rows were already shuffled over shards when they were written. The slots of a batch are
shuffled too, so that every rank and micro-batch meets the whole mixture. Nothing here knows the number of workers: the same
global batches come out for any.
"""

import functools
from dataclasses import dataclass

import numpy as np

from medschool.seed import seed_of
from medschool.tokens.mixture import Mixture


@dataclass(frozen=True)
class RowRef:
    """One row of the run: its place in the run, and where it is stored."""

    global_index: int
    """batch * batch_rows + slot."""
    source: str
    epoch: int
    """How many times the whole source was seen before this row."""
    shard: int
    row: int


@dataclass(frozen=True)
class Order:
    """The order of a whole run. `shard_rows` gives the rows of every shard of every source."""

    weights: dict[str, int]
    batch_rows: int
    shard_rows: dict[str, tuple[int, ...]]
    seed: int

    @functools.cached_property
    def mixture(self) -> Mixture:
        return Mixture(self.weights, self.batch_rows)

    def batch(self, index: int) -> list[RowRef]:
        """The `batch_rows` rows of global batch `index`, in slot order."""
        before, counts = self.mixture.rows_before(index), self.mixture.rows_in(index)
        rows = [(name, *self.locate(name, before[name] + k)) for name, count in counts.items() for k in range(count)]
        slots = _permutation(self.batch_rows, self.seed, "batch", index)
        return [RowRef(index * self.batch_rows + slot, *rows[take]) for slot, take in enumerate(slots.tolist())]

    def locate(self, source: str, position: int) -> tuple[int, int, int]:
        """(epoch, shard, row in shard) of the `position`-th row taken from a source."""
        sizes = self.shard_rows[source]
        epoch, offset = divmod(position, sum(sizes))
        shards, ends = _shard_order(sizes, self.seed, source, epoch)
        place = int(np.searchsorted(ends, offset, side="right"))
        shard = int(shards[place])
        inside = offset - (int(ends[place - 1]) if place else 0)
        return epoch, shard, int(_permutation(sizes[shard], self.seed, source, epoch, shard)[inside])


@functools.lru_cache(maxsize=256)
def _permutation(size: int, *parts: object) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed_of(*parts))).permutation(size)


@functools.lru_cache(maxsize=64)
def _shard_order(sizes: tuple[int, ...], seed: int, source: str, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Shards of an epoch in visiting order, and the number of rows up to the end of each."""
    shards = _permutation(len(sizes), seed, source, epoch, "shards")
    return shards, np.cumsum(np.asarray(sizes)[shards])
