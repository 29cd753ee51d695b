"""The corpus stage as a Ray Data job: raw files of one source -> cleaned, distinct documents.

    raw files --read and clean, one task a file--> parts --exact duplicates, by 64-bit content hash--> documents/*.parquet
                                                        what did not pass, with its reason ----------> dropped/*.parquet

Only file names and hashes travel through Ray; texts go from the worker that read them straight to the store. The hashes of all
documents (8 bytes each) are compared on the driver: 40 MB for the paper's 4.8 million articles.
"""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from medschool import storage
from medschool.artifact import ArtifactFile, Output, write_parquet
from medschool.corpus.clean import Rules, clean, content_key
from medschool.corpus.formats import FORMATS
from medschool.errors import StageError
from medschool.formats import by_name
from medschool.recipe import Recipe
from medschool.rows import DOCUMENT_SCHEMA, DROPPED_SCHEMA, Document, Dropped, table
from medschool.seed import seed_of

READ_CPUS = 0.5
READ = "read"
"""Folder of what the first pass wrote. The second pass reads it and writes elsewhere, so that Ray may run any task twice."""


def make_corpus(recipe: Recipe, source: str, store_uri: str, prefix_uri: str) -> Output:
    """Read, clean and deduplicate one source. Raises InputError for an unreadable file, StageError when nothing is left."""
    spec = recipe.sources[source]
    rules = Rules(recipe.clean.min_chars, frozenset(spec.licences))
    found = [(info.uri, files) for files in spec.files for info in storage.require_files(storage.join(store_uri, files.uri))]
    below = store_uri.rstrip("/") + "/"
    files = [
        {"part": part, "uri": uri, "name": uri.removeprefix(below), "format": kind.format, "licence": kind.licence or ""}
        for part, (uri, kind) in enumerate(found)
    ]
    jobs = ray.data.from_items(files, override_num_blocks=len(files))
    parts = jobs.map(
        _read_file, fn_kwargs={"source": source, "rules": rules, "prefix_uri": prefix_uri}, num_cpus=READ_CPUS
    ).take_all()
    parts.sort(key=lambda part: part["part"])
    repeats = _repeats(parts)
    todo = ray.data.from_items(
        [part | {"repeats": rows} for part, rows in zip(parts, repeats, strict=True)], override_num_blocks=len(parts)
    )
    done = todo.map(_drop_repeats, fn_kwargs={"prefix_uri": prefix_uri}, num_cpus=READ_CPUS).take_all()
    done.sort(key=lambda part: part["part"])
    storage.delete_prefix(storage.join(prefix_uri, READ))
    facts = _facts(done)
    if not facts["documents"]:
        raise StageError(
            f"no document of {facts['read']} is left after cleaning ({facts['dropped']})",
            "look at the reasons in the dropped/ files; widen `licences` or lower `clean.min_chars`",
            f"sources.{source}",
        )
    return Output(tuple(ArtifactFile(**file) for part in done for file in part["files"]), facts)


def _read_file(job: dict[str, Any], source: str, rules: Rules, prefix_uri: str) -> dict[str, Any]:
    """One raw file: its documents and drops written, its content hashes returned. Documents carry its path below the store."""
    data = storage.read_raw(job["uri"], job["name"])
    documents: list[Document] = []
    dropped: list[Dropped] = []
    read = 0
    for row in by_name(FORMATS, job["format"], f"sources.{source}.files")(data, job["name"], source):
        read += 1
        if isinstance(row, Document) and job["licence"]:
            row = replace(row, licence=job["licence"])
        kept = row if isinstance(row, Dropped) else clean(row, rules)
        (dropped if isinstance(kept, Dropped) else documents).append(kept)  # type: ignore[arg-type]
    hashes = np.array([seed_of(content_key(document)) for document in documents], dtype=np.uint64)
    write_parquet(prefix_uri, f"{READ}/documents/{job['part']:05}.parquet", table(documents, DOCUMENT_SCHEMA))
    write_parquet(prefix_uri, f"{READ}/dropped/{job['part']:05}.parquet", table(dropped, DROPPED_SCHEMA))
    return {"part": job["part"], "read": read, "hashes": hashes.tobytes()}


def _repeats(parts: list[dict[str, Any]]) -> list[list[int]]:
    """Rows of each part whose content an earlier row already had."""
    hashes = [np.frombuffer(part["hashes"], dtype=np.uint64) for part in parts]
    _, first = np.unique(np.concatenate(hashes), return_index=True)
    keep = np.zeros(sum(map(len, hashes)), dtype=bool)
    keep[first] = True
    starts = np.cumsum([0, *map(len, hashes)])
    return [np.flatnonzero(~keep[start:stop]).tolist() for start, stop in pairwise(starts)]


def _drop_repeats(part: dict[str, Any], prefix_uri: str) -> dict[str, Any]:
    """Move the repeated rows of a part from its documents to its drops; describe both files."""
    name, repeats = f"{part['part']:05}.parquet", list(part["repeats"])
    documents, dropped = (storage.read_parquet(storage.join(prefix_uri, READ, kind, name)) for kind in ("documents", "dropped"))
    if repeats:
        rows = documents.take(repeats).to_pylist()
        copies = [
            Dropped(row["id"], row["source"], "duplicate", f"sha256 {row['sha256']}", row["text"][:200], row["uri"])
            for row in rows
        ]
        dropped = pa.concat_tables([dropped, table(copies, DROPPED_SCHEMA)])
        mask = np.ones(documents.num_rows, dtype=bool)
        mask[repeats] = False
        documents = documents.filter(pa.array(mask))
    files = [write_parquet(prefix_uri, f"documents/{name}", documents), write_parquet(prefix_uri, f"dropped/{name}", dropped)]
    return {
        "part": part["part"],
        "read": part["read"],
        "files": [vars(file) for file in files],
        "documents": documents.num_rows,
        "chars": sum(map(len, documents.column("text").to_pylist())),
        "licences": dict(Counter(documents.column("licence").to_pylist())),
        "dropped": dict(Counter(dropped.column("step").to_pylist())),
    }


def _facts(parts: list[dict[str, Any]]) -> dict[str, Any]:
    def total(key: str) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for part in parts:
            counts.update({name: count for name, count in part[key].items() if count})
        return dict(sorted(counts.items()))

    numbers = {key: sum(part[key] for part in parts) for key in ("read", "documents", "chars")}
    return {**numbers, "dropped": total("dropped"), "licences": total("licences")}
