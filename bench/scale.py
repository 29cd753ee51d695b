"""What docs/scale.md rests on: the paper's recipe at 32 and at 512 workers, as this code deals, reads and sends it.

    python bench/scale.py [--recipe recipes/pmc_llama_13b.yaml] [--tokens 75e9] [--workers 32,512]

Measured here: the CPU time of one global batch's order, and the size of the feed that every reader unpacks, for a corpus of so
many tokens. Worked out: rows without weight, rows at once, read tasks, bytes over the network. Nothing is trained or read.
"""

import argparse
import pickle
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform")]

from medschool.cluster.fit import parameters  # noqa: E402
from medschool.cluster.memory import second_copy_bytes  # noqa: E402
from medschool.procedure import row_tokens, training  # noqa: E402
from medschool.recipe import Recipe, load  # noqa: E402
from medschool.tokens.on_ray import BLOCK_BYTES, READ_AHEAD, READERS_A_RANK, runs_of  # noqa: E402
from medschool.tokens.order import Order  # noqa: E402
from medschool.tokens.stream import Feed, rank_rows  # noqa: E402
from medschool.train.network import DEEPSPEED_BUCKET, bucket_elements  # noqa: E402
from medschool.train.zero import micro_batch_rows  # noqa: E402

STEPS = 4070
"""Of the paper's training: medschool plan recipes/pmc_llama_13b.yaml."""
MACHINE_WORKERS = 8


def corpus(recipe: Recipe, tokens: float) -> tuple[Order, Feed]:
    """The order and the feed over shards of the recipe's size that hold so many tokens, dealt to its sources by their weights."""
    weights = next(variant.weights for variant in recipe.variants.values() if variant.weights)
    rows, per_shard, whole = tokens / recipe.tokens.row_tokens, recipe.tokens.rows_per_shard, sum(weights.values())
    shards = {name: (per_shard,) * max(1, round(rows * part / whole / per_shard)) for name, part in weights.items()}
    order = Order(weights, recipe.pretrain.batch_rows, shards, recipe.seed)
    uris = {
        name: tuple(
            f"s3://bucket/medschool/artifacts/tokens/{name}/{'0' * 16}/shards/{shard:05}.arrow" for shard in range(len(of))
        )
        for name, of in shards.items()
    }
    return order, Feed(order, uris, recipe.tokens.row_tokens, "uint16", {uri: "0" * 64 for some in uris.values() for uri in some})


def lines(recipe: Recipe, workers: int) -> Iterator[str]:
    """What the group of so many workers takes and sends."""
    rows, length = training(recipe, "pretrain").batch_rows, row_tokens(recipe, "pretrain")
    share, micro = rank_rows(rows, workers), micro_batch_rows(recipe, "pretrain", workers)
    row_bytes = length * 2 + length // 8 + 256
    runs = runs_of(0, STEPS, (), share * row_bytes)
    assert recipe.model.shape is not None
    weights = 2 * parameters(recipe.model.shape)
    second = second_copy_bytes(recipe.model.shape, recipe.cluster, "bf16", workers, workers // MACHINE_WORKERS)
    blocks = READ_AHEAD * workers * max(BLOCK_BYTES, share * row_bytes)
    yield f"{workers} workers on {workers // MACHINE_WORKERS} machines"
    yield f"  rows           {share} a worker, of {rows}; {share * workers / rows - 1:.1%} more than that are rows without weight"
    yield f"  micro-batches  {share // micro} of {micro} rows"
    yield f"  read tasks     {len(runs) * workers:,}, {READERS_A_RANK * workers:,} at once, {blocks / 2**30:.1f} GiB wait"
    passes = share // micro
    gb = [3 * passes * weights / 1e9, (1 + passes) * weights / 1e9]
    yield f"  weights        {weights / 1e9:.1f} GB; over each network {gb[0]:,.0f} GB a step, {gb[0] / passes:.0f} a pass;"
    yield f"                 with secondary partitions of {second / 2**30:.1f} GiB a worker {gb[1]:,.0f} and {gb[1] / passes:.1f}"
    buckets = bucket_elements(workers, 2) / 1e6, DEEPSPEED_BUCKET / 1e6
    yield f"  bucket         {buckets[0]:.0f} million elements on Ethernet, {buckets[1]:.0f} with RDMA"
    yield f"  state          {14 * parameters(recipe.model.shape) / workers / 1e9:.2f} GB a worker in {2 * workers:,} files"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(ROOT / "recipes" / "pmc_llama_13b.yaml"))
    parser.add_argument("--tokens", type=float, default=75e9)
    parser.add_argument("--workers", default="32,512")
    parser.add_argument("--batches", type=int, default=40)
    asked = parser.parse_args()
    recipe = load(Path(asked.recipe))
    order, feed = corpus(recipe, asked.tokens)
    times = []
    for batch in range(asked.batches):
        began = time.process_time()
        order.batch(batch)
        times.append(1e3 * (time.process_time() - began))
    shards = sum(map(len, feed.shard_uris.values()))
    print(f"{asked.tokens / 1e9:g}B tokens: {sum(order.epoch_rows.values()):,} rows in {shards:,} shards")
    print(f"  order of a batch of {order.batch_rows} rows  {statistics.median(times):.2f} ms, the first one {times[0]:.1f} ms")
    print(f"  feed, unpacked by every reader    {len(pickle.dumps(feed)) / 1e6:.1f} MB")
    for workers in map(int, asked.workers.split(",")):
        print("\n".join(lines(recipe, workers)))


if __name__ == "__main__":
    main()
