"""Rows dealt to shards in two passes, of which a killed job repeats only what was under way. Plain Python; Ray is in on_ray.py.

    portion --its rows, shard drawn for each--> work/<plan>/dealt/<unique>.arrow   one Arrow stream for each group of shards
                                                work/<plan>/dealt/00000.json       put last, only if absent: where each one lies
    a group's stream of every portion --sort by shard, shuffle--> shards/00000.arrow ... and where/00000.parquet below the attempt
                                                work/<plan>/done/00000.json        put last, only if absent: which files, by hash

A JSON marker is written when what it names is written: without one nothing counts. The work folder belongs to the stage's
fingerprint and outlives an attempt. Finished portions are read where they lie; finished shards of an earlier attempt are copied
by the store itself and compared with the hash in their marker, and made again when they are gone or damaged.

The bytes of a shard depend on the rows, the number of shards and the seed. The draw is by (seed, portion) and the shuffle by
(seed, shard), so neither the order of tasks, nor a kill, nor the cut into groups can change them.

Memory: `deal_portion` holds the rows of a portion three times (rows, sorted, bytes). `write_group` holds its shards twice and one
of them as bytes; a group has one shard where that gives at most GROUPS groups, and never more than GROUP_BYTES of tokens.
Requests: one range read for each (portion, group), at most portions.MOST_PORTIONS for a group.
"""

import itertools
import json
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from medschool import s3, storage
from medschool.artifact import ArtifactFile, digest_of, write_file, write_parquet
from medschool.errors import InputError
from medschool.seed import seed_of
from medschool.tokens.pack import Rows
from medschool.tokens.shards import ipc_bytes, rows_table, shard_path, where_path, where_table

GROUPS = 256
GROUP_BYTES = 256 * 2**20
READ_THREADS = 8


