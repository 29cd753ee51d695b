"""The tokens stage as a Ray Data job, and the feed of Ray Train.

    documents/*.parquet --tokenize and pack, one task a part--> rows --shard = hash mod shards--> shuffled shards --> store
    Order + shards --one read task a (batch, rank)--> streaming_split --> rank r's slice of every batch, in order

The order of the feed rests on three things that a test holds together: one block is one (batch, rank), all blocks have the same
number of rows, and `preserve_order` is on. Ray documents no order for its splitter, so every row carries its global index and the
training loop compares it with the order it expects.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Datasource, ExecutionOptions
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.train import DataConfig

from medschool import storage
from medschool.artifact import Artifact, ArtifactFile, Output, local_copy, write_file
from medschool.recipe import Recipe
from medschool.seed import seed_of
from medschool.tokens.heldout import choose_heldout
from medschool.tokens.pack import Rows, pack
from medschool.tokens.shards import HELDOUT, INDEX, Index, index_bytes, ipc_bytes, read_table, rows_table
from medschool.tokens.stream import Feed, rank_rows, read_block
from medschool.tokens.tokenizer import Tokenizer, load_tokenizer

TASK_CPUS = 0.5
READERS_A_RANK = 2
"""Read tasks at once for each training worker: more would start more processes than a small machine has cores for."""
CHARS_PER_TOKEN = 4
"""Rough size of a token of English text; decides how many shards are cut, nothing else."""


def make_tokens(recipe: Recipe, corpus: Artifact, tokenizer: Artifact, prefix_uri: str) -> Output:
    """Tokenize, hold out, pack, shuffle and store the documents of one source."""
    spec = recipe.tokens
    tool = load_tokenizer(local_copy(tokenizer))
    parts = [file for file in corpus.files if file.path.startswith("documents/")]
    heldout = choose_heldout(
        [corpus.uri(file.path) for file in parts], tool, spec.heldout_tokens, spec.heldout_document_tokens, recipe.seed
    )
    held_ids = ray.put(frozenset(heldout.column("id").to_pylist()))
    shards = max(1, round(corpus.facts["chars"] / CHARS_PER_TOKEN / spec.row_tokens / spec.rows_per_shard))
    packer = partial(_pack_part, tokenizer=tokenizer, held_ids=held_ids, row_tokens=spec.row_tokens)
    stored = store_shards([corpus.uri(file.path) for file in parts], packer, shards, recipe.seed, prefix_uri)
    index = Index(
        row_tokens=spec.row_tokens,
        dtype=tool.dtype.name,
        eos_id=tool.eos_id,
        shards=stored.shards,
        documents=corpus.facts["documents"] - heldout.num_rows,
        tail_tokens=stored.tail_tokens,
        heldout_documents=heldout.num_rows,
        heldout_tokens=sum(map(len, heldout.column("tokens").to_pylist())),
    )
    heldout_file = write_file(prefix_uri, HELDOUT, ipc_bytes(heldout))
    files = (*stored.files, heldout_file, write_file(prefix_uri, INDEX, index_bytes(index)))
    facts = {
        "rows": index.rows,
        "tokens": index.tokens,
        "documents": index.documents,
        "shards": len(stored.shards),
        "tail_tokens": index.tail_tokens,
    }
    return Output(files, facts | {"heldout_documents": index.heldout_documents, "heldout_tokens": index.heldout_tokens})


@functools.lru_cache(maxsize=2)
def _tokenizer(folder: str) -> Tokenizer:
    return load_tokenizer(Path(folder))


def _pack_part(uri: str, tokenizer: Artifact, held_ids: ray.ObjectRef, row_tokens: int) -> Rows:
    """The documents of one Parquet part in rows, without those held out."""
    tool, held = _tokenizer(str(local_copy(tokenizer))), ray.get(held_ids)
    documents = storage.read_parquet(uri, ["id", "text"])
    columns = (documents.column(name).to_pylist() for name in ("id", "text"))
    pairs = [(id_, text) for id_, text in zip(*columns, strict=True) if id_ not in held]
    return pack([id_ for id_, _ in pairs], tool.encode([text for _, text in pairs]), row_tokens, tool.eos_id, tool.dtype)


@dataclass(frozen=True)
class Stored:
    """Shuffled shards in the store."""

    files: tuple[ArtifactFile, ...]
    shards: tuple[tuple[str, int], ...]
    """(path in the artifact, rows)."""
    tail_tokens: int


def store_shards(part_uris: list[str], pack_part: Callable[[str], Rows], shards: int, seed: int, prefix_uri: str) -> Stored:
    """Pack every part in a task of its own, deal the rows to shards at random, shuffle and store each shard.

    What comes out depends on the parts, the number of shards and the seed, never on the order in which tasks end.
    """
    jobs = ray.data.from_items(
        [{"part": number, "uri": uri} for number, uri in enumerate(part_uris)], override_num_blocks=len(part_uris)
    )
    settings = {"pack_part": pack_part, "shards": shards, "seed": seed}
    rows = jobs.map_batches(_deal, batch_size=1, fn_kwargs=settings, num_cpus=TASK_CPUS)
    written = rows.groupby("shard", num_partitions=shards).map_groups(
        _write_shard, batch_format="pyarrow", fn_kwargs={"prefix_uri": prefix_uri, "seed": seed}, num_cpus=TASK_CPUS
    )
    found = sorted(written.take_all(), key=lambda shard: str(shard["path"]))
    return Stored(
        tuple(ArtifactFile(shard["path"], shard["size_bytes"], shard["sha256"]) for shard in found),
        tuple((shard["path"], shard["rows"]) for shard in found),
        sum(shard["tail_tokens"] for shard in found),
    )


def _deal(batch: dict[str, Any], pack_part: Callable[[str], Rows], shards: int, seed: int) -> pa.Table:
    """The packed rows of one part, each with the shard it belongs to and its place in the part."""
    part, packed = int(batch["part"][0]), pack_part(str(batch["uri"][0]))
    table = rows_table(packed, packed.tokens.dtype)
    draw = np.random.Generator(np.random.Philox(seed_of(seed, "shard", part)))
    tail = np.zeros(table.num_rows, np.int64)
    tail[:1] = packed.tail_tokens
    for name, values in (
        ("shard", draw.integers(0, shards, table.num_rows, dtype=np.int32)),
        ("part", np.full(table.num_rows, part, np.int32)),
        ("place", np.arange(table.num_rows)),
        ("tail", tail),
    ):
        table = table.append_column(name, pa.array(values))
    return table


def _write_shard(group: pa.Table, prefix_uri: str, seed: int) -> dict[str, Any]:
    """Shuffle and store the rows of one shard. The result does not depend on the order in which the rows arrived."""
    number = group.column("shard")[0].as_py()
    rows = group.sort_by([("part", "ascending"), ("place", "ascending")])
    rows = rows.take(np.random.Generator(np.random.Philox(seed_of(seed, "rows", number))).permutation(rows.num_rows))
    stored = rows.select(["tokens", "trained", "doc_ids", "doc_lengths"])
    file = write_file(prefix_uri, f"shards/{number:05}.arrow", ipc_bytes(stored))
    tail = int(np.sum(rows.column("tail").to_numpy()))
    return {key: [value] for key, value in (vars(file) | {"rows": rows.num_rows, "tail_tokens": tail}).items()}


class _Blocks(Datasource):  # type: ignore[misc]
    """Blocks of batches [start, stop), batch-major and rank-minor, one read task each."""

    def __init__(self, feed: Any, start: int, stop: int, world_size: int, per_rank: int, row_bytes: int) -> None:
        self._feed, self._start, self._stop, self._world_size = feed, start, stop, world_size
        self._per_rank, self._row_bytes = per_rank, row_bytes

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> list[ReadTask]:
        meta = BlockMetadata(
            num_rows=self._per_rank, size_bytes=self._per_rank * self._row_bytes, input_files=None, exec_stats=None
        )
        return [
            ReadTask(functools.partial(_read, self._feed, batch, rank, self._world_size), meta)
            for batch in range(self._start, self._stop)
            for rank in range(self._world_size)
        ]


def _read(feed: Any, batch: int, rank: int, world_size: int) -> list[pa.Table]:
    return [read_block(ray.get(feed), batch, rank, world_size)]


def blocks(feed: Feed, start: int, stop: int, world_size: int) -> "ray.data.Dataset":
    """Batches [start, stop) as an ordered Ray Dataset, to be split over `world_size` ranks."""
    per_rank = rank_rows(feed.order.batch_rows, world_size)
    row_bytes = feed.row_tokens * (np.dtype(feed.dtype).itemsize + 1) + 256
    source = _Blocks(ray.put(feed), start, stop, world_size, per_rank, row_bytes)
    dataset = ray.data.read_datasource(
        source,
        override_num_blocks=(stop - start) * world_size,
        concurrency=READERS_A_RANK * world_size,
        ray_remote_args={"num_cpus": TASK_CPUS},
    )
    dataset.context.execution_options = ExecutionOptions(preserve_order=True)
    return dataset


class OrderedData(DataConfig):  # type: ignore[misc]
    """Gives every training worker its slices of the batches from the resume point on.

    Ray Train makes a fresh copy at every start of a worker group and asks it for two names: `resume` (the same object for every
    rank, decided here once) and `train` (an iterator that starts at that point). Model and data thus cannot start at different
    places.
    """

    def __init__(self, feed: Feed, batches: int, decide: Any) -> None:
        super().__init__()
        self._feed, self._batches, self._decide = feed, batches, decide
        self._point: Any = None

    def configure(
        self, datasets: Any, world_size: int, worker_handles: Any, worker_node_ids: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        if self._point is None:
            self._point = self._decide()
        if "resume" in datasets:
            return [{"resume": self._point} for _ in range(world_size)]
        parts = blocks(self._feed, self._point.batch_index, self._batches, world_size).streaming_split(world_size, equal=True)
        return [{"train": part} for part in parts]


def heldout_rows(tokens: Artifact) -> pa.Table:
    """Held-out documents of a token artifact: columns id, tokens."""
    return read_table(tokens.uri(HELDOUT))
