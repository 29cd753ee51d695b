"""The tokens stage as a Ray Data job, and the feed of Ray Train.

    documents/*.parquet --tokenize and pack, one task a portion--> rows dealt to shards, in the store    (tokens.portions, .pack)
    rows of a group of shards, from every portion --one task a group--> shuffled shards in the store     (tokens.deal)
    Order + shards --one read task a (run of batches, rank)--> streaming_split --> rank r's slice of every batch, in order

The order of the feed rests on three things that a test holds together: a block is one rank's slice of some batches in a row, the
blocks of all ranks for the same batches have the same number of rows and follow each other, and `preserve_order` is on. Ray
documents no order for its splitter, so every row carries its global index and the training loop compares it with the order it
expects.
"""

import functools
import itertools
import json
import os
import pickle
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Datasource, ExecutionOptions, ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.train import DataConfig

from medschool.artifact import Artifact, ArtifactFile, Output, local_copy, write_file
from medschool.duplicates import removed_ids
from medschool.recipe import Recipe
from medschool.recipe.corpus import Tokens
from medschool.tokens.deal import Deal, Dealt, Group, Segment, deal_portion, plan_deal, segments, write_group
from medschool.tokens.fast import SAMPLE_CHARS, Gate, fast_encode, open_gate
from medschool.tokens.heldout import choose_heldout
from medschool.tokens.pack import Rows, pack, pack_best_fit, pack_windows
from medschool.tokens.portions import Portion, cut_portions, read_portion, sample
from medschool.tokens.shards import HELDOUT, INDEX, Index, index_bytes, ipc_bytes, read_table
from medschool.tokens.stream import Feed, fetch_shards_of, rank_rows, read_block
from medschool.tokens.tokenizer import Tokenizer, load_tokenizer

TASK_CPUS = 0.5
PACK_CPUS = 1
"""A task encodes on one thread, so that a node is filled with tasks: of one task with many threads all but one would be idle
while it reads, copies ids and packs, a tenth of a thread's time."""
READERS_A_RANK = 2
"""Read tasks at once for each training worker: more would start more processes than a small machine has cores for."""
BLOCK_BYTES = 4 * 2**20
"""A block holds as many batches of its rank as fit, one at least: a read task costs some milliseconds whatever it brings. The
first block holds one, the second two, and so on, so that training need not wait for a large one."""
READ_AHEAD = 4
"""Blocks for each rank that are read and not yet taken."""
IDLE_LOOK_S = 0.05
"""How long the executor of a feed rests at most between two looks that find nothing to do."""
CHARS_PER_TOKEN = 4
"""Rough size of a token of English text; decides how many shards are cut, nothing else."""


def make_tokens(recipe: Recipe, source: str, inputs: Mapping[str, Artifact], prefix_uri: str, work_uri: str) -> Output:
    """Tokenize, hold out, pack, shuffle and store the documents of one source.

    `inputs` by role: `corpus/<source>`, `tokenizer`, and `duplicates` where near-duplicates are removed. `work_uri` is a folder
    of this stage's fingerprint: an attempt that is killed leaves its finished work there for the next one.
    """
    spec, corpus, tokenizer = recipe.tokens, inputs[f"corpus/{source}"], inputs["tokenizer"]
    folder = local_copy(tokenizer)
    tool = load_tokenizer(folder)
    uris = [corpus.uri(file.path) for file in corpus.files if file.path.startswith("documents/")]
    removed = removed_ids(inputs["duplicates"], source) if "duplicates" in inputs else frozenset()
    heldout = choose_heldout(uris, tool, spec.heldout_tokens, spec.heldout_document_tokens, recipe.seed, removed)
    portions = cut_portions(uris)
    gate = open_gate(folder, tool, sample(portions, SAMPLE_CHARS))
    shards = max(1, round(corpus.facts["chars"] / CHARS_PER_TOKEN / spec.row_tokens / spec.rows_per_shard))
    left_out = pa.array(sorted(removed.union(heldout.column("id").to_pylist())), pa.string())
    packer = partial(_pack_portion, spec=spec, seed=recipe.seed, tokenizer=tokenizer, fast=gate.used, left_out=ray.put(left_out))
    shard_bytes = spec.rows_per_shard * spec.row_tokens * tool.dtype.itemsize
    deal = plan_deal(portions, shards, shard_bytes, recipe.seed, work_uri, prefix_uri)
    stored = store_shards(portions, packer, deal)
    index = Index(
        row_tokens=spec.row_tokens,
        dtype=tool.dtype.name,
        eos_id=tool.eos_id,
        shards=stored.shards,
        documents=stored.documents,
        tail_tokens=stored.tail_tokens,
        heldout_documents=heldout.num_rows,
        heldout_tokens=sum(map(len, heldout.column("tokens").to_pylist())),
        padding_tokens=stored.padding_tokens,
    )
    heldout_file = write_file(prefix_uri, HELDOUT, ipc_bytes(heldout))
    files = (*stored.files, heldout_file, write_file(prefix_uri, INDEX, index_bytes(index)))
    return Output(files, _facts(index, len(removed), stored, gate))


