"""Which rows are kept out of training because a document in them holds an exam question.

    overlap.parquet: documents, exams --where/*.parquet: document -> rows of a shard--> rows.parquet: shard int32, row int32

A row is withheld as a whole, and so is every row of such a document, those far from the question too: a chapter that quotes one
exam item goes. What stands beside it in its rows is not trained on either; the facts count the rows, so that the price is seen.
The table lies beside the tokens, which it does not change, and medschool.tokens.order never gives these rows.

rows.parquet holds nothing but places, so it is byte for byte the same as long as the same rows are withheld, whatever the exams
are called: then nothing that was trained without an exam must be trained again for it.

Price: nothing where no document overlaps; else one pass over the where/ tables, one in memory at a time, and 4 bytes a row.
"""

from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medschool import storage
from medschool.artifact import Artifact, Output, write_parquet
from medschool.overlap.search import read_overlap
from medschool.tokens.where import documents_in, index_of

ROWS = "rows.parquet"
ROWS_SCHEMA = pa.schema([("shard", pa.int32()), ("row", pa.int32())])


def make_withheld(tokens: Artifact, overlap: Artifact, prefix_uri: str) -> Output:
    """Write the rows of `tokens` that hold a document of `overlap`.

    The facts count `rows` and the `documents` that stand in them, and the same for each exam that was found. Raises InputError
    for a token artifact that does not tell where its documents are.
    """
    found = read_overlap(overlap)
    places = _places(tokens, found.column("id").unique())
    exams = sorted(found.column("exam").unique().to_pylist())
    by_exam = {exam: _counts(places, found.filter(pc.equal(found.column("exam"), exam)).column("id").unique()) for exam in exams}
    rows = places.select(["shard", "row"]).group_by(["shard", "row"]).aggregate([])
    rows = rows.sort_by([("shard", "ascending"), ("row", "ascending")]).cast(ROWS_SCHEMA)
    return Output((write_parquet(prefix_uri, ROWS, rows),), {**_counts(places, None), "exams": by_exam})


def read_withheld(made: Artifact) -> dict[int, tuple[int, ...]]:
    """Rows that are withheld, ascending, by shard; a shard without any is left out."""
    pairs = storage.read_parquet(made.uri(ROWS))
    places = zip(*(pairs.column(name).to_pylist() for name in ("shard", "row")), strict=True)
    return {shard: tuple(row for _, row in some) for shard, some in groupby(places, key=lambda place: place[0])}


def _places(tokens: Artifact, ids: pa.Array) -> pa.Table:
    """Table (id, row, shard) of all pieces of these documents; shards by their number in the index."""
    none = pa.table({"id": pa.array([], pa.string()), "row": pa.array([], pa.int32()), "shard": pa.array([], pa.int32())})
    if not len(ids):
        return none
    index = index_of(tokens)
    found = [none]
    for shard in range(len(index.shards)):
        table = documents_in(tokens, index, shard)
        table = table.filter(pc.is_in(table.column("id"), ids))
        found.append(table.append_column("shard", pa.array(np.full(table.num_rows, shard, np.int32))))
    return pa.concat_tables(found)


def _counts(places: pa.Table, ids: pa.Array | None) -> dict[str, int]:
    """Documents and rows of the places of these documents, or of all."""
    some = places if ids is None else places.filter(pc.is_in(places.column("id"), ids))
    rows = some.select(["shard", "row"]).group_by(["shard", "row"]).aggregate([])
    return {"documents": len(some.column("id").unique()), "rows": rows.num_rows}
