"""How fast shuffled rows of tokens come from a distant store to two ranks, and how soon after a start in the middle.

The same 100 MB of tokens lie in one S3 store in the form that each loader writes itself. A proxy in front of it adds 20 ms to
every request and lets 200 MB/s through. Every arm gets two ranks, shuffles, starts with a cold cache, and hands out batches of
256 rows of 2048 tokens as arrays; where not every row arrives exactly once, that is printed beside the figures.

    whole       tokens of the epoch over its time, the first batch included: the figure to compare
    steady      tokens of all batches but the first, over the slowest rank's time for them; what a loader fetched ahead during
                its first batch comes from the cache: where this is above the line's 100 M tokens/s it says nothing of the store
    p99         of the waits for those batches
    first       seconds until the first batch, with imports done and (ours) Ray's workers warm
    resume      the same for a start at 60% of the epoch

Arms take turns; medians, and for ratios a 95% interval of bootstrapped medians. Ratios above 1 are good for ours, also where they
are time ratios (theirs / ours). Losses are printed as they are.

`python bench/stream.py [--reps 5] [--arms ours,datasets,streaming,litdata] [--megabytes 100]`. The two libraries that medschool
does not depend on are skipped where they cannot be imported: `pip install streaming-community==0.14.2 litdata==0.2.76` gets them.
"""

import argparse
import importlib.util
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SEARCHED = [str(ROOT / "platform"), str(ROOT / "tests")]
sys.path[:0] = SEARCHED

ROW_TOKENS, SHARD_ROWS, RANK_ROWS, RANKS = 2048, 4096, 256, 2
LATENCY_S, BYTES_PER_S = 0.02, 200e6
RESUME_AT = 0.6
BUCKET = "s3://medschool"
Stream = tuple[Iterator[np.ndarray], Any]
"""Batches of a rank, and the loader that knows its state, if it can be asked."""
PEERS = {"streaming": "streaming-community==0.14.2", "litdata": "litdata==0.2.76"}


def shard_tokens(shard: int) -> np.ndarray:
    return np.random.default_rng(shard).integers(0, 50_000, (SHARD_ROWS, ROW_TOKENS)).astype(np.uint16)


def take(
    batches: Iterable[np.ndarray], began: float, limit: int | None = None, at: Callable[[int], None] = lambda n: None
) -> dict[str, Any]:
    """Waits in seconds, rows and checksum of a stream of arrays (rows, ROW_TOKENS); stops after `limit` batches."""
    waits, rows, checksum = [], 0, 0
    for number, batch in enumerate(batches, 1):
        waits.append(time.perf_counter() - began)
        rows, checksum = rows + len(batch), checksum + int(batch.sum(dtype=np.uint64))
        at(number)
        if number == limit:
            break
        began = time.perf_counter()
    return {"waits": waits, "rows": rows, "checksum": checksum}


# ---- ours


def write_ours(prefix: str, shards: int) -> None:
    from medschool import storage
    from medschool.tokens.pack import Rows
    from medschool.tokens.shards import ipc_bytes, rows_table

    for shard in range(shards):
        tokens = shard_tokens(shard)
        rows = Rows(
            tokens, np.ones(tokens.shape, bool), [[f"{row}"] for row in range(SHARD_ROWS)], [[ROW_TOKENS]] * SHARD_ROWS, 0
        )
        storage.write_bytes(f"{prefix}/{shard:05}.arrow", ipc_bytes(rows_table(rows, np.dtype(np.uint16))))


def run_ours(prefix: str, shards: int, start: float, cache: Path, state: Path, seed: int) -> list[dict[str, Any]]:
    import ray

    from medschool.tokens.on_ray import blocks
    from medschool.tokens.order import Order
    from medschool.tokens.stream import Feed

    uris = tuple(f"{prefix}/{shard:05}.arrow" for shard in range(shards))
    feed = Feed(Order({"x": 1}, RANK_ROWS * RANKS, {"x": (SHARD_ROWS,) * shards}, seed), {"x": uris}, ROW_TOKENS, "uint16")
    batches = shards * SHARD_ROWS // (RANK_ROWS * RANKS)
    began = time.time()
    parts = blocks(feed, int(start * batches), batches, RANKS).streaming_split(RANKS, equal=True)
    found: list[dict[str, Any]] = ray.get(
        [rank.take.remote(part, began, 1 if start else None) for rank, part in zip(_our_ranks(), parts, strict=True)]
    )
    return found


_actors: list[Any] = []


