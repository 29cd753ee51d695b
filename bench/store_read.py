"""How fast s3fs and pyarrow read from the local store, side by side: whole objects, and rows of token shards by range.

Run with the services up (`medschool up`): it puts its own objects under s3://medschool/bench, reads them interleaved, and prints
the median of each and the ratio. A ratio above 1 means pyarrow is faster.
"""

import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.fs

from medschool import s3, storage
from medschool.cluster import local, state
from medschool.tokens.pack import Rows
from medschool.tokens.shards import ipc_bytes, rows_table

ROUNDS = 9
ROW_TOKENS = 2048
BASE = "s3://medschool/bench"


def main() -> None:
    os.environ.update(local.environment(state.home()))
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    arrow = pa.fs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1")
    big, shard = f"{BASE}/64MiB.bin", f"{BASE}/shard.arrow"
    storage.write_bytes(big, os.urandom(64 * 2**20))
    rows = Rows(np.zeros((4096, ROW_TOKENS), np.uint16), [["x"]] * 4096, [[ROW_TOKENS]] * 4096, 0)
    storage.write_bytes(shard, ipc_bytes(rows_table(rows, np.dtype(np.uint16))))

    def whole_s3fs() -> None:
        storage.read_bytes(big)

    def whole_arrow() -> None:
        with arrow.open_input_file(big.removeprefix("s3://")) as file:
            file.read()

    def batch_s3fs() -> None:
        file = s3.filesystem(shard).open(shard, "rb", cache_type="readahead", block_size=2**18)
        pa.ipc.open_file(file).get_batch(7)

    def batch_arrow() -> None:
        pa.ipc.open_file(arrow.open_input_file(shard.removeprefix("s3://"))).get_batch(7)

    try:
        compare("whole object of 64 MiB", whole_s3fs, whole_arrow)
        compare("one record batch (256 rows, 1 MiB) of a 16 MiB shard, opening included", batch_s3fs, batch_arrow)
    finally:
        storage.delete_prefix(BASE)


def compare(name: str, s3fs: Callable[[], None], arrow: Callable[[], None]) -> None:
    """Interleaved rounds after one warm-up each; medians in ms with the spread."""
    times: dict[str, list[float]] = {"s3fs": [], "pyarrow": []}
    for number in range(ROUNDS + 1):
        for label, read in (("s3fs", s3fs), ("pyarrow", arrow)):
            began = time.perf_counter()
            read()
            if number:
                times[label].append(1000 * (time.perf_counter() - began))
    medians = {label: statistics.median(values) for label, values in times.items()}
    print(name)
    for label, values in times.items():
        print(f"  {label:<8} {medians[label]:8.1f} ms   [{min(values):.1f}, {max(values):.1f}]   n={len(values)}")
    print(f"  s3fs time / pyarrow time  {medians['s3fs'] / medians['pyarrow']:.2f}")


if __name__ == "__main__":
    main()
