"""The duplicates stage as two Ray Data jobs over the corpora of all sources, and a decision on the driver.

    documents/*.parquet --1. sign, one task a part--> pieces: signatures, ids, and records sorted by bucket
    records of all pieces --2. join, one task a range of bucket hashes--> verified pairs
    pairs of all ranges --3. choose, on the driver--> removals.parquet, clusters.parquet

Only names and counts travel through Ray. Everything else goes through the store, below `work/` of the stage's prefix, and is
deleted at the end. A range is read from each piece with one request, because records lie sorted there; signatures are read with
one request for each run of documents that are near each other.

Memory, with p permutations and b bands (512 bytes of signature and 14 bands at the default):

    sign    READ_DOCUMENTS texts, 70 bytes a word of SIGN_BYTES, PIECE_DOCUMENTS * (8 p + 72 b + 200) bytes: 165 MB + texts
    join    4 * RANGE_BYTES + (4 * PAIRS_AT_ONCE + 8 * PIECE_DOCUMENTS) * 4 p bytes: 540 MB, + 68 bytes a verified pair
    choose  200 bytes a distinct pair, 300 a document in one

Neither of the tasks grows with the corpus: there are more of them. Projected to 4.8 million papers with every tenth in a pair:
2.5 GB of signatures and 1.6 GB of records lie in the store for that time, in 25 ranges of 200,000 pairs; each range reads at most
four times all signatures, 250 GB together; the driver needs 250 MB.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from medschool import storage
from medschool.artifact import Artifact, Output, write_parquet
from medschool.duplicates.candidates import PAIR, RECORD, Array, candidate_pairs, distinct, rank_of, verified
from medschool.duplicates.components import CLUSTERS, REMOVALS, choose, clusters_table, removals_table, size_counts
from medschool.duplicates.minhash import band_hashes, banding, needed_places, shingles, signatures
from medschool.recipe import Recipe
from medschool.recipe.corpus import NearDuplicates

TASK_CPUS = 0.5
READ_DOCUMENTS = 1024
SIGN_BYTES = 8 * 2**20
"""Text whose words are in memory at once."""
PIECE_DOCUMENTS = 2**15
RANGE_BYTES = 64 * 2**20
"""Records that one task joins."""
GAP_DOCUMENTS = 256
"""Signatures that are read without need between two that are needed, rather than asked for apart: 128 KiB."""
LARGEST = 5
"""Clusters that the facts name; clusters.parquet has all."""
WORK = "work"


@dataclass(frozen=True)
class Piece:
    """What pass 1 left of some documents in a row of one part. A document's number is `start` and its place in the piece."""

    start: int
    source: str
    documents: int
    offsets: tuple[int, ...]
    """Where the records of each range begin, and where those of the last one end."""

    def name(self, kind: str) -> str:
        return f"{kind}/{self.start:016x}"


def make_duplicates(recipe: Recipe, corpora: Mapping[str, Artifact], prefix_uri: str) -> Output:
    """Find the near-duplicates among the documents of all sources. corpora: the `corpus` artifact of each source."""
    spec, work = recipe.near_duplicates, storage.join(prefix_uri, WORK)
    assert spec is not None
    total = sum(corpus.facts["documents"] for corpus in corpora.values())
    records = total * banding(spec.similarity, spec.permutations).bands
    ranges = max(1, ceil(records * RECORD.itemsize / RANGE_BYTES))
    pieces = _sign(_parts(corpora), spec, ranges, work)
    pairs = _join(pieces, spec, ranges, work)
    choice = choose(pairs)
    sources, ids = _names(choice.documents, pieces, work)
    storage.delete_prefix(work)
    removals, clusters = removals_table(choice, sources, ids, spec.permutations), clusters_table(choice, sources, ids)
    files = (write_parquet(prefix_uri, REMOVALS, removals), write_parquet(prefix_uri, CLUSTERS, clusters))
    return Output(files, {"documents": sum(piece.documents for piece in pieces)} | _facts(removals, clusters))