def _our_ranks() -> list[Any]:
    """Two actors, started once."""
    if not _actors:
        import ray

        class Rank:
            def take(self, part: Any, began: float, limit: int | None) -> dict[str, Any]:
                from medschool.tokens.shards import tokens_of

                tables = part.iter_batches(batch_size=RANK_ROWS, batch_format="pyarrow", prefetch_batches=2)
                late = time.time() - began
                found = take((tokens_of(table) for table in tables), time.perf_counter() - late, limit)
                return found

        _actors.extend(ray.remote(num_cpus=0.5)(Rank).remote() for _ in range(RANKS))
    return _actors


# ---- the others: each runs its ranks as two processes


def write_datasets(prefix: str, shards: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from medschool import storage

    for shard in range(shards):
        flat = pa.array(shard_tokens(shard).reshape(-1))
        sink = pa.BufferOutputStream()
        table = pa.table({"tokens": pa.FixedSizeListArray.from_arrays(flat, ROW_TOKENS)})
        pq.write_table(table, sink, row_group_size=RANK_ROWS, compression="none", use_dictionary=False)
        storage.write_bytes(f"{prefix}/{shard:05}.parquet", bytes(sink.getvalue()))


def datasets_batches(prefix: str, shards: int, rank: int, start: float, cache: Path, state: Path) -> Stream:
    from datasets import load_dataset
    from datasets.distributed import split_dataset_by_node

    files = [f"{prefix}/{shard:05}.parquet" for shard in range(shards)]
    options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    stream = load_dataset(
        "parquet", data_files=files, split="train", streaming=True, storage_options=options, cache_dir=str(cache)
    )
    mine = split_dataset_by_node(stream, rank, RANKS).shuffle(seed=1, buffer_size=2 * RANK_ROWS).with_format("numpy")
    if start:
        mine = mine.skip(int(start * shards * SHARD_ROWS / RANKS))
    return (np.asarray(batch["tokens"]) for batch in mine.iter(RANK_ROWS)), None


def write_streaming(prefix: str, shards: int) -> None:
    _import_streaming()
    from streaming.base import MDSWriter

    folder = tempfile.mkdtemp(prefix="bench-mds-")
    shape = f"ndarray:uint16:{ROW_TOKENS}"
    with MDSWriter(columns={"tokens": shape}, out=folder, size_limit=SHARD_ROWS * ROW_TOKENS * 2) as writer:
        for shard in range(shards):
            for row in shard_tokens(shard):
                writer.write({"tokens": row})
    _upload(folder, prefix)


def streaming_batches(prefix: str, shards: int, rank: int, start: float, cache: Path, state: Path) -> Stream:
    _import_streaming()
    from streaming.base import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(remote=prefix, local=str(cache), shuffle=True, batch_size=RANK_ROWS, num_canonical_nodes=1)
    loader = StreamingDataLoader(
        dataset, batch_size=RANK_ROWS, num_workers=1, prefetch_factor=4, multiprocessing_context="fork", collate_fn=_stack_columns
    )
    if start:
        loader.load_state_dict(json.loads(state.read_text()))
    return (batch.numpy() for batch in loader), loader


def _stack_columns(samples: list[dict[str, np.ndarray]]) -> Any:
    """A tensor, because the loader counts the rows of other things by the length of their first item."""
    import torch

    return torch.from_numpy(np.stack([sample["tokens"] for sample in samples]))


def _import_streaming() -> None:
    """Its package imports readers of images, which import torchvision; a loader of tokens does without."""
    if importlib.util.find_spec("torchvision") is None:
        sys.modules.setdefault("streaming.vision", types.ModuleType("streaming.vision"))


def write_litdata(prefix: str, shards: int) -> None:
    import torch
    from litdata.streaming.item_loader import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    folder = tempfile.mkdtemp(prefix="bench-lit-")
    writer = BinaryWriter(folder, chunk_size=SHARD_ROWS * ROW_TOKENS, item_loader=TokensLoader(ROW_TOKENS))
    for index, row in enumerate(row for shard in range(shards) for row in shard_tokens(shard)):
        writer.add_item(index, torch.from_numpy(row))
    writer.done()
    writer.merge()
    _upload(folder, prefix)


def litdata_batches(prefix: str, shards: int, rank: int, start: float, cache: Path, state: Path) -> Stream:
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # its fast client takes https only, and has no setting for that
    options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "region_name": os.environ["AWS_REGION"]}
    dataset = StreamingDataset(
        prefix, cache_dir=str(cache), item_loader=TokensLoader(ROW_TOKENS), shuffle=True, storage_options=options, drop_last=False
    )
    loader = StreamingDataLoader(dataset, batch_size=RANK_ROWS, num_workers=1, prefetch_factor=4, multiprocessing_context="fork")
    if start:
        loader.load_state_dict(json.loads(state.read_text()))
    return (batch.numpy() for batch in loader), loader


