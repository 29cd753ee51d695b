"""Texts in columns: Parquet files, and the Arrow files of a Hugging Face dataset that was saved to disk.

    column        holds                                     where it is missing or null
    text          the text; required                        the row is dropped as `no_text`
    id            a text or a number, unique in the source  `<file>:<row>`
    title         a text                                    empty
    licence       the licence, also as `license`            `unstated`
    year          a number, or a text with one in it       None
    article_type  a text                                    `text`
    language      a code of ISO 639                         empty

All other columns stay unread. `datasets` names the `*.arrow` files of `save_to_disk`: the folder's state.json and
dataset_info.json say nothing that these do not say themselves.

Memory: Parquet one batch of BATCH_ROWS rows and one page of each column; Arrow one record batch, 1,000 rows as `datasets` writes
them. A Parquet file that is not seekable (packed, or in an archive) is copied to the disk first.
Price: 70,000 rows a second and core.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from medschool.corpus.spool import seekable
from medschool.corpus.stated import licence_of, words_of, year_of
from medschool.errors import InputError, MedschoolError
from medschool.rows import Draft, Dropped

BATCH_ROWS = 512
SAMPLE_CHARS = 200
COLUMNS = ("text", "id", "title", "licence", "license", "year", "article_type", "language")
END_MARK = b"\xff\xff\xff\xff\0\0\0\0"
"""Last eight bytes of an Arrow stream that was closed."""


def parquet(stream: BinaryIO, uri: str, source: str) -> Iterator[Draft | Dropped]:
    """One row a row. Raises InputError when the file is damaged, or has no column `text` of texts."""
    with seekable(stream) as file:
        for position, batch, index in positions(partial(parquet_batches, file, partial(_columns, uri=uri)), uri):
            yield _row(batch, index, position, uri, source)


def datasets(stream: BinaryIO, uri: str, source: str) -> Iterator[Draft | Dropped]:
    """One row a row of an Arrow stream. Raises InputError when it is damaged or not closed, or has no column `text` of texts."""
    for position, batch, index in positions(partial(arrow_batches, stream, partial(_columns, uri=uri)), uri):
        yield _row(batch, index, position, uri, source)


def parquet_batches(stream: BinaryIO, columns_of: Callable[[pa.Schema], list[str]]) -> Iterator[pa.RecordBatch]:
    """The columns that `columns_of` names, BATCH_ROWS rows at a time. The stream must be seekable."""
    file = pq.ParquetFile(pa.PythonFile(stream, mode="r"), pre_buffer=False, buffer_size=2**20)
    columns = columns_of(file.schema_arrow)
    yield from file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False)


def arrow_batches(stream: BinaryIO, columns_of: Callable[[pa.Schema], list[str]]) -> Iterator[pa.RecordBatch]:
    """The columns that `columns_of` names, of an Arrow stream that was closed; a record batch at a time."""
    tail = _Tail(stream)
    reader = pa.ipc.open_stream(pa.PythonFile(tail, mode="r"))
    columns = columns_of(reader.schema)
    for batch in reader:
        batch.validate(full=True)
        yield batch.select(columns)
    if tail.last != END_MARK:
        raise pa.ArrowInvalid("it ends without the end mark of a stream that was closed")


def _columns(schema: pa.Schema, uri: str) -> list[str]:
    """The columns to read. Raises InputError where there is no text, or one name stands for two columns."""
    names = [name for name in COLUMNS if name in schema.names]
    if "text" not in names:
        raise InputError(f"has no column `text`, but {', '.join(schema.names)[:200]}", "rename the column that holds it", uri)
    for name in names:
        if schema.names.count(name) > 1:
            raise InputError(f"has two columns `{name}`", "drop one of them", uri)
    kind = schema.field("text").type
    if not _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
        raise InputError(f"its column `text` holds {kind}, not texts", "write the texts as strings", uri)
    return names


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def positions(batches: Callable[[], Iterator[pa.RecordBatch]], uri: str) -> Iterator[tuple[int, pa.RecordBatch, int]]:
    """(position in the file from 0, batch, index in the batch) of every row. Raises InputError where the file is damaged."""
    position = 0
    try:
        for batch in batches():
            for index in range(batch.num_rows):
                yield position, batch, index
                position += 1
    except MedschoolError:
        raise
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        problem = f"cannot be read after row {position} ({' '.join(str(error).split())[:300]})"
        raise InputError(problem, "fetch the file again, or check this source's `format`", uri) from error


def _row(batch: pa.RecordBatch, index: int, position: int, uri: str, source: str) -> Draft | Dropped:
    """position: of the row in the file, counted from 0."""
    place = f"{PurePosixPath(uri).with_suffix('')}:{position:07}"
    try:
        values: dict[str, Any] = {name: batch.column(name)[index].as_py() for name in batch.schema.names}
        text = values["text"] or ""
        text.encode()
    except (UnicodeError, ValueError) as error:
        return Dropped(place, source, "malformed", f"row {position}: {error}", "", uri)
    row_id, title = words_of(values, "id") or place, words_of(values, "title")
    if not text.strip():
        return Dropped(row_id, source, "no_text", "the text is empty", title[:SAMPLE_CHARS], uri)
    licence, year = licence_of(words_of(values, "licence", "license")), year_of(words_of(values, "year"))
    kind, language = words_of(values, "article_type") or "text", words_of(values, "language")
    return Draft(row_id, source, text, title, licence, year, kind, uri, (), language)


class _Tail:
    """A stream that remembers the last bytes read from it."""

    closed = False

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.last = stream, b""

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.last = (self.last + data[-len(END_MARK) :])[-len(END_MARK) :]
        return data
