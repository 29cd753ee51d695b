"""The stored form of packed rows: Arrow IPC files that any Arrow reader opens, and a small JSON index.

    index.json             row_tokens, dtype, eos_id, rows and tokens in all, [path, rows] of every shard
    shards/00000.arrow     tokens: fixed_size_list<uint16 or uint32>[row_tokens], trained: fixed_size_list<bool>[row_tokens],
                           doc_ids: list<string>, doc_lengths: list<int32>
    where/00000.parquet    id: string, row: int32          which documents stand in which rows of that shard
    heldout.arrow          id: string, tokens: list<uint16 or uint32>          whole documents that training never sees

Shards are uncompressed (token ids hardly compress) and cut into record batches of BATCH_ROWS rows, so that a few rows are read
with one range request. The writer and the reader are this file.
"""

import functools
import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medschool import storage
from medschool.errors import InputError
from medschool.tokens.kept import local_shard
from medschool.tokens.pack import PADDING, Rows

BATCH_ROWS = 256
INDEX, HELDOUT = "index.json", "heldout.arrow"


@dataclass(frozen=True)
class Index:
    """What a token artifact holds."""

    row_tokens: int
    dtype: str
    eos_id: int
    shards: tuple[tuple[str, int], ...]
    """(path in the artifact, rows)."""
    documents: int
    tail_tokens: int
    """Tokens left out: behind the last full row of each packed portion, or outside of the windows."""
    heldout_documents: int
    heldout_tokens: int
    padding_tokens: int = 0
    """Tokens of the rows that stand for nothing and are not trained on."""

    @property
    def shard_rows(self) -> tuple[int, ...]:
        return tuple(rows for _, rows in self.shards)

    @property
    def rows(self) -> int:
        return sum(self.shard_rows)

    @property
    def tokens(self) -> int:
        return self.rows * self.row_tokens


def index_bytes(index: Index) -> bytes:
    return json.dumps(asdict(index), indent=1).encode()


def parse_index(data: bytes) -> Index:
    raw = json.loads(data)
    return Index(**{**raw, "shards": tuple((path, rows) for path, rows in raw["shards"])})


def rows_schema(row_tokens: int, dtype: str) -> pa.Schema:
    return pa.schema(
        [
            ("tokens", pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), row_tokens)),
            ("trained", pa.list_(pa.bool_(), row_tokens)),
            ("doc_ids", pa.list_(pa.string())),
            ("doc_lengths", pa.list_(pa.int32())),
        ]
    )


def rows_table(rows: Rows, dtype: np.dtype[Any]) -> pa.Table:
    """Packed rows as an Arrow table of `rows_schema`."""
    row_tokens = rows.tokens.shape[1]
    tokens, trained = (
        pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), row_tokens) for values in (rows.tokens, rows.trained)
    )
    return pa.table([tokens, trained, rows.doc_ids, rows.doc_lengths], schema=rows_schema(row_tokens, dtype.name))


def shard_path(number: int) -> str:
    return f"shards/{number:05}.arrow"


def where_path(number: int) -> str:
    return f"where/{number:05}.parquet"


def where_table(shard: pa.Table) -> pa.Table:
    """Table (id, row) of a shard, one line for each piece of a document in a row, in the order of the rows; without padding."""
    pieces = shard.column("doc_ids")
    rows = np.repeat(np.arange(shard.num_rows, dtype=np.int32), pc.list_value_length(pieces).to_numpy())
    found = pa.table({"id": pc.list_flatten(pieces), "row": pa.array(rows)})
    return found.filter(pc.not_equal(found.column("id"), PADDING)).combine_chunks()


def ipc_bytes(table: pa.Table) -> bytes:
    """One Arrow IPC file."""
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=BATCH_ROWS)
    return sink.getvalue()


def read_rows(uri: str, rows: list[int], sha256: str | None = None) -> pa.Table:
    """The given rows of a shard, in the given order. The shard is fetched whole, once a node (see tokens.kept).

    Raises InputError when the shard is missing, not a whole Arrow file, or another one than `sha256` names; StorageError when
    the store fails, IndexError when a row is out of range.
    """
    shard = _shard(uri, sha256)
    if rows and not 0 <= min(rows) <= max(rows) < shard.num_rows:
        raise IndexError(f"{uri}: a row of {rows} is out of range")
    return shard.take(pa.array(rows, pa.int32()))


@functools.lru_cache(maxsize=16)
def _shard(uri: str, sha256: str | None) -> pa.Table:
    """A shard, mapped: its memory is the page cache of its file."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(local_shard(uri, sha256)))).read_all().combine_chunks()
    except (pa.ArrowException, FileNotFoundError) as error:
        raise InputError(
            f"not a whole shard ({error})", "run the tokens stage again under a new seed, or restore the object", uri
        ) from error


def read_table(uri: str) -> pa.Table:
    """A whole Arrow file. Raises InputError when it is none."""
    data = storage.read_bytes(uri)
    try:
        return pa.ipc.open_file(pa.BufferReader(data)).read_all()
    except pa.ArrowException as error:
        raise InputError(f"not a whole Arrow file ({error})", "make it again, or restore the object", uri) from error


def tokens_of(table: pa.Table) -> np.ndarray:
    """The tokens column as an array of shape (rows, row_tokens)."""
    return _matrix(table, "tokens")


def trained_of(table: pa.Table) -> np.ndarray:
    """The trained column as a bool array of shape (rows, row_tokens)."""
    return _matrix(table, "trained")


def _matrix(table: pa.Table, name: str) -> np.ndarray:
    """A column of lists of equal length as an array, without copying where the table is one chunk and the type allows."""
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    flat: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)
