"""The overlap stage as a Ray Data job: one task a part of the corpus, against the items of all exams at once.

Only URIs and findings travel through Ray; a worker reads the texts from the store itself. Memory of a task: the index (some 20 kB
an item, once a node) and one row group of the part. Of the driver: 100 bytes a finding. Price: see medschool.exams.overlap; about
30 hours of one core for the 75 billion tokens of the paper's articles.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import ray

from medschool.artifact import Artifact, Output, write_parquet
from medschool.exams.make import read_items
from medschool.exams.overlap import ExamIndex
from medschool.overlap.search import OVERLAP, OVERLAP_SCHEMA, counts, search_file

TASK_CPUS = 0.5


def make_overlap(corpus: Artifact, exams: Mapping[str, Artifact], prefix_uri: str) -> Output:
    """Find every item of `exams`, by name, in the documents of one source.

    The facts give for each exam its items, how many of them were found, and in how many documents.
    """
    items = {name: read_items(made) for name, made in exams.items()}
    index = ray.put(ExamIndex(item for found in items.values() for item in found))
    uris = [corpus.uri(file.path) for file in corpus.files if file.path.startswith("documents/")]
    jobs = [{"part": part, "uri": uri} for part, uri in enumerate(uris)]
    rows = ray.data.from_items(jobs, override_num_blocks=len(jobs)).map(_search, fn_kwargs={"index": index}, num_cpus=TASK_CPUS)
    parts = sorted(rows.take_all(), key=lambda row: int(row["part"]))
    found = pa.concat_tables([OVERLAP_SCHEMA.empty_table(), *(pa.ipc.open_stream(part["found"]).read_all() for part in parts)])
    facts = {
        "checked": sum(part["documents"] for part in parts),
        "documents": len(found.column("id").unique()),
        "exams": counts(found, {name: len(of_exam) for name, of_exam in items.items()}),
    }
    return Output((write_parquet(prefix_uri, OVERLAP, found.combine_chunks()),), facts)


def _search(job: dict[str, Any], index: ray.ObjectRef) -> dict[str, Any]:
    found, documents = search_file(job["uri"], ray.get(index))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, found.schema) as writer:
        writer.write_table(found)
    return {"part": job["part"], "documents": documents, "found": sink.getvalue().to_pybytes()}
