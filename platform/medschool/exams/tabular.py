"""Exam files in tables: Parquet, and the Arrow files that `datasets` writes, turned into the JSON lines that the readers take.

The whole table is in memory, as every exam is: MedMCQA, the largest, is 200 MB as text.
"""

import io
import json
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from medschool.errors import InputError

SUFFIXES = (".parquet", ".arrow")


def as_lines(data: bytes, uri: str) -> bytes:
    """The rows of a table as JSON lines, in its order; data of any other file as it is. Raises InputError for a damaged table."""
    suffix = PurePosixPath(uri).suffix
    if suffix not in SUFFIXES:
        return data
    try:
        table = pq.read_table(io.BytesIO(data)) if suffix == ".parquet" else pa.ipc.open_stream(data).read_all()
        return "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        raise InputError(f"not a readable {suffix[1:]} file ({error})", "fetch the file again", uri) from error