def _facts(index: Index, removed: int, stored: "Stored", gate: Gate) -> dict[str, Any]:
    return {
        "rows": index.rows,
        "tokens": index.tokens,
        "documents": index.documents,
        "shards": len(index.shards),
        "tail_tokens": index.tail_tokens,
        "padding_tokens": index.padding_tokens,
        "heldout_documents": index.heldout_documents,
        "heldout_tokens": index.heldout_tokens,
        "duplicates_left_out": removed,
        "reused": stored.reused,
        "fast_tokenizer": str(gate),
        "gate_documents": gate.documents,
    }


def _pack_portion(portion: Portion, spec: Tokens, seed: int, tokenizer: Artifact, fast: bool, left_out: ray.ObjectRef) -> Rows:
    """The documents of one portion in rows, without those left out; encoded on one thread, as one of this node's tasks."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    folder = str(local_copy(tokenizer))
    tool = _tokenizer(folder)
    encode = fast_encode(Path(folder)) if fast else tool.encode
    ids: list[str] = []
    documents: list[np.ndarray] = []
    for some, texts in read_portion(portion, ray.get(left_out)):
        ids += some
        documents += encode(texts)
    if spec.packing == "windows":
        return pack_windows(ids, documents, spec.row_tokens, tool.eos_id, tool.dtype, seed)
    packer = pack_best_fit if spec.packing == "best_fit" else pack
    return packer(ids, documents, spec.row_tokens, tool.eos_id, tool.dtype)


@functools.lru_cache(maxsize=2)
def _tokenizer(folder: str) -> Tokenizer:
    return load_tokenizer(Path(folder))


@dataclass(frozen=True)
class Stored:
    """Shuffled shards in the store."""

    files: tuple[ArtifactFile, ...]
    shards: tuple[tuple[str, int], ...]
    """(path in the artifact, rows)."""
    documents: int
    tail_tokens: int
    padding_tokens: int
    reused: dict[str, int]
    """Portions and groups of shards that an earlier attempt had finished."""


def store_shards(portions: Sequence[Any], pack_portion: Callable[[Any], Rows], deal: Deal) -> Stored:
    """Pack every portion (JSON values) in a task of its own, deal the rows to shards at random, shuffle and store each shard.

    What comes out depends on the portions, the number of shards and the seed, never on the order in which tasks end. Through Ray
    go names and places in files; a portion's rows go from its task to the store, and from there to the tasks that write shards.
    """
    dealt = _each([json.dumps(portion) for portion in portions], partial(_deal, pack_portion=pack_portion, deal=deal))
    spans = [json.dumps([asdict(span) for span in segments(dealt, group)]) for group in range(deal.groups)]
    groups: list[Group] = _each(spans, partial(_write, deal=deal))
    return Stored(
        files=tuple(file for group in groups for file in group.files),
        shards=tuple(shard for group in groups for shard in group.shards),
        documents=sum(part.documents for part in dealt),
        tail_tokens=sum(part.tail_tokens for part in dealt),
        padding_tokens=sum(part.padding_tokens for part in dealt),
        reused={"portions": sum(part.reused for part in dealt), "groups": sum(group.reused for group in groups)},
    )


def _deal(number: int, portion: str, pack_portion: Callable[[Any], Rows], deal: Deal) -> Dealt:
    return deal_portion(deal, number, lambda: pack_portion(json.loads(portion)))


def _write(number: int, spans: str, deal: Deal) -> Group:
    return write_group(deal, number, [Segment(**span) for span in json.loads(spans)])


def _each(jobs: list[str], do: Callable[[int, str], Any]) -> list[Any]:
    """`do(number, job)` for every job, one Ray task each; the answers in the order of the jobs."""

    def run(row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["number"], "answer": pickle.dumps(do(row["number"], row["job"]))}

    rows = [{"number": number, "job": job} for number, job in enumerate(jobs)]
    answers = ray.data.from_items(rows, override_num_blocks=len(rows)).map(run, num_cpus=PACK_CPUS).take_all()
    return [pickle.loads(row["answer"]) for row in sorted(answers, key=lambda row: int(row["number"]))]


def batches_of_blocks(start: int, stop: int, batch_bytes: int) -> list[tuple[int, int]]:
    """Batches [start, stop) cut into runs (first, end), one for each block of a rank; `batch_bytes`: a rank's part of a batch."""
    runs, size, most = [], 1, max(1, BLOCK_BYTES // batch_bytes)
    while start < stop:
        end = min(stop, start + size)
        runs.append((start, end))
        start, size = end, min(2 * size, most)
    return runs


class _Blocks(Datasource):  # type: ignore[misc]
    """Blocks of runs of batches, run-major and rank-minor, one read task each."""

    def __init__(self, feed: Any, runs: list[tuple[int, int]], world_size: int, per_rank: int, row_bytes: int) -> None:
        self._feed, self._runs, self._world_size = feed, runs, world_size
        self._per_rank, self._row_bytes = per_rank, row_bytes

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> list[ReadTask]:
        return [
            ReadTask(functools.partial(_read, self._feed, run, rank, self._world_size), self._meta(run))
            for run in self._runs
            for rank in range(self._world_size)
        ]

    def _meta(self, run: tuple[int, int]) -> BlockMetadata:
        rows = (run[1] - run[0]) * self._per_rank
        return BlockMetadata(num_rows=rows, size_bytes=rows * self._row_bytes, input_files=None, exec_stats=None)


def _read(feed: ray.ObjectRef, run: tuple[int, int], rank: int, world_size: int) -> list[pa.Table]:
    found, (start, stop) = _fetched(feed), run
    fetch_shards_of(found, stop + READ_AHEAD * (stop - start))
    return [pa.concat_tables(read_block(found, batch, rank, world_size) for batch in range(*run)).combine_chunks()]


@functools.lru_cache(maxsize=2)
def _fetched(feed: ray.ObjectRef) -> Feed:
    """The feed, unpacked once a process: what its order works out for one block serves the next."""
    found: Feed = ray.get(feed)
    return found


def runs_of(start: int, stop: int, passed_over: Collection[int], batch_bytes: int) -> list[tuple[int, int]]:
    """batches_of_blocks of every stretch of [start, stop) that has none of the batches passed over."""
    edges = [start - 1, *sorted(batch for batch in passed_over if start <= batch < stop), stop]
    return [run for before, end in itertools.pairwise(edges) for run in batches_of_blocks(before + 1, end, batch_bytes)]


class _Rests(ExecutionCallback):  # type: ignore[misc]
    """Lets the executor rest, longer each time, while nothing moves: in Ray 2.60 it takes a core while a feed is ahead.

    It waits for reads that run, but where all that ran are done and wait for room it looks again at once.
    """

    def __init__(self) -> None:
        self._moved, self._rest_s = list[tuple[int, ...]](), 0.0

    def on_execution_step(self, executor: Any) -> None:
        moved: list[tuple[int, ...]] = [
            (op.metrics.num_tasks_submitted, op.metrics.num_tasks_finished, op.metrics.num_outputs_taken)
            for op in executor._topology
        ]
        self._rest_s = min(IDLE_LOOK_S, 2 * self._rest_s + 0.001) if moved == self._moved else 0.0
        self._moved = moved
        time.sleep(self._rest_s)


def blocks(feed: Feed, start: int, stop: int, world_size: int, passed_over: Collection[int] = ()) -> "ray.data.Dataset":
    """Batches [start, stop) but those passed over, as an ordered Ray Dataset, to be split over `world_size` ranks.

    Memory, in Ray's object store: READ_AHEAD blocks for each rank that are read and wait, those that are being read, and those
    that a rank has taken ahead (`prefetch_batches`). A block has BLOCK_BYTES, or one batch of its rank where that is more. Ray
    Data starts no read beyond that.
    """
    per_rank = rank_rows(feed.order.batch_rows, world_size)
    row_bytes = feed.row_tokens * np.dtype(feed.dtype).itemsize + feed.row_tokens // 8 + 256
    runs = runs_of(start, stop, passed_over, per_rank * row_bytes)
    dataset = ray.data.read_datasource(
        _Blocks(ray.put(feed), runs, world_size, per_rank, row_bytes),
        override_num_blocks=len(runs) * world_size,
        concurrency=READERS_A_RANK * world_size,
        num_cpus=TASK_CPUS,
    )
    bound = READ_AHEAD * world_size * max(BLOCK_BYTES, per_rank * row_bytes)
    dataset.context.execution_options = ExecutionOptions(
        preserve_order=True, resource_limits=ExecutionResources(object_store_memory=bound)
    )
    dataset.context.custom_execution_callback_classes = [_Rests]
    return dataset


class OrderedData(DataConfig):  # type: ignore[misc]
    """Gives every training worker its slices of the batches from the resume point on.

    Ray Train makes a fresh copy at every start of a worker group and asks it for two names: `resume` (the same object for every
    rank, decided here once) and `train` (an iterator that starts at that point, without the batches that the point passes over).
    Model and data thus cannot start at different places.
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
        point, passed_over = self._point, getattr(self._point, "passed_over", ())
        dataset = blocks(self._feed, point.batch_index, self._batches, world_size, passed_over)
        parts = dataset.streaming_split(world_size, equal=True)
        return [{"train": part} for part in parts]


def heldout_rows(tokens: Artifact) -> pa.Table:
    """Held-out documents of a token artifact: columns id, tokens."""
    return read_table(tokens.uri(HELDOUT))
