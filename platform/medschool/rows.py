"""The rows that travel between stages: one document, and one thing that was dropped.

Stages exchange Parquet files with exactly these columns, so any reader (pyarrow, DuckDB, pandas) can check them.
"""

from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class Document:
    """One text with its provenance. `sha256` is of the UTF-8 text as cleaned; it is filled in by the clean step."""

    id: str
    """Unique in the source, stable between runs: `pmid:10704411`, `HP:0000003`."""
    source: str
    """The recipe's name of the source: `papers`, `books`, `general`."""
    text: str
    title: str
    licence: str
    """Lower-case licence group: `cc-by`, `cc-by-nc`, `public-domain`, `publisher-copyright`, `unstated`..."""
    year: int | None
    """Year of publication, None where the input states none."""
    article_type: str
    """`abstract`, `research-article`, `definition`, `prose`..."""
    uri: str
    """The raw file it came from."""
    sha256: str = ""


DOCUMENT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("text", pa.large_string()),
        ("title", pa.string()),
        ("licence", pa.string()),
        ("year", pa.int32()),
        ("article_type", pa.string()),
        ("uri", pa.string()),
        ("sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class Dropped:
    """Something that did not become a document, and why. Nothing is dropped without one of these."""

    id: str
    """Document id, or the raw file's name and position where there is none."""
    source: str
    step: str
    """The step that dropped it: `parse`, `licence`, `too_short`, `duplicate`..."""
    reason: str
    """One sentence with the value that decided."""
    sample: str
    """The first 200 characters of what was dropped."""
    uri: str


DROPPED_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "source", "step", "reason", "sample", "uri")])


def table(rows: list[Document] | list[Dropped], schema: pa.Schema) -> pa.Table:
    """Arrow table of `rows` with exactly `schema`."""
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for row in rows:
        for name, value in asdict(row).items():
            columns[name].append(value)
    return pa.table(columns, schema=schema)
