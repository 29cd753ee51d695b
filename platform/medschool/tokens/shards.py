"""The stored form of packed rows: Arrow IPC files that any Arrow reader opens, and a small JSON index.

    index.json             row_tokens, dtype, eos_id, rows and tokens in all, [path, rows] of every shard
    shards/00000.arrow     tokens: fixed_size_list<uint16 or uint32>[row_tokens], trained: fixed_size_list<bool>[row_tokens],
                           doc_ids: list<string>, doc_lengths: list<int32>
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

from medschool import storage
from medschool.errors import InputError
from medschool.tokens.pack import Rows

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
    """Tokens left out behind the last full row of each packed part."""
    heldout_documents: int
    heldout_tokens: int

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


def ipc_bytes(table: pa.Table) -> bytes:
    """One Arrow IPC file."""
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=BATCH_ROWS)
    return sink.getvalue()


def read_rows(uri: str, rows: list[int]) -> pa.Table:
    """The given rows of a shard, in the given order, fetching only the record batches that hold them.

    Raises InputError when the shard is missing or not a whole Arrow file, StorageError when the store fails, IndexError when a
    row is out of range.
    """
    batches = _batches(uri, sorted({row // BATCH_ROWS for row in rows}))
    parts = [batches[row // BATCH_ROWS].slice(row % BATCH_ROWS, 1) for row in rows]
    if any(part.num_rows != 1 for part in parts):
        raise IndexError(f"{uri}: a row of {rows} is out of range")
    return pa.Table.from_batches(parts)


@storage.guard
def _batches(uri: str, numbers: list[int]) -> dict[int, pa.RecordBatch]:
    try:
        reader = _reader(uri)
        return {number: reader.get_batch(number) for number in numbers}
    except (pa.ArrowException, OSError) as error:
        if not _is_damage(error):
            raise
        raise InputError(
            f"not a whole shard ({error})", "run the tokens stage again under a new seed, or restore the object", uri
        ) from error


def _is_damage(error: Exception) -> bool:
    """Whether the bytes are wrong, rather than the store: Arrow's own OSError is a plain one without errno."""
    return isinstance(error, pa.ArrowException | FileNotFoundError) or (type(error) is OSError and error.errno is None)


def read_table(uri: str) -> pa.Table:
    """A whole Arrow file."""
    return pa.ipc.open_file(pa.BufferReader(storage.read_bytes(uri))).read_all()


@functools.lru_cache(maxsize=64)
def _reader(uri: str) -> pa.ipc.RecordBatchFileReader:
    return pa.ipc.open_file(storage.filesystem(uri).open(uri, "rb", cache_type="readahead", block_size=2**18))


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
