"""Which stored row is the n-th of the run: a pure function of (weights, seed, batch index).

    batch b, slot i --Schedule--> k-th row of a source --epoch = k // rows, shuffle(seed, source, epoch)--> (shard, row)

In each epoch of a source its shards are visited in a new random order, and the rows of a shard in a new random order within it; a
batch therefore touches few shards, and rows were already shuffled over shards when they were written. The slots of a batch are
shuffled too, so that every rank and micro-batch meets the whole mixture. Nothing here knows the number of workers: the same
global batches come out for any.

Rows that are *withheld* (they hold a document found in an exam) are never given: an epoch of a source is the rows that are left.

The function can be asked both ways: `batch` says what a batch holds, `batches_of` says which batches hold a row. Either costs the
rows of the shards it touches, never a walk over the run.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from medschool.procedure import Phase, phase_weights, phase_weights_from, training
from medschool.recipe import Recipe
from medschool.seed import seed_of
from medschool.tokens.mixture import Schedule, Weights

EPOCHS_KEPT = 64
"""Epochs of sources whose shard order an Order remembers: three numbers a shard each."""
Withheld = Mapping[str, Mapping[int, tuple[int, ...]]]
"""Rows that are never given, by source and shard."""


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
class Visiting:
    """How one epoch goes through the shards of a source; arrays of one number a shard."""

    shards: np.ndarray
    """In visiting order."""
    ends: np.ndarray
    """Rows of the epoch up to the end of each, in visiting order."""
    starts: np.ndarray
    """Rows of the epoch before the first of each, by shard number."""


@dataclass(frozen=True)
class Order:
    """The order of a whole run. `shard_rows` gives the rows of every shard of every source, those withheld included."""

    weights: Weights
    batch_rows: int
    shard_rows: Mapping[str, tuple[int, ...]]
    seed: int
    withheld: Withheld = field(default_factory=dict)
    weights_from: Mapping[int, Weights] = field(default_factory=dict)
    """A curriculum: other weights, by the number of batches before them."""

    @functools.cached_property
    def mixture(self) -> Schedule:
        return Schedule(self.weights, self.batch_rows, self.weights_from)

    @property
    def sources(self) -> tuple[str, ...]:
        """Every source that any part of the run takes rows from."""
        return self.mixture.sources

    @functools.cached_property
    def rows_left(self) -> dict[str, tuple[int, ...]]:
        """Rows of every shard of every source without those withheld: an epoch is their sum."""
        return {
            name: tuple(rows - len(self.withheld.get(name, {}).get(shard, ())) for shard, rows in enumerate(sizes))
            for name, sizes in self.shard_rows.items()
        }

    @functools.cached_property
    def epoch_rows(self) -> dict[str, int]:
        """Rows of one pass over each source."""
        return {name: sum(sizes) for name, sizes in self.rows_left.items()}

    def batch(self, index: int) -> list[RowRef]:
        """The `batch_rows` rows of global batch `index`, in slot order."""
        before, counts = self.mixture.rows_before(index), self.mixture.rows_in(index)
        rows = [(name, *place) for name, count in counts.items() for place in self.take(name, before[name], count)]
        slots = _permutation(self.batch_rows, self.seed, "batch", index)
        return [RowRef(index * self.batch_rows + slot, *rows[take]) for slot, take in enumerate(slots.tolist())]

    def take(self, source: str, start: int, count: int) -> list[tuple[int, int, int]]:
        """(epoch, shard, row in shard) of the rows number `start`, start + 1 ... taken from a source."""
        found: list[tuple[int, int, int]] = []
        while len(found) < count:
            epoch, offset = divmod(start + len(found), self.epoch_rows[source])
            visiting = self._visiting(source, epoch)
            shard = int(visiting.shards[np.searchsorted(visiting.ends, offset, side="right")])
            inside = offset - int(visiting.starts[shard])
            visited = self.visits(source, epoch, shard)[inside : inside + count - len(found)]
            found += [(epoch, shard, row) for row in visited.tolist()]
        return found

    def locate(self, source: str, position: int) -> tuple[int, int, int]:
        """(epoch, shard, row in shard) of the `position`-th row taken from a source."""
        return self.take(source, position, 1)[0]

    def visits(self, source: str, epoch: int, shard: int) -> np.ndarray:
        """Rows of one shard in the order in which an epoch visits them, int64 of shape (rows left,)."""
        drawn = _permutation(self.rows_left[source][shard], self.seed, source, epoch, shard)
        out = self.withheld.get(source, {}).get(shard)
        return drawn if not out else _kept(self.shard_rows[source][shard], tuple(out))[drawn]

    def shard_starts(self, source: str, epoch: int) -> np.ndarray:
        """How many rows of an epoch come before the first of each shard, int64 of shape (shards,)."""
        return self._visiting(source, epoch).starts

    @functools.cached_property
    def _visits(self) -> dict[tuple[str, int], "Visiting"]:
        return {}

    def _visiting(self, source: str, epoch: int) -> "Visiting":
        """The shards of an epoch in order; the last EPOCHS_KEPT that were asked for are kept."""
        known = self._visits
        if (source, epoch) not in known:
            if len(known) == EPOCHS_KEPT:
                known.clear()
            known[source, epoch] = _shard_order(self.rows_left[source], self.seed, source, epoch)
        return known[source, epoch]

    def batches_of(self, source: str, shard: int, row: int, stop: int) -> Iterator[int]:
        """Every batch before `stop` that holds a row, ascending; a row that is withheld is in none. One search an epoch."""
        if source not in self.sources or row in self.withheld.get(source, {}).get(shard, ()):
            return
        rows = self.epoch_rows[source]
        taken = self.mixture.rows_before(stop)[source]
        for epoch in range(-(-taken // rows)):
            inside = int(np.flatnonzero(self.visits(source, epoch, shard) == row)[0])
            position = epoch * rows + int(self.shard_starts(source, epoch)[shard]) + inside
            if position < taken:
                batches = self.mixture.batches_for(source, position + 1)
                assert batches is not None
                yield batches - 1


def order_of(
    recipe: Recipe, variant: str, phase: Phase, seed: int, shard_rows: Mapping[str, tuple[int, ...]], withheld: Withheld
) -> Order:
    """The order of one phase of a variant; of `shard_rows` and `withheld` only what the phase reads is kept."""
    weights = phase_weights(recipe, variant, phase)
    assert weights is not None
    weights_from = phase_weights_from(recipe, variant, phase)
    batch_rows = training(recipe, phase).batch_rows
    names = Schedule(weights, batch_rows, weights_from).sources
    kept = {name: withheld[name] for name in names if withheld.get(name)}
    return Order(weights, batch_rows, {name: shard_rows[name] for name in names}, seed, kept, weights_from)


@functools.lru_cache(maxsize=256)
def _permutation(size: int, *parts: object) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed_of(*parts))).permutation(size)


@functools.lru_cache(maxsize=256)
def _kept(rows: int, out: tuple[int, ...]) -> np.ndarray:
    """Rows of a shard without those withheld, ascending."""
    return np.delete(np.arange(rows), list(out))


def _shard_order(sizes: tuple[int, ...], seed: int, source: str, epoch: int) -> Visiting:
    shards = _permutation(len(sizes), seed, source, epoch, "shards")
    ends = np.cumsum(np.asarray(sizes)[shards])
    starts = np.empty(len(sizes), np.int64)
    starts[shards] = ends - np.asarray(sizes)[shards]
    return Visiting(shards, ends, starts)
