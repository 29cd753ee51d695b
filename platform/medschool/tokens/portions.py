"""A corpus cut into pieces of work of about equal size, whatever the size of its files.

    documents/*.parquet --row groups, in order--> portion 0 | portion 1 | ...        one task each

A portion holds whole row groups: many small files share one, a large file has many. Its size is PORTION_BYTES of text, or one
MOST_PORTIONS-th of the corpus where that is more, so that the second pass of the tokens stage never reads more than so many
pieces for each shard. The cut depends on the files alone, because it decides where rows end.

Memory of a task: the text of one portion as Arrow (one row group at least), and ENCODE_BYTES of it as strings and encodings.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medschool import s3, storage
from medschool.errors import InputError

T = TypeVar("T")

PORTION_BYTES = 16 * 2**20
MOST_PORTIONS = 2048
ENCODE_BYTES = 2**20
"""Text given to the tokenizer at once; an encoding takes some 100 bytes a token while it lives."""

Portion = list[tuple[str, list[int]]]
"""(URI of a Parquet file, its row groups), in order; plain JSON values."""


def cut_portions(uris: list[str]) -> list[Portion]:
    """The portions of these Parquet files, in order. Raises InputError for a file that is not whole."""
    with ThreadPoolExecutor(storage.COPY_THREADS) as pool:
        sizes = list(pool.map(_group_bytes, uris))
    most = max(PORTION_BYTES, sum(map(sum, sizes)) // MOST_PORTIONS)
    portions: list[Portion] = []
    room = 0
    for uri, groups in zip(uris, sizes, strict=True):
        for number, size in enumerate(groups):
            if room <= 0:
                portions.append([])
                room = most
            if not portions[-1] or portions[-1][-1][0] != uri:
                portions[-1].append((uri, []))
            portions[-1][-1][1].append(number)
            room -= size
    return portions


def read_portion(portion: Portion, left_out: pa.Array) -> Iterator[tuple[list[str], list[str]]]:
    """(ids, texts) of the documents of a portion whose id is not in `left_out`, ENCODE_BYTES of text at a time, in order."""
    for uri, groups in portion:
        documents = _row_groups(uri, groups)
        documents = documents.filter(pc.invert(pc.is_in(documents.column("id"), left_out)))
        ends = np.cumsum(pc.binary_length(documents.column("text")).to_numpy())
        start = 0
        while start < len(ends):
            read = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, read + ENCODE_BYTES, side="right")))
            part = documents.slice(start, stop - start)
            yield part.column("id").to_pylist(), part.column("text").to_pylist()
            start = stop


def sample(portions: list[Portion], most_chars: int) -> list[str]:
    """Texts from the beginning, the middle and the end of the corpus, `most_chars` characters at most."""
    nothing = pa.array([], pa.string())
    picked = sorted({0, len(portions) // 2, len(portions) - 1}) if portions else []
    texts: list[str] = []
    for number in picked:
        room = most_chars // len(picked)
        for text in next((texts for _, texts in read_portion(portions[number], nothing)), []):
            if len(text) > room:
                break
            texts.append(text)
            room -= len(text)
    return texts


def _group_bytes(uri: str) -> list[int]:
    """Bytes of text in each row group of a file, not compressed."""
    sizes: list[int] = open_parquet(uri, _text_bytes)
    return sizes


def _text_bytes(file: pq.ParquetFile) -> list[int]:
    column = file.schema_arrow.names.index("text")
    groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
    return [int(group.column(column).total_uncompressed_size) for group in groups]


def _row_groups(uri: str, groups: list[int]) -> pa.Table:
    return open_parquet(uri, lambda file: file.read_row_groups(groups, columns=["id", "text"]))


@s3.guard
def open_parquet(uri: str, read: Callable[[pq.ParquetFile], T]) -> T:
    """`read` of an open Parquet file, of which only the needed ranges are fetched."""
    with s3.filesystem(uri).open(uri, "rb", cache_type="none") as stream:
        try:
            return read(pq.ParquetFile(stream))
        except pa.ArrowException as error:
            raise InputError(
                f"not a whole Parquet file ({error})", "run the corpus stage again, or restore the object", uri
            ) from error
