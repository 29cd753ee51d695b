"""Streams as readers need them: as bytes where a format is small, seekable where it has its index at the end.

Raw files come as streams, because a shard of papers has more bytes than a worker has memory. Some formats cannot be read that
way: an ontology refers forwards, a Parquet file begins at its end. The first are read whole up to a limit, the second are copied
to the disk when they come from an archive or unpacked from gzip.
"""

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from medschool.errors import InputError

WHOLE_BYTES = 256 * 2**20
"""Largest file that is read as one piece; the largest of its kind, the ICD-10-CM tabular list, has 9 MiB."""
COPY_BYTES = 2**20


def whole(stream: BinaryIO, uri: str, limit_bytes: int = WHOLE_BYTES) -> bytes:
    """All bytes of a stream. Raises InputError at `uri` when there are more than `limit_bytes`."""
    data = stream.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        problem = f"more than {limit_bytes} bytes, unpacked; files of this format are read in one piece"
        raise InputError(problem, "divide the file, or check the `format` of this source in the recipe", uri)
    return data


@contextmanager
def seekable(stream: BinaryIO) -> Iterator[BinaryIO]:
    """`stream` itself where it can be seeked in, else a copy of it on the disk that goes away in the end."""
    if stream.seekable():
        yield stream
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy, COPY_BYTES)
        copy.seek(io.SEEK_SET)
        yield copy


@contextmanager
def on_disk(stream: BinaryIO, suffix: str) -> Iterator[Path]:
    """A copy of `stream` as a file on the disk, for libraries that hide the errors of a stream they read from."""
    with tempfile.NamedTemporaryFile(suffix=suffix) as copy:
        shutil.copyfileobj(stream, copy, COPY_BYTES)
        copy.flush()
        yield Path(copy.name)
