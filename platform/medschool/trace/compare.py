"""Two runs side by side: what one has consumed and the other has not, and where their orders part.

Rows are counted shard by shard without a walk over the batches: an epoch that was finished holds every row once, and of the last
one a shard holds the first n rows of its own shuffle. Documents are told apart by a 64-bit hash of their id, eight bytes each for
either run and source (0.8 GB for 50 million documents in both), because a document may lie in several shards; the where/ tables
are read once for each run. Two documents out of 50 million share a hash with a chance of 1 in 10,000: a count would be one short.

The first step that differs is looked for only among batches that can differ: where both runs take as many rows from the same
stored rows under one seed, the batch is the same because the order is a function.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from medschool.artifact import Artifact
from medschool.errors import InputError
from medschool.ledger import Ledger
from medschool.tokens.where import THREADS, documents_in, index_of, rows_with
from medschool.trace.checkpoints import checkpoints, find_run, token_artifacts


def diff(store_uri: str, name_a: str, name_b: str) -> dict[str, Any]:
    """Rows, tokens and documents by source that two runs have consumed, and the first step in which they differ.

    Raises InputError for a name that does not mean one run, or a run whose token artifacts are not in the store.
    """
    found, artifacts = checkpoints(store_uri), token_artifacts(store_uri)
    a, b = find_run(found, name_a), find_run(found, name_b)
    return {
        "a": {"run": a.name, "steps": a.ledger.steps, "finished": a.finished},
        "b": {"run": b.name, "steps": b.ledger.steps, "finished": b.finished},
        "sources": {
            source: _source(source, a.ledger, b.ledger, artifacts) for source in sorted({*a.ledger.digests, *b.ledger.digests})
        },
        "first_different_step": first_difference(a.ledger, b.ledger),
    }


def consumed(ledger: Ledger, source: str) -> Iterator[np.ndarray]:
    """How often each row of a source was trained on, shard by shard: int64 of shape (rows of the shard,)."""
    order, taken = ledger.order, ledger.order.mixture.rows_before(ledger.batches)[source]
    skipped = _skipped(ledger, source)
    for shard, rows in enumerate(order.shard_rows[source]):
        counts = np.zeros(rows, np.int64)
        for epoch in range(-(-taken // order.epoch_rows[source])):
            before = epoch * order.epoch_rows[source] + int(order.shard_starts(source, epoch)[shard])
            counts[order.visits(source, epoch, shard)[: max(0, taken - before)]] += 1
        for row in skipped.get(shard, ()):
            counts[row] -= 1
        yield counts


def _skipped(ledger: Ledger, source: str) -> dict[int, list[int]]:
    """Rows of a source in batches that were skipped, by shard."""
    rows: dict[int, list[int]] = {}
    for batch in ledger.skipped:
        for ref in ledger.order.batch(batch):
            if ref.source == source:
                rows.setdefault(ref.shard, []).append(ref.row)
    return rows


def first_difference(a: Ledger, b: Ledger) -> int | None:
    """The first step in which two runs trained on other rows, or in other order; None when the shorter one is all the same."""
    alike = _alike(a, b)
    for step, (of_a, of_b) in enumerate(zip(a.trained_batches(), b.trained_batches(), strict=False), 1):
        surely_same = of_a == of_b and _takes(a, of_a) == _takes(b, of_b) and {name for name, *_ in _takes(a, of_a)} <= alike
        if not surely_same and _contents(a, of_a) != _contents(b, of_b):
            return step
    return None


def _alike(a: Ledger, b: Ledger) -> set[str]:
    """Sources from which the n-th row is the same row in both runs, and stands in the same slot of a batch that takes as many."""
    if (a.order.seed, a.order.batch_rows) != (b.order.seed, b.order.batch_rows):
        return set()
    both = {*a.order.sources} & {*b.order.sources}
    return {name for name in both if _rows_of(a, name) == _rows_of(b, name)}


def _takes(ledger: Ledger, batch: int) -> list[tuple[str, int, int]]:
    """(source, rows taken before, rows taken) of a batch, in the order of the sources."""
    before, inside = ledger.order.mixture.rows_before(batch), ledger.order.mixture.rows_in(batch)
    return [(name, before[name], rows) for name, rows in inside.items() if rows]


def _rows_of(ledger: Ledger, source: str) -> tuple[object, ...]:
    """What decides which rows are taken from a source, beside the seed."""
    return ledger.digests[source], ledger.order.shard_rows[source], dict(ledger.order.withheld.get(source, {}))


def _contents(ledger: Ledger, batch: int) -> list[tuple[object, ...]]:
    return [(ref.source, ledger.digests[ref.source], ref.shard, ref.row) for ref in ledger.order.batch(batch)]


def _source(source: str, a: Ledger, b: Ledger, artifacts: dict[str, Artifact]) -> dict[str, Any]:
    sides = [_side(ledger, source, artifacts) for ledger in (a, b)]
    both = len(np.intersect1d(sides[0], sides[1], assume_unique=True))
    return {
        "rows": {"a": _rows(a, source), "b": _rows(b, source)},
        "tokens": {"a": a.tokens.get(source, 0), "b": b.tokens.get(source, 0)},
        "documents": {"only_a": len(sides[0]) - both, "only_b": len(sides[1]) - both, "both": both},
        "same_tokens_artifact": a.digests.get(source) == b.digests.get(source),
    }


def _rows(ledger: Ledger, source: str) -> int:
    return ledger.rows.get(source, 0)


def _side(ledger: Ledger, source: str, artifacts: dict[str, Artifact]) -> np.ndarray:
    """Hashes of the documents of a source that a run has consumed any row of, sorted: uint64."""
    if not _rows(ledger, source):
        return np.empty(0, np.uint64)
    made = artifacts.get(ledger.digests[source])
    if made is None:
        raise InputError(
            f"the token artifact of {source} is not in this store", "copy it there, or make it again", ledger.digests[source]
        )
    index = index_of(made)

    def of_shard(numbered: tuple[int, np.ndarray]) -> np.ndarray:
        shard, counts = numbered
        if not counts.any():
            return np.empty(0, np.uint64)
        ids = rows_with(documents_in(made, index, shard), counts > 0).unique().to_pylist()
        return np.fromiter((_hash(id_) for id_ in ids), np.uint64, len(ids))

    with ThreadPoolExecutor(THREADS) as pool:
        return np.unique(np.concatenate(list(pool.map(of_shard, enumerate(consumed(ledger, source))))))


def _hash(id_: str) -> int:
    return int.from_bytes(hashlib.blake2b(id_.encode(), digest_size=8).digest(), "little")