@dataclass(frozen=True)
class Deal:
    """Where rows go, and where finished work lies."""

    shards: int
    group_shards: int
    """Shards that one task of the second pass writes."""
    seed: int
    work_uri: str
    """Folder of this very plan below the stage's work folder; it outlives an attempt."""
    prefix_uri: str
    """Folder of this attempt."""

    @property
    def groups(self) -> int:
        return -(-self.shards // self.group_shards)


@dataclass(frozen=True)
class Dealt:
    """A portion whose rows are dealt, as its marker describes it."""

    file: str
    """Name of its data below the plan's folder."""
    ends: tuple[int, ...]
    """End of each group's Arrow stream in the data, in bytes."""
    documents: int
    tail_tokens: int
    padding_tokens: int
    reused: bool = False
    """Made by an earlier attempt, or an earlier try of this task."""


@dataclass(frozen=True)
class Group:
    """The shards of one group, as their marker describes them."""

    prefix_uri: str
    """Folder of the attempt that made them."""
    files: tuple[ArtifactFile, ...]
    shards: tuple[tuple[str, int], ...]
    """(path below the attempt, rows)."""
    reused: bool = False


@dataclass(frozen=True)
class Segment:
    """One portion's rows for one group: bytes [start, stop) of a file below the plan's folder."""

    file: str
    start: int
    stop: int


def plan_deal(portions: Sequence[Any], shards: int, shard_bytes: int, seed: int, work_uri: str, prefix_uri: str) -> Deal:
    """`portions` are JSON values that name the work; another cut of it never meets the markers of this one."""
    group_shards = max(1, min(-(-shards // GROUPS), GROUP_BYTES // max(1, shard_bytes)))
    plan = digest_of([list(portions), shards, group_shards, seed])[:16]
    return Deal(shards, group_shards, seed, storage.join(work_uri, plan), prefix_uri)


def deal_portion(deal: Deal, number: int, make_rows: Callable[[], Rows]) -> Dealt:
    """Make the rows of a portion and draw a shard for each, unless that is done."""
    marker = storage.join(deal.work_uri, f"dealt/{number:05}.json")
    if done := _read_marker(marker):
        return Dealt(**done | {"ends": tuple(done["ends"]), "reused": True})
    rows = make_rows()
    draw = np.random.Generator(np.random.Philox(seed_of(deal.seed, "shard", number)))
    shards = draw.integers(0, deal.shards, len(rows.tokens), dtype=np.int32)
    order = np.argsort(shards, kind="stable")
    table = rows_table(rows, rows.tokens.dtype).append_column("shard", pa.array(shards)).take(order)
    edges = np.searchsorted(shards[order], np.arange(deal.groups + 1) * deal.group_shards).tolist()
    streams = [_stream_bytes(table.slice(start, stop - start)) for start, stop in itertools.pairwise(edges)]
    made = Dealt(
        file=f"dealt/{number:05}-{uuid.uuid4().hex[:12]}.arrow",
        ends=tuple(itertools.accumulate(map(len, streams))),
        documents=rows.documents,
        tail_tokens=rows.tail_tokens,
        padding_tokens=rows.padding_tokens,
    )
    storage.write_bytes(storage.join(deal.work_uri, made.file), b"".join(streams))
    storage.put_if_absent(marker, json.dumps(asdict(made)).encode())
    return made


def segments(dealt: Sequence[Dealt], group: int) -> list[Segment]:
    """Where the rows of one group lie, in the order of the portions."""
    spans = [Segment(part.file, part.ends[group - 1] if group else 0, part.ends[group]) for part in dealt]
    return [span for span in spans if span.start < span.stop]


def write_group(deal: Deal, group: int, spans: Sequence[Segment]) -> Group:
    """Gather, shuffle and store the shards of one group below the attempt, unless an earlier attempt made them.

    Raises InputError when a portion's data are not whole.
    """
    marker = storage.join(deal.work_uri, f"done/{group:05}.json")
    if reused := _reuse(marker, deal.prefix_uri):
        return reused
    with ThreadPoolExecutor(READ_THREADS) as pool:
        tables = list(pool.map(lambda span: _read_stream(storage.join(deal.work_uri, span.file), span), spans))
    files: list[ArtifactFile] = []
    shards: list[tuple[str, int]] = []
    if tables:
        rows = pa.concat_tables(tables)
        numbers = rows.column("shard").to_numpy()
        rows = rows.drop_columns(["shard"])
        for number in np.unique(numbers).tolist():
            shuffle = np.random.Generator(np.random.Philox(seed_of(deal.seed, "rows", number)))
            shard = rows.take(shuffle.permutation(np.flatnonzero(numbers == number)))
            files.append(write_file(deal.prefix_uri, shard_path(number), ipc_bytes(shard)))
            files.append(write_parquet(deal.prefix_uri, where_path(number), where_table(shard)))
            shards.append((files[-2].path, shard.num_rows))
    made = Group(deal.prefix_uri, tuple(files), tuple(shards))
    storage.put_if_absent(marker, json.dumps(asdict(made)).encode())
    return made


def _reuse(marker: str, prefix_uri: str) -> Group | None:
    """The shards that a marker names, below this attempt too; None without a marker, or when a file is gone or damaged."""
    done = _read_marker(marker)
    if done is None:
        return None
    files = tuple(ArtifactFile(**file) for file in done["files"])
    for file in files:
        target = storage.join(prefix_uri, file.path)
        try:
            if done["prefix_uri"] != prefix_uri:
                _copy(storage.join(done["prefix_uri"], file.path), target)
            if storage.size_and_sha256(target) != (file.size_bytes, file.sha256):
                return None
        except FileNotFoundError:
            return None
    return Group(done["prefix_uri"], files, tuple((path, rows) for path, rows in done["shards"]), reused=True)


@s3.guard
def _copy(source: str, target: str) -> None:
    """Copy one key; on S3 the store does it."""
    if s3.is_s3(source):
        s3.filesystem(source).cp_file(source, target)
    else:
        storage.upload(target, Path(source))


def _read_marker(uri: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(storage.read_bytes(uri))
    except FileNotFoundError:
        return None
    return found


def _stream_bytes(table: pa.Table) -> bytes:
    """One Arrow stream; nothing where there are no rows."""
    if not table.num_rows:
        return b""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _read_stream(uri: str, span: Segment) -> pa.Table:
    data = storage.read_range(uri, span.start, span.stop)
    try:
        if len(data) != span.stop - span.start:
            raise pa.ArrowInvalid(f"{len(data)} bytes of {span.stop - span.start}")
        return pa.ipc.open_stream(data).read_all()
    except (pa.ArrowException, OSError) as error:
        folder = uri.rsplit("/", 2)[0]
        raise InputError(f"not whole ({error})", f"delete the folder {folder}; the stage then begins anew", uri) from error
