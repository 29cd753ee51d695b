"""How many rows of each source every global batch holds, in exact integers.

Where the weights divide the batch every batch is the same: 15:4:1 of 3200 rows is 2400/640/160. Otherwise each batch takes the
whole part of what every source is owed and the rows left over go to the largest remainders; what a source is owed is carried to
the next batch. All in integers (parts of 1/sum of weights), so nothing drifts however long the run is. The pattern returns to its
start after at most sum/gcd(sum, batch) batches; that period is worked out once, and any batch index is then found without walking
to it.

A *curriculum* is several mixtures one after the other:

    weights {books: 15, papers: 4, general: 1}   weights_from {2000: {papers: 3, general: 1}}

    batches 0 .. 1999: books, papers, general | batches 2000, 2001 ...: papers, general

The key 2000 means "after 2,000 batches"; a batch is a step unless it is skipped, and a skipped one counts, because the order
knows batches only. What is owed is carried inside a segment and never over its end. The price of any question is that of the
segments, not of the batches.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

Weights = Mapping[str, int]


@dataclass(frozen=True)
class Mixture:
    """Integer parts of each source, and the rows of one global batch. Names keep the order of `weights`."""

    weights: Weights
    batch_rows: int
    _period: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_period", _period(tuple(self.weights.values()), self.batch_rows))

    def rows_in(self, batch: int) -> dict[str, int]:
        """Rows of each source in one global batch."""
        return dict(zip(self.weights, self._period[batch % len(self._period)], strict=True))

    def rows_before(self, batch: int) -> dict[str, int]:
        """Rows of each source in batches 0 .. batch-1."""
        rounds, rest = divmod(batch, len(self._period))
        return {
            name: rounds * sum(counts[index] for counts in self._period) + sum(counts[index] for counts in self._period[:rest])
            for index, name in enumerate(self.weights)
        }

    def batches_for(self, source: str, rows: int) -> int:
        """The smallest number of batches that holds `rows` (at least one) rows of a source."""
        index = list(self.weights).index(source)
        per_period = sum(counts[index] for counts in self._period)
        rounds, rest = divmod(rows - 1, per_period)
        reached = 0
        for place, counts in enumerate(self._period, 1):
            reached += counts[index]
            if reached > rest:
                return rounds * len(self._period) + place
        raise AssertionError("a period holds every row of its own sum")


def _period(weights: tuple[int, ...], batch_rows: int) -> tuple[tuple[int, ...], ...]:
    """Counts of consecutive batches until nobody is owed anything."""
    whole = sum(weights)
    owed = [0] * len(weights)
    batches = []
    while True:
        owed = [owe + weight * batch_rows for owe, weight in zip(owed, weights, strict=True)]
        counts = [max(0, owe // whole) for owe in owed]
        by_remainder = sorted(range(len(weights)), key=lambda i: (-(owed[i] - counts[i] * whole), i))
        for index in by_remainder[: batch_rows - sum(counts)]:
            counts[index] += 1
        owed = [owe - count * whole for owe, count in zip(owed, counts, strict=True)]
        batches.append(tuple(counts))
        if not any(owed):
            return tuple(batches)


@dataclass(frozen=True)
class Segment:
    """Batches [start, stop) of one mixture; the last one has no end."""

    start: int
    stop: int | None
    mixture: Mixture

    def batches_before(self, batch: int) -> int:
        """How many of its batches come before global batch `batch`."""
        return max(0, (batch if self.stop is None else min(batch, self.stop)) - self.start)


@dataclass(frozen=True)
class Schedule:
    """One mixture, or several one after the other. Every source that any of them names counts; where absent it has 0 rows."""

    weights: Weights
    batch_rows: int
    weights_from: Mapping[int, Weights] = field(default_factory=dict)
    """Other parts, by the number of batches before them; each at least 1."""
    segments: tuple[Segment, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        starts = [0, *sorted(self.weights_from)]
        mixtures = [self.weights, *(self.weights_from[start] for start in starts[1:])]
        stops: list[int | None] = [*starts[1:], None]
        made = [
            Segment(start, stop, Mixture(weights, self.batch_rows))
            for start, stop, weights in zip(starts, stops, mixtures, strict=True)
        ]
        object.__setattr__(self, "segments", tuple(made))

    @property
    def sources(self) -> tuple[str, ...]:
        """Every source of any segment, in the order in which they are first named."""
        return tuple(dict.fromkeys(name for segment in self.segments for name in segment.mixture.weights))

    def rows_in(self, batch: int) -> dict[str, int]:
        """Rows of each source in one global batch."""
        segment = next(part for part in self.segments if part.stop is None or batch < part.stop)
        return dict.fromkeys(self.sources, 0) | segment.mixture.rows_in(batch - segment.start)

    def rows_before(self, batch: int) -> dict[str, int]:
        """Rows of each source in batches 0 .. batch-1."""
        total = dict.fromkeys(self.sources, 0)
        for segment in self.segments:
            for name, rows in segment.mixture.rows_before(segment.batches_before(batch)).items():
                total[name] += rows
        return total

    def batches_for(self, source: str, rows: int) -> int | None:
        """The smallest number of batches that holds `rows` (at least one) rows of a source; None when no number does."""
        for segment, before in zip(self.segments, self._rows_at_starts(source), strict=True):
            if source not in segment.mixture.weights:
                continue
            needed = segment.start + segment.mixture.batches_for(source, rows - before)
            if segment.stop is None or needed <= segment.stop:
                return needed
        return None

    def _rows_at_starts(self, source: str) -> Iterator[int]:
        """Rows of a source before each segment."""
        parts = (
            segment.mixture.rows_before(segment.batches_before(segment.stop)).get(source, 0)
            for segment in self.segments
            if segment.stop is not None
        )
        return itertools.accumulate(parts, initial=0)
