"""Which worker of a group stands on which machine, and what lies between them.

    ranks     0  1  2  3 | 4  5  6  7 | 8 ...        Ray Train numbers the workers of one machine one after the other
    machines  10.0.0.7   | 10.0.0.9   | ...

DeepSpeed's secondary partitions and the preflight rest on that order; it is looked at here and not taken on trust. A machine is
what has an address of its own: two Ray nodes on one address are one machine, with no network between them.
"""

import itertools
import os
import socket
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

ADDRESS, FABRIC = "MEDSCHOOL_NODE_ADDRESS", "MEDSCHOOL_NODE_FABRIC"
"""Variables that a worker of a group on several machines has been given: its machine's address, and whether that has RDMA."""


@dataclass(frozen=True)
class Layout:
    """One group of workers."""

    addresses: tuple[str, ...]
    """Address of the machine of each rank, in the order of ranks."""
    rdma: bool = False
    """Whether every machine has a network that reads and writes memory by itself: EFA, InfiniBand, RoCE."""

    @cached_property
    def machines(self) -> tuple[str, ...]:
        """Each machine once, in the order of ranks."""
        return tuple(dict.fromkeys(self.addresses))

    @cached_property
    def ranks(self) -> dict[str, tuple[int, ...]]:
        """Ranks of each machine, ascending."""
        return {each: tuple(rank for rank, on in enumerate(self.addresses) if on == each) for each in self.machines}

    @cached_property
    def contiguous(self) -> bool:
        """Whether the ranks of every machine are neighbours."""
        return max(Counter(address for address, _ in itertools.groupby(self.addresses)).values(), default=1) == 1

    @cached_property
    def machine_workers(self) -> int | None:
        """Workers of each machine; None where they differ, or where ranks of one machine are not neighbours."""
        counts = set(Counter(self.addresses).values())
        return counts.pop() if len(counts) == 1 and self.contiguous else None

    def named(self, address: str) -> str:
        """`10.0.0.9 (ranks 4 to 7)`."""
        ranks = self.ranks[address]
        return f"{address} ({f'rank {ranks[0]}' if len(ranks) == 1 else f'ranks {ranks[0]} to {ranks[-1]}'})"


def layout_of_group() -> Layout:
    """The layout of this process's group. Every rank calls this, within a process group."""
    import torch.distributed as dist

    own = (os.environ.get(ADDRESS) or socket.gethostname(), os.environ.get(FABRIC) == "rdma")
    found: list[tuple[str, bool]] = [own] * dist.get_world_size()
    if len(found) > 1:
        dist.all_gather_object(found, own)
    return Layout(tuple(address for address, _ in found), all(rdma for _, rdma in found))
