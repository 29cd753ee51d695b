"""An all-reduce before the first step, in the workers themselves, over the network and the library that they will train with.

    machines 0 - 1, 2 - 3, ...   then   1 - 2, 3 - 0 ...     each worker with the one of the same place on the next machine
        --> latency and bandwidth of every link of the ring --> Link
    all workers together         --> Preflight --lines--> what was measured, and who is slow

The slowest link decides how fast all gradients travel, and a bad cable or a half-dead card shows nowhere else: every worker
waits for it alike. A machine whose two links are both slow is slow; a slow link between two good machines is named as a pair.
With two machines there is one link, so there are figures and no verdict.

Nothing ends here because something is slow: that is said, and the training goes on. A group that does not answer within LIMIT_S
raises. On one machine nothing is measured, and in one process group it is done once: torch names the small groups by their ranks.
Price: a second, of which most is making the groups.

Bandwidth is nccl-tests' bus bandwidth, S / t x 2 (n - 1) / n (doc/PERFORMANCE.md there), so that any number of workers compares.
What it does not know: a link that is slow under load only, and links between machines that are not neighbours in the ring.
"""

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from medschool.errors import StageError
from medschool.train.layout import Layout

LIMIT_S = 60.0
"""For one collective of all workers: those that start last are waited for."""
SMALL_TIMES, LARGE_TIMES = 7, 3
LARGE_BYTES = {"cpu": 2**20, "cuda": 64 * 2**20}
"""Of one message: long enough that latency does not decide, short enough to be done in a tenth of a second on 10 Gbit/s."""
SLOW_FACTOR = 4.0
"""A link so many times slower than the fastest one is called slow."""
LEAST_S = 1e-3
"""Latencies below are never called slow: scheduling of the processes alone makes such differences."""


@dataclass(frozen=True)
class Measured:
    """One all-reduce."""

    latency_s: float
    """Of eight bytes, the median."""
    bytes_per_s: float
    """Bus bandwidth of a large message, the best."""

    def __str__(self) -> str:
        return f"{1e3 * self.latency_s:.2g} ms, {self.bytes_per_s / 1e9:.2g} GB/s"


@dataclass(frozen=True)
class Link:
    """The slowest of the workers' own links between two machines."""

    machines: tuple[str, str]
    measured: Measured


@dataclass(frozen=True)
class Preflight:
    """What was measured in one group."""

    layout: Layout
    links: tuple[Link, ...]
    together: Measured

    def slow(self) -> tuple[Link, ...]:
        """Links that are much slower than the fastest one."""
        best_s = min(link.measured.latency_s for link in self.links)
        best = max(link.measured.bytes_per_s for link in self.links)
        return tuple(link for link in self.links if _slow(link.measured, best_s, best))

    def slow_machines(self) -> tuple[str, ...]:
        """Machines all of whose links are slow, where the others have one that is not."""
        slow, good = self.slow(), {end for link in self.links for end in link.machines}
        good -= {end for end in good if all(link in slow for link in self.links if end in link.machines)}
        return tuple(end for end in self.layout.machines if end not in good) if good else ()

    def lines(self) -> list[str]:
        """For the log of the run: one line of figures, and one for each machine or link that is slow."""
        count, latencies = len(self.layout.machines), [1e3 * link.measured.latency_s for link in self.links]
        rates = [link.measured.bytes_per_s / 1e9 for link in self.links]
        said = [
            f"preflight: {len(self.layout.addresses)} workers on {count} machines, all-reduce {self.together}; "
            f"between machines {_span(latencies)} ms, {_span(rates)} GB/s"
        ]
        slow, machines = self.slow(), self.slow_machines()
        good = [link.measured for link in self.links if link not in slow]
        for machine in machines:
            worst = max((link.measured for link in slow if machine in link.machines), key=lambda each: each.latency_s)
            said.append(f"preflight: {self.layout.named(machine)} is slow: {worst}, elsewhere {_best(good)}; {REMEDY}")
        for link in slow:
            if not set(link.machines) & set(machines):
                ends = " and ".join(map(self.layout.named, link.machines))
                said.append(f"preflight: between {ends} it is slow: {link.measured}, elsewhere {_best(good)}; {REMEDY}")
        return said


