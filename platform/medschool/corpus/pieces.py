"""Parquet files that are written and read a row group at a time, so that their size is no matter of memory.

A row group is written as soon as it has PIECE_ROWS rows or PIECE_BYTES bytes. The same calls give the same bytes.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from medschool.rows import Document, Dropped, table

PIECE_ROWS, PIECE_BYTES = 1000, 16 * 2**20


class Pieces:
    """A local Parquet file in the making: give it single rows, or tables no larger than a row group."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._schema = path, schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._rows: list[Document | Dropped] = []
        self._tables: list[pa.Table] = []
        self._count = self._bytes = 0

    def put(self, row: Document | Dropped) -> None:
        self._rows.append(row)
        self._grow(1, len(row.text) if isinstance(row, Document) else len(row.sample))

    def add(self, rows: pa.Table) -> None:
        self._gather()
        self._tables.append(rows)
        self._grow(rows.num_rows, rows.nbytes)

    def close(self) -> None:
        if self._count:
            self._flush()
        self._writer.close()

    def _grow(self, rows: int, size_bytes: int) -> None:
        self._count, self._bytes = self._count + rows, self._bytes + size_bytes
        if self._count >= PIECE_ROWS or self._bytes >= PIECE_BYTES:
            self._flush()

    def _gather(self) -> None:
        if self._rows:
            self._tables.append(table(self._rows, self._schema))
            self._rows = []

    def _flush(self) -> None:
        self._gather()
        self._writer.write_table(pa.concat_tables(self._tables).combine_chunks())
        self._tables, self._count, self._bytes = [], 0, 0


def pieces_in(path: Path) -> Iterator[pa.Table]:
    """The row groups of a local Parquet file, one in memory at a time."""
    with pq.ParquetFile(path) as file:
        yield from (file.read_row_group(number) for number in range(file.num_row_groups))
