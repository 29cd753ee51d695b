"""The block that one rank receives of one global batch, read from the stored shards.

A global batch of B rows is dealt to W ranks as W equal slices of ceil(B / W) rows; where W does not divide B the last slices are
filled with rows of weight 0, which the loss ignores. So every world size trains on the same global batches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from medschool import s3
from medschool.artifact import Artifact
from medschool.tokens.kept import fetch_soon
from medschool.tokens.order import Order, RowRef
from medschool.tokens.pack import Rows
from medschool.tokens.shards import Index, read_rows, rows_table

PLACE = ("global_index", "weight", "source", "shard", "row")


@dataclass(frozen=True)
class Feed:
    """Everything needed to read any block of a run."""

    order: Order
    shard_uris: dict[str, tuple[str, ...]]
    """URIs of the shards of each source, in index order."""
    row_tokens: int
    dtype: str
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Of the shards, by URI: what is fetched from a store is compared with it."""


def feed_of(order: Order, rows: Mapping[str, tuple[Artifact, Index]]) -> Feed:
    """The feed of a run over stored token artifacts, one for every source of the order."""
    made = {name: rows[name] for name in order.sources}
    uris = {name: tuple(artifact.uri(path) for path, _ in index.shards) for name, (artifact, index) in made.items()}
    sha256 = {artifact.uri(file.path): file.sha256 for artifact, _ in made.values() for file in artifact.files}
    shards = {uri: sha256[uri] for some in uris.values() for uri in some}
    first = next(iter(made.values()))[1]
    return Feed(order, uris, first.row_tokens, first.dtype, shards)


def rank_rows(batch_rows: int, world_size: int) -> int:
    """Rows of one rank in every batch, padding included."""
    return -(-batch_rows // world_size)


def rank_slice(order: Order, batch: int, rank: int, world_size: int) -> list[RowRef]:
    """The real rows of one rank in one batch; shorter than rank_rows on the ranks that are padded."""
    per_rank = rank_rows(order.batch_rows, world_size)
    return order.batch(batch)[rank * per_rank : (rank + 1) * per_rank]


def read_block(feed: Feed, batch: int, rank: int, world_size: int) -> pa.Table:
    """Arrow table of rank_rows(...) rows: the stored columns plus PLACE. Padding has global_index -1 and weight 0."""
    refs = rank_slice(feed.order, batch, rank, world_size)
    missing = rank_rows(feed.order.batch_rows, world_size) - len(refs)
    rows = pa.concat_tables([_stored(feed, refs), _padding(feed, missing)]) if missing else _stored(feed, refs)
    place = pa.table(
        {
            "global_index": pa.array([ref.global_index for ref in refs] + [-1] * missing, pa.int64()),
            "weight": pa.array([1.0] * len(refs) + [0.0] * missing, pa.float32()),
            "source": pa.array([ref.source for ref in refs] + [""] * missing, pa.string()),
            "shard": pa.array([ref.shard for ref in refs] + [-1] * missing, pa.int32()),
            "row": pa.array([ref.row for ref in refs] + [-1] * missing, pa.int32()),
        }
    )
    for name in PLACE:
        rows = rows.append_column(name, place.column(name))
    return rows


def fetch_shards_of(feed: Feed, batch: int) -> None:
    """Have the shards of a batch to come fetched to this node while others are read; those on local disk are there."""
    if not s3.is_s3(next(iter(feed.shard_uris.values()))[0]):
        return
    for source, shard in sorted({(ref.source, ref.shard) for ref in feed.order.batch(batch)}):
        uri = feed.shard_uris[source][shard]
        fetch_soon(uri, feed.sha256.get(uri))


def _stored(feed: Feed, refs: list[RowRef]) -> pa.Table:
    """The stored rows in the order of `refs`, each shard opened once."""
    by_shard: dict[tuple[str, int], list[int]] = {}
    for index, ref in enumerate(refs):
        by_shard.setdefault((ref.source, ref.shard), []).append(index)
    tables, origin = [_padding(feed, 0)], []
    for (source, shard), indices in by_shard.items():
        uri = feed.shard_uris[source][shard]
        tables.append(read_rows(uri, [refs[index].row for index in indices], feed.sha256.get(uri)))
        origin += indices
    return pa.concat_tables(tables).take(np.argsort(origin, kind="stable"))


def _padding(feed: Feed, rows: int) -> pa.Table:
    """Rows of zeros that carry no weight."""
    shape = (rows, feed.row_tokens)
    empty = Rows(np.zeros(shape, feed.dtype), np.zeros(shape, bool), [[]] * rows, [[feed.row_tokens]] * rows, 0)
    return rows_table(empty, np.dtype(feed.dtype))