def _parts(corpora: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """Every part of every source, numbered in an order that decides nothing."""
    found = [
        (source, made, file) for source, made in corpora.items() for file in made.files if file.path.startswith("documents/")
    ]
    return [
        {"part": number, "source": source, "uri": made.uri(file.path), "sha256": file.sha256}
        for number, (source, made, file) in enumerate(found)
    ]


def _sign(parts: list[dict[str, Any]], spec: NearDuplicates, ranges: int, work: str) -> list[Piece]:
    jobs = ray.data.from_items(parts, override_num_blocks=len(parts))
    settings = {"spec": spec.model_dump(), "ranges": ranges, "work": work}
    done = jobs.map(_sign_part, fn_kwargs=settings, num_cpus=TASK_CPUS).take_all()
    pieces = [Piece(**piece | {"offsets": tuple(piece["offsets"])}) for part in done for piece in part["pieces"]]
    return sorted(pieces, key=lambda piece: piece.start)


def _sign_part(job: dict[str, Any], spec: dict[str, Any], ranges: int, work: str) -> dict[str, Any]:
    """Pass 1: one part, fetched to local disk and checked against its sha256, in pieces of bounded size."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "part.parquet")
        storage.download_verified(job["uri"], path, job["sha256"])
        batches = pq.ParquetFile(path).iter_batches(READ_DOCUMENTS, columns=["id", "text", "article_type"])
        pieces = list(_pieces(batches, job["part"] << 32, job["source"], NearDuplicates(**spec), ranges, work))
    return {"pieces": [vars(piece) for piece in pieces]}


def _pieces(
    batches: Iterator[pa.RecordBatch], start: int, source: str, spec: NearDuplicates, ranges: int, work: str
) -> Iterator[Piece]:
    signed: list[tuple[Array, Array, pa.Array]] = []
    count = 0
    for batch in (some for whole in batches for some in _bounded(whole)):
        signed.append(_sign_batch(batch, start + count, source, spec))
        count += batch.num_rows
        if count >= PIECE_DOCUMENTS:
            yield _store_piece(signed, start, source, ranges, work)
            signed, start, count = [], start + count, 0
    if signed:
        yield _store_piece(signed, start, source, ranges, work)


def _bounded(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Documents of SIGN_BYTES of text at a time; a longer one alone."""
    ends = np.cumsum(pc.binary_length(batch.column("text")).to_numpy())
    edges = [0, *(np.flatnonzero(np.diff(ends // SIGN_BYTES)) + 1).tolist(), batch.num_rows]
    for start, stop in pairwise(edges):
        yield batch.slice(start, stop - start)


def _sign_batch(batch: pa.RecordBatch, start: int, source: str, spec: NearDuplicates) -> tuple[Array, Array, pa.Array]:
    """Signatures, records and ids of some documents. Canaries and documents without a word have no records."""
    ids, texts = batch.column("id"), batch.column("text").cast(pa.large_string())
    hashes, offsets = shingles(texts, spec.ngram_words)
    made = signatures(hashes, offsets, spec.permutations)
    compared = (np.diff(offsets) > 0) & pc.not_equal(batch.column("article_type"), "canary").to_numpy(zero_copy_only=False)
    chars = pc.utf8_length(texts).to_pylist()
    ranks = np.array([rank_of(source, id_, length) for id_, length in zip(ids.to_pylist(), chars, strict=True)], np.uint64)
    buckets = band_hashes(made[compared], banding(spec.similarity, spec.permutations))
    records = np.empty(buckets.shape, RECORD)
    records["bucket"] = buckets
    records["rank"] = ranks[compared, None]
    records["document"] = (np.flatnonzero(compared) + start)[:, None]
    return made, records.ravel(), ids


def _store_piece(signed: list[tuple[Array, Array, pa.Array]], start: int, source: str, ranges: int, work: str) -> Piece:
    made = np.concatenate([one for one, _, _ in signed])
    records = np.concatenate([one for _, one, _ in signed])
    records = records[np.argsort(records["bucket"])]
    edges = np.array([number * 2**64 // ranges for number in range(ranges)], np.uint64)
    offsets = (*np.searchsorted(records["bucket"], edges).tolist(), len(records))
    piece = Piece(start, source, len(made), offsets)
    storage.write_bytes(storage.join(work, piece.name("signatures")), made.tobytes())
    storage.write_bytes(storage.join(work, piece.name("records")), records.tobytes())
    write_parquet(work, piece.name("ids"), pa.table({"id": pa.concat_arrays([ids for _, _, ids in signed])}))
    return piece


def _join(pieces: list[Piece], spec: NearDuplicates, ranges: int, work: str) -> Array:
    """Pass 2: all distinct verified pairs."""
    jobs = ray.data.from_items([{"range": number} for number in range(ranges)], override_num_blocks=ranges)
    settings = {"pieces": ray.put(pieces), "spec": spec.model_dump(), "work": work}
    done = jobs.map(_join_range, fn_kwargs=settings, num_cpus=TASK_CPUS).take_all()
    pairs = np.empty(0, PAIR)
    for one in done:
        if one["pairs"]:
            found = np.frombuffer(storage.read_bytes(storage.join(work, f"pairs/{one['range']:05}")), PAIR)
            pairs = distinct(np.concatenate((pairs, found)))
    return pairs


def _join_range(job: dict[str, Any], pieces: ray.ObjectRef, spec: dict[str, Any], work: str) -> dict[str, Any]:
    """One range of bucket hashes over all pieces: its verified pairs, written to the store."""
    known: list[Piece] = ray.get(pieces)
    size, cut = RECORD.itemsize, NearDuplicates(**spec)

    def read(piece: Piece) -> bytes:
        begin, end = piece.offsets[job["range"] : job["range"] + 2]
        return storage.read_range(storage.join(work, piece.name("records")), begin * size, end * size) if end > begin else b""

    with ThreadPoolExecutor(storage.COPY_THREADS) as pool:
        records = np.frombuffer(b"".join(pool.map(read, known)), RECORD)
    reader = Signatures(known, cut.permutations, work)
    needed = needed_places(cut.similarity, cut.permutations)
    found = [verified(pairs, reader.read, needed) for pairs in candidate_pairs(records)]
    pairs = distinct(np.concatenate([np.empty(0, PAIR), *found]))
    if len(pairs):
        storage.write_bytes(storage.join(work, f"pairs/{job['range']:05}"), pairs.tobytes())
    return {"range": job["range"], "pairs": len(pairs)}


class Signatures:
    """Reads the signatures of any documents from the pieces in the store."""

    def __init__(self, pieces: list[Piece], permutations: int, work: str) -> None:
        self._pieces, self._permutations, self._work = pieces, permutations, work
        self._starts = np.array([piece.start for piece in pieces], np.uint64)

    def read(self, documents: Array) -> Array:
        """documents: sorted, distinct, (n,) -> (n, permutations)."""
        inside = _piece_of(self._starts, documents)
        breaks = np.flatnonzero((np.diff(inside) > 0) | (np.diff(documents) > GAP_DOCUMENTS)) + 1
        runs = np.split(np.arange(len(documents)), breaks)
        with ThreadPoolExecutor(storage.COPY_THREADS) as pool:
            return np.concatenate(list(pool.map(lambda run: self._run(documents[run], self._pieces[inside[run[0]]]), runs)))

    def _run(self, documents: Array, piece: Piece) -> Array:
        places = (documents - np.uint64(piece.start)).astype(np.int64)
        first, end, size = int(places[0]), int(places[-1]) + 1, 4 * self._permutations
        data = storage.read_range(storage.join(self._work, piece.name("signatures")), first * size, end * size)
        return np.frombuffer(data, np.uint32).reshape(-1, self._permutations)[places - first]


def _piece_of(starts: Array, documents: Array) -> Array:
    return np.searchsorted(starts, documents, side="right") - 1


def _names(documents: Array, pieces: list[Piece], work: str) -> tuple[pa.Array, pa.Array]:
    """Source and id of each document; the ids of one piece are in memory at a time."""
    inside = _piece_of(np.array([piece.start for piece in pieces], np.uint64), documents)
    order = np.argsort(inside, kind="stable")
    ids = [pa.array([], pa.string())]
    for run in np.split(order, np.flatnonzero(np.diff(inside[order])) + 1) if len(order) else []:
        piece = pieces[inside[run[0]]]
        column = storage.read_parquet(storage.join(work, piece.name("ids"))).column("id").combine_chunks()
        ids.append(column.take((documents[run] - np.uint64(piece.start)).astype(np.int64)))
    sources = pa.array([pieces[number].source for number in inside], pa.string())
    return sources, pa.concat_arrays(ids).take(np.argsort(order))


def _facts(removals: pa.Table, clusters: pa.Table) -> dict[str, Any]:
    across = pc.sum(pc.not_equal(removals.column("source"), removals.column("kept_source"))).as_py() or 0
    sizes = Counter(clusters.column("cluster").to_pylist())
    kept = clusters.filter(pc.field("kept")).to_pylist()
    sample = {row["cluster"]: f"{row['source']}/{row['id']}" for row in reversed(kept) if row["cluster"] < LARGEST}
    return {
        "removed": dict(sorted(Counter(removals.column("source").to_pylist()).items())),
        "for_another_source": across,
        "clusters": len(sizes),
        "sizes": size_counts(clusters),
        "largest": {sample[number]: sizes[number] for number in sorted(sample)},
    }
