"""The files that records of conversations come in: JSON, Parquet, and the Arrow files of a Hugging Face dataset.

    json       a JSON array of objects, or JSON lines; the first character tells which
    parquet    Parquet
    datasets   the `*.arrow` files of `datasets.save_to_disk`

Each record is an Entry with its number in the file, counted from 1. A record that cannot be read is dropped as `malformed`, and
the next one is read as if nothing had been; a file that breaks off raises InputError.

Memory: one record of at most 16 MiB, or one batch of rows (medschool.corpus.tabular). Price: 60 MB of JSON a second and core.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, TypeAlias, cast

import pyarrow as pa

from medschool.corpus.jsonlines import BYTE_ORDER_MARK, LINE_BYTES, Malformed, json_object, records, sample_of
from medschool.corpus.jsonstream import array_items
from medschool.corpus.spool import seekable
from medschool.corpus.tabular import arrow_batches, parquet_batches, positions
from medschool.errors import InputError
from medschool.rows import Dropped

SAMPLE_CHARS = 200


@dataclass(frozen=True)
class Entry:
    """One record."""

    number: int
    """Of the line, the element or the row, counted from 1."""
    place: str
    """The same in words, for people: `line 3`."""
    values: dict[str, Any]
    sample: str


Container: TypeAlias = Callable[[BinaryIO, str, str, tuple[str, ...], tuple[str, ...]], Iterator[Entry | Dropped]]
"""(stream, uri, name of the set, columns, needs) -> records; `needs` are columns of which a table must have one."""


def from_json(
    stream: BinaryIO, uri: str, name: str, columns: tuple[str, ...], needs: tuple[str, ...]
) -> Iterator[Entry | Dropped]:
    """Every object of an array or of lines. Raises InputError where the file is empty or, as an array, not whole."""
    file = io.BufferedReader(cast(io.RawIOBase, stream))
    if file.peek(64).removeprefix(BYTE_ORDER_MARK).lstrip()[:1] == b"[":
        yield from _elements(file, uri, name)
        return
    for record in records(file, uri, name):
        yield record if isinstance(record, Dropped) else Entry(record.line, f"line {record.line}", record.values, record.sample)


def _elements(stream: BinaryIO, uri: str, name: str) -> Iterator[Entry | Dropped]:
    for number, text in enumerate(array_items(stream, uri), start=1):
        place = f"element {number}"
        try:
            if len(text) > LINE_BYTES:
                raise Malformed(f"longer than {LINE_BYTES} bytes")
            yield Entry(number, place, json_object(text), sample_of(text))
        except Malformed as error:
            yield Dropped(f"{uri}:{number}", name, "malformed", f"{place}: {error}", sample_of(text), uri)


def from_parquet(
    stream: BinaryIO, uri: str, name: str, columns: tuple[str, ...], needs: tuple[str, ...]
) -> Iterator[Entry | Dropped]:
    """Every row, with those of `columns` that there are. Raises InputError where the file is damaged or has none of `needs`."""
    with seekable(stream) as file:
        yield from _rows(partial(parquet_batches, file, partial(_known, uri, columns, needs)), uri, name)


def from_datasets(
    stream: BinaryIO, uri: str, name: str, columns: tuple[str, ...], needs: tuple[str, ...]
) -> Iterator[Entry | Dropped]:
    """As `from_parquet`, of an Arrow stream."""
    yield from _rows(partial(arrow_batches, stream, partial(_known, uri, columns, needs)), uri, name)


def _known(uri: str, columns: tuple[str, ...], needs: tuple[str, ...], schema: pa.Schema) -> list[str]:
    if not set(needs) & set(schema.names):
        problem = f"has no column `{'` or `'.join(needs)}`, but {', '.join(schema.names)[:200]}"
        raise InputError(problem, "rename the column that holds it, or check the `format` of this file in the recipe", uri)
    found = [column for column in columns if column in schema.names]
    for column in found:
        if schema.names.count(column) > 1:
            raise InputError(f"has two columns `{column}`", "drop one of them", uri)
    return found


def _rows(batches: Callable[[], Iterator[pa.RecordBatch]], uri: str, name: str) -> Iterator[Entry | Dropped]:
    for position, batch, index in positions(batches, uri):
        number = position + 1
        place = f"row {number}"
        try:
            values = {column: batch.column(column)[index].as_py() for column in batch.schema.names}
            yield Entry(number, place, values, str(values)[:SAMPLE_CHARS])
        except (UnicodeError, ValueError) as error:
            yield Dropped(f"{uri}:{number}", name, "malformed", f"{place}: {error}", "", uri)


CONTAINERS: dict[str, Container] = {"json": from_json, "parquet": from_parquet, "datasets": from_datasets}
