"""The table of documents that hold an exam item: how it is made of texts, stored, and read again. The writer and the reader are
this file.
"""

from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medschool import s3, storage
from medschool.artifact import Artifact
from medschool.errors import InputError
from medschool.exams.overlap import ExamIndex

OVERLAP = "overlap.parquet"
REMOVED = "exam_items.parquet"
"""The same table beside a set of instructions: the conversations that hold an item, which are not in the set."""
OVERLAP_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # of the document, or of the conversation
        ("exam", pa.string()),
        ("item", pa.string()),
        ("share", pa.float64()),  # of the item's words that the document has, 0.5 to 1
        ("hits", pa.int32()),  # places in the document that made the item a candidate
    ]
)
READ_DOCUMENTS = 64
"""Documents in memory at once."""


def search(documents: Iterable[tuple[str, str]], index: ExamIndex) -> pa.Table:
    """Table of OVERLAP_SCHEMA: every item that any of the `documents` (id, text) holds, in their order."""
    found = [
        {"id": id_, "exam": hit.exam, "item": hit.item, "share": hit.share, "hits": hit.hits}
        for id_, text in documents
        for hit in index.find_all(text)
    ]
    return pa.Table.from_pylist(found, schema=OVERLAP_SCHEMA)


@s3.guard
def search_file(uri: str, index: ExamIndex) -> tuple[pa.Table, int]:
    """The overlap of a Parquet file of documents, and the number of documents in it. Raises InputError when it is damaged."""
    with s3.filesystem(uri).open(uri, "rb") as stream:
        try:
            file = pq.ParquetFile(stream)
            return search(_documents(file), index), file.metadata.num_rows
        except pa.ArrowException as error:
            raise InputError(
                f"not a whole Parquet file ({error})", "run the corpus stage again, or restore the object", uri
            ) from error


def _documents(file: pq.ParquetFile) -> Iterator[tuple[str, str]]:
    for batch in file.iter_batches(READ_DOCUMENTS, columns=["id", "text"]):
        yield from zip(batch.column("id").to_pylist(), batch.column("text").to_pylist(), strict=True)


def counts(found: pa.Table, items: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """For each exam its items, of which there are so many, how many of them were found, and in how many documents."""
    return {exam: _of_exam(found.filter(pc.equal(found.column("exam"), exam)), items[exam]) for exam in sorted(items)}


def _of_exam(found: pa.Table, items: int) -> dict[str, int]:
    return {"items": items, "found": len(found.column("item").unique()), "documents": len(found.column("id").unique())}


def read_overlap(made: Artifact, path: str = OVERLAP) -> pa.Table:
    """The table of a finished overlap stage, or with the path REMOVED that of a set of instructions."""
    return storage.read_parquet(made.uri(path))
