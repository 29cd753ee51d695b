"""The rows of a run in the order in which training gets them, without training: what `medschool tokens order` prints.

Each row is read by `read_block`, the function that the stream into Ray Train calls for every (batch, rank). So what is listed is
what would be fed, with the sha256 of the row's tokens as they are stored. One block is in memory at a time.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medschool.tokens.shards import tokens_of
from medschool.tokens.stream import Feed, read_block


@dataclass(frozen=True)
class Listed:
    """One row as one rank would be fed it."""

    step: int
    """Optimizer step (from 1) of a run that skips no batch."""
    index: int
    """Global index of the row: batch * batch_rows + slot."""
    rank: int
    source: str
    shard: int
    row: int
    sha256: str
    """Of the row's tokens as little-endian integers of the stored type."""
    documents: tuple[str, ...]
    """Ids of the documents in the row, in order; a row of conversations may end in padding, which has none."""


def rows_of_steps(feed: Feed, from_step: int, steps: int, world_size: int) -> Iterator[Listed]:
    """The rows of optimizer steps from_step .. from_step + steps - 1 for so many ranks, step by step and rank by rank."""
    for step in range(from_step, from_step + steps):
        for rank in range(world_size):
            yield from _rows_of_block(feed, step, rank, world_size)


def _rows_of_block(feed: Feed, step: int, rank: int, world_size: int) -> Iterator[Listed]:
    block = read_block(feed, step - 1, rank, world_size)
    stored = np.dtype(feed.dtype).newbyteorder("<")
    places = block.select(["global_index", "weight", "source", "shard", "row", "doc_ids"]).to_pylist()
    for place, tokens in zip(places, tokens_of(block), strict=True):
        if place["weight"]:
            digest = hashlib.sha256(tokens.astype(stored).tobytes()).hexdigest()
            documents = tuple(id_ for id_ in place["doc_ids"] if id_)
            where = (place["global_index"], rank, place["source"], place["shard"], place["row"])
            yield Listed(step, *where, digest, documents)
