"""A finished token artifact asked for documents: in which rows one stands, and how many tokens of it.

    where/NNNNN.parquet: id -> rows of that shard          shards/NNNNN.arrow: row -> its pieces and their lengths

Prices. `pieces_of` reads the where/ table of every shard once, THREADS at a time, and keeps only what it looks for: about 100 kB
a shard of 4096 rows of 2048 tokens, 1 GB for 75 billion tokens, some minutes; one document costs as much as thousands. Of a shard
that holds any it then reads the two columns of pieces, never the tokens. `documents_in` is one where/ table. Nothing here holds
more than THREADS tables and what was found.
"""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medschool import s3, storage
from medschool.artifact import Artifact
from medschool.errors import InputError
from medschool.tokens.shards import BATCH_ROWS, HELDOUT, INDEX, Index, parse_index, read_table, where_path

THREADS = storage.COPY_THREADS


@dataclass(frozen=True, order=True)
class Piece:
    """A part of a document in one row. A document that is longer than the room in a row has several, in other shards too."""

    shard: int
    row: int
    tokens: int
    """The end-of-document token included, where it stands in this row."""


def index_of(made: Artifact) -> Index:
    """The index of a token artifact."""
    return parse_index(storage.read_bytes(made.uri(INDEX)))


def heldout_ids(made: Artifact) -> set[str]:
    """Ids of the documents that were kept out of the rows, to measure."""
    return set(read_table(made.uri(HELDOUT)).column("id").to_pylist()) if _has(made, HELDOUT) else set()


def documents_in(made: Artifact, index: Index, shard: int) -> pa.Table:
    """Table (id, row) of one shard. Raises InputError for an artifact without where/ tables."""
    path = where_path(int(PurePosixPath(index.shards[shard][0]).stem))
    if not _has(made, path):
        raise InputError(
            f"has no {path}", "make the tokens stage again: it was made before rows told their documents", made.prefix_uri
        )
    return storage.read_parquet(made.uri(path), ["id", "row"])


def pieces_of(made: Artifact, index: Index, ids: Collection[str]) -> dict[str, list[Piece]]:
    """All pieces of each of the documents that stand in this artifact, in the order of shards and rows."""
    wanted, found = pa.array(sorted(ids), pa.string()), dict[str, list[Piece]]()

    def of_shard(shard: int) -> list[tuple[str, Piece]]:
        places = documents_in(made, index, shard)
        rows = places.filter(pc.is_in(places.column("id"), wanted)).column("row").unique().to_pylist()
        return _pieces(made.uri(index.shards[shard][0]), shard, sorted(rows), set(ids)) if rows else []

    with ThreadPoolExecutor(THREADS) as pool:
        for pieces in pool.map(of_shard, range(len(index.shards))):
            for id_, piece in pieces:
                found.setdefault(id_, []).append(piece)
    return found


@s3.guard
def _pieces(uri: str, shard: int, rows: list[int], ids: set[str]) -> list[tuple[str, Piece]]:
    """The pieces of some documents in some rows of a shard."""
    found = []
    with s3.filesystem(uri).open(uri, "rb") as file:
        schema = pa.ipc.open_file(file).schema
        fields = [schema.get_field_index(name) for name in ("doc_ids", "doc_lengths")]
        reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=fields))
        for number in sorted({row // BATCH_ROWS for row in rows}):
            batch = reader.get_batch(number)
            names, lengths = batch.column("doc_ids"), batch.column("doc_lengths")
            for row in (row for row in rows if row // BATCH_ROWS == number):
                inside = row % BATCH_ROWS
                pairs = zip(names[inside].as_py(), lengths[inside].as_py(), strict=True)
                found += [(id_, Piece(shard, row, length)) for id_, length in pairs if id_ in ids]
    return found


def rows_with(places: pa.Table, rows: np.ndarray) -> pa.ChunkedArray:
    """Ids in a table (id, row) that stand in a row for which `rows` (bool, by row) is true; with repeats."""
    return places.column("id").filter(pa.array(rows[places.column("row").to_numpy()]))


def _has(made: Artifact, path: str) -> bool:
    return any(file.path == path for file in made.files)