def _upload(folder: str, prefix: str) -> None:
    from medschool.artifact import upload_folder

    upload_folder(prefix, Path(folder))
    shutil.rmtree(folder)


BATCHES: dict[str, Callable[..., tuple[Iterator[np.ndarray], Any]]] = {
    "datasets": datasets_batches,
    "streaming": streaming_batches,
    "litdata": litdata_batches,
}
WRITE = {"ours": write_ours, "datasets": write_datasets, "streaming": write_streaming, "litdata": write_litdata}


def _rank(
    arm: str, prefix: str, shards: int, rank: int, start: float, cache: Path, state: Path, port: int, barrier: Any, out: Any
) -> None:
    """One rank of a loader, in a process of its own; the clock starts when all ranks are there and their imports done."""
    place = {"RANK": rank, "GLOBAL_RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "NNODES": 1}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "S3_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]})
    if arm == "streaming":
        _import_streaming()
    __import__(arm)
    barrier.wait(120)
    began = time.perf_counter()
    batches, loader = BATCHES[arm](prefix, shards, rank, start, cache, state)
    last = int(RESUME_AT * shards * SHARD_ROWS / RANKS / RANK_ROWS)

    def keep_state(number: int) -> None:
        if loader is not None and not start and rank == 0 and number == last:
            state.write_text(json.dumps(loader.state_dict()))

    out.put((rank, take(batches, began, 1 if start else None, keep_state)))
    out.close()
    out.join_thread()
    barrier.wait(120)  # a loader's shared memory must outlive the other rank's
    os._exit(0)  # what a loader left running is not waited for


def run_other(arm: str, prefix: str, shards: int, start: float, cache: Path, state: Path, port: int) -> list[dict[str, Any]]:
    spawn = multiprocessing.get_context("spawn")
    barrier, out = spawn.Barrier(RANKS), spawn.Queue()
    ranks = [
        spawn.Process(target=_rank, args=(arm, prefix, shards, rank, start, cache, state, port, barrier, out))
        for rank in range(RANKS)
    ]
    for process in ranks:
        process.start()
    try:
        found = dict(out.get(timeout=180) for _ in ranks)
        for process in ranks:
            process.join(30)
    finally:
        for process in ranks:
            process.kill()
    return [found[rank] for rank in range(RANKS)]


# ---- the comparison


def figures(arm: str, shards: int, rep: int, folder: Path, port: int) -> dict[str, float]:
    """One full epoch and one start at 60%, each with a cold cache."""
    prefixes = [f"{BUCKET}/{arm}"] * 2
    if arm == "ours":  # Ray's workers stay: new names, so that nothing of the run before is at hand
        prefixes = [f"{BUCKET}/ours/{rep}/{run}" for run in ("full", "resume")]
    runs = []
    for prefix, start in zip(prefixes, (0.0, RESUME_AT), strict=True):
        cache = folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        args = (prefix, shards, start, cache, folder / f"{arm}.json")
        runs.append(run_ours(*args, seed=rep) if arm == "ours" else run_other(arm, *args, port))
    full, resumed = runs
    rows, checksum = (sum(rank[name] for rank in full) for name in ("rows", "checksum"))
    expected = sum(int(shard_tokens(shard).sum(dtype=np.uint64)) for shard in range(shards))
    if (rows, checksum) != (shards * SHARD_ROWS, expected):
        print(f"  {arm}: {rows} rows arrived of {shards * SHARD_ROWS}; checksum {'equal' if checksum == expected else 'differs'}")
    waits = [rank["waits"][1:] for rank in full]
    tokens = sum(map(len, waits)) * RANK_ROWS * ROW_TOKENS
    return {
        "steady Mtok/s": tokens / max(map(sum, waits)) / 1e6,
        "p99 wait ms": 1000 * float(np.quantile(np.concatenate(waits), 0.99)),
        "first s": max(rank["waits"][0] for rank in full),
        "resume s": max(rank["waits"][0] for rank in resumed),
        "whole Mtok/s": rows * ROW_TOKENS / max(sum(rank["waits"]) for rank in full) / 1e6,
    }


