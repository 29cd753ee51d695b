"""How many rows of each source every global batch holds, in exact integers.

Where the weights divide the batch every batch is the same: 15:4:1 of 3200 rows is 2400/640/160. Otherwise each batch takes the
whole part of what every source is owed and the rows left over go to the largest remainders; what a source is owed is carried to
the next batch. All in integers (parts of 1/sum of weights), so nothing drifts however long the run is. The pattern returns to its
start after at most sum/gcd(sum, batch) batches; that period is worked out once, and any batch index is then found without walking
to it.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Mixture:
    """Integer parts of each source, and the rows of one global batch. Names keep the order of `weights`."""

    weights: dict[str, int]
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