REMEDY = "every step waits for it: look at its network, or drain the node"


def _slow(measured: Measured, best_s: float, best_bytes_per_s: float) -> bool:
    late = measured.latency_s > SLOW_FACTOR * best_s and measured.latency_s > LEAST_S
    return late or measured.bytes_per_s * SLOW_FACTOR < best_bytes_per_s


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low} to {high}"


def _best(measured: Sequence[Measured]) -> str:
    return f"{1e3 * min(each.latency_s for each in measured):.2g} ms, {max(each.bytes_per_s for each in measured) / 1e9:.2g} GB/s"


def ring_rounds(machines: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Pairs of neighbours on a ring, in two or three rounds; no machine is twice in one."""
    links = list(itertools.pairwise(machines))
    rounds = [links[0::2], links[1::2]]
    if len(machines) > 2:
        last = (machines[-1], machines[0])
        rounds = [rounds[0], [*rounds[1], last]] if len(machines) % 2 == 0 else [*rounds, [last]]
    return [some for some in rounds if some]


def preflight(layout: Layout, rank: int) -> Preflight | None:
    """Measure the group of this process; every rank calls this. None on one machine.

    Raises StageError when the group does not answer.
    """
    if len(layout.machines) == 1:
        return None
    import torch.distributed as dist

    everyone = tuple(range(len(layout.addresses)))
    try:
        together = _group(everyone)
        own = [
            Link(pair, _measure(ranks, rank))
            for pairs in ring_rounds(layout.machines)
            for pair in pairs
            for ranks in zip(*(layout.ranks[end] for end in pair), strict=False)
            if rank in ranks
        ]
        found: list[list[Link]] = [[] for _ in everyone]
        dist.all_gather_object(found, own, group=together)
        measured = _timed(together, len(everyone))
        dist.destroy_process_group(together)
    except RuntimeError as error:
        raise StageError(
            f"the workers on {', '.join(layout.machines)} do not answer each other within {LIMIT_S:g} s: "
            f"{(str(error).splitlines() or [''])[0]}",
            "look at the network between these machines: with NCCL_DEBUG=INFO in their environment NCCL says what it does",
            "preflight",
        ) from error
    return Preflight(layout, _slowest(link for links in found for link in links), measured)


def _slowest(links: Any) -> tuple[Link, ...]:
    """Of each pair of machines the link with the largest latency, with the smallest bandwidth of all of the pair."""
    by_pair: dict[tuple[str, str], list[Measured]] = {}
    for link in links:
        by_pair.setdefault(link.machines, []).append(link.measured)
    return tuple(
        Link(pair, Measured(max(each.latency_s for each in some), min(each.bytes_per_s for each in some)))
        for pair, some in by_pair.items()
    )


def _group(ranks: Sequence[int]) -> Any:
    import torch.distributed as dist

    return dist.new_group(list(ranks), timeout=timedelta(seconds=LIMIT_S), use_local_synchronization=True)


def _measure(ranks: tuple[int, int], rank: int) -> Measured:
    import torch.distributed as dist

    group = _group(ranks)
    measured = _timed(group, len(ranks))
    dist.destroy_process_group(group)
    return measured


def _timed(group: Any, workers: int) -> Measured:
    """All-reduces of eight bytes and of a large message; the first one is not counted."""
    import torch

    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    small, large = torch.zeros(2, device=device), torch.zeros(LARGE_BYTES[device.type] // 4, device=device)
    latencies = [_one(small, group) for _ in range(1 + SMALL_TIMES)][1:]
    times = [_one(large, group) for _ in range(1 + LARGE_TIMES)][1:]
    return Measured(statistics.median(latencies), large.nbytes / min(times) * 2 * (workers - 1) / workers)


def _one(tensor: Any, group: Any) -> float:
    import torch
    import torch.distributed as dist

    began = time.perf_counter()
    dist.all_reduce(tensor, group=group)
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