def interval(ours: list[float], theirs: list[float], invert: bool) -> tuple[float, float, float]:
    """Ratio of medians, above 1 when ours is better, with a bootstrapped 95% interval."""
    draw, (a, b) = np.random.default_rng(0), (np.array(ours), np.array(theirs))
    picks = [np.median(draw.choice(a, len(a))) / np.median(draw.choice(b, len(b))) for _ in range(2000)]
    ratio, low, high = np.median(a) / np.median(b), *np.quantile(picks, (0.025, 0.975))
    return (1 / ratio, 1 / high, 1 / low) if invert else (ratio, low, high)


def available(arms: list[str]) -> list[str]:
    kept = []
    for arm in arms:
        if arm in PEERS and importlib.util.find_spec(arm) is None:
            print(f"{arm}: not importable, skipped; `pip install {PEERS[arm]}` gets it")
        else:
            kept.append(arm)
    if "streaming" in kept and importlib.util.find_spec("torchvision") is None:
        print("streaming: torchvision is missing; an empty module stands in for streaming.vision, which nothing here uses")
    return kept


def report(found: dict[str, list[dict[str, float]]]) -> None:
    for name in next(iter(found.values()))[0]:
        print(name)
        for arm, reps in found.items():
            values = [rep[name] for rep in reps]
            line = f"  {arm:<10} {np.median(values):9.2f}   [{min(values):.2f}, {max(values):.2f}]   n={len(values)}"
            if arm != "ours" and "ours" in found and not name.startswith("MB"):
                ratio = interval([rep[name] for rep in found["ours"]], values, invert=not name.endswith("tok/s"))
                line += "   ours is {:.2f} [{:.2f}, {:.2f}] times as good".format(*ratio)
            print(line)


def _environment(folder: Path) -> dict[str, str]:
    paths = [*SEARCHED, str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")]
    return {
        "MEDSCHOOL_CACHE": str(folder / "cache"),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "RAY_AUTH_MODE": "disabled",
        "RAY_DATA_LOG_LEVEL": "CRITICAL",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started here ends
    parser = argparse.ArgumentParser()
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--arms", default="ours,datasets,streaming,litdata")
    parser.add_argument("--megabytes", type=int, default=100)
    asked = parser.parse_args()
    shards, arms = max(2, round(asked.megabytes * 1e6 / SHARD_ROWS / ROW_TOKENS / 4) * 2), available(asked.arms.split(","))
    folder = Path(tempfile.mkdtemp(prefix="ms-bench-", dir="/tmp"))
    os.environ.update(_environment(folder))
    import ray
    from faulty_store import Faults, faulty_store, seaweed

    try:
        with seaweed(folder / "home") as variables, faulty_store(variables["AWS_ENDPOINT_URL"]) as proxy:
            os.environ.update(variables)
            for arm in arms:
                turns = [f"ours/{rep}/{run}" for rep in range(-1, asked.reps) for run in ("full", "resume")]
                for run in turns if arm == "ours" else [arm]:
                    WRITE[arm](f"{BUCKET}/{run}", shards)
                print(f"{arm}: written", flush=True)
            os.environ["AWS_ENDPOINT_URL"] = proxy.url
            pace = Faults(latency_s=LATENCY_S, bytes_per_s=BYTES_PER_S)
            proxy.set(pace)
            if "ours" in arms:
                ray.init(
                    address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING,
                    object_store_memory=600_000_000, _temp_dir=str(folder / "ray"),
                )  # fmt: skip
                ray.data.DataContext.get_current().enable_progress_bars = False
                figures("ours", shards, -1, folder, 0)  # starts the workers
            found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
            for rep in range(asked.reps):
                for number, arm in enumerate(arms):
                    try:
                        proxy.set(pace)
                        found[arm].append(figures(arm, shards, rep, folder, 29_600 + (rep * 7 + number) % 300))
                        found[arm][-1]["MB through the proxy, both runs"] = proxy.counts()["bytes"] / 1e6
                    except Exception as error:
                        print(f"  {arm} failed in rep {rep}: {type(error).__name__}: {error}", flush=True)
                load = os.getloadavg()[0]
                print(f"rep {rep} (load {load:.1f}): " + json.dumps({arm: found[arm][-1:] for arm in arms}), flush=True)
            size, line = shards * SHARD_ROWS * ROW_TOKENS / 1e6, BYTES_PER_S / 1e6
            print(f"{size:.0f} M tokens, {RANKS} ranks, {LATENCY_S * 1000:.0f} ms, {line:.0f} MB/s")
            report({arm: reps for arm, reps in found.items() if reps})
            ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
