"""Memory of the data plane at two sizes of corpus: it must not grow with it.

The stages `corpus`, `duplicates` and `tokens` run as jobs run them, in a Ray of two cores, on JSON lines of MEDLINE abstracts:
once on MEGABYTES of text and once on ten times that. No two documents are copies: all but the first of each abstract have its
words shuffled. A thread reads, four times a second, the memory that is a process's own (USS), of the driver and of every Ray
worker, and the object store. Printed are the largest worker, the largest sum, and the seconds, for each stage and size.

`python bench/memory.py [--megabytes 30] [--store URI]`; the store is MEDSCHOOL_STORE's, or a folder with raw/medline/*.xml.gz and
raw/models/smollm2-135m-instruct, as `medschool fetch quickstart` puts them. Ten minutes on two cores.
"""

import argparse
import gzip
import itertools
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from side_by_side import in_fresh_process, machine

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

SOURCES = ("books", "papers", "general")
STAGES = ("corpus", "duplicates", "tokens")
FILE_BYTES = 10e6
PERIOD_S = 0.25


@dataclass
class Peak:
    """The most that was seen, in MB."""

    worker: float = 0
    together: float = 0
    objects: float = 0


@contextmanager
def watched() -> Iterator[Peak]:
    """Read memory in a thread until the block ends."""
    peak, ended = Peak(), threading.Event()

    def watch() -> None:
        while not ended.wait(PERIOD_S):
            workers = [own_megabytes(process) for process in psutil.process_iter(["name"]) if is_worker(process)]
            peak.worker = max(peak.worker, *workers, 0)
            peak.together = max(peak.together, sum(workers) + own_megabytes(psutil.Process()))
            peak.objects = max(peak.objects, object_store_megabytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def is_worker(process: psutil.Process) -> bool:
    return str(process.info["name"]).startswith("ray::")


def own_megabytes(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().uss) / 1e6
    except psutil.Error:
        return 0.0


def object_store_megabytes() -> float:
    """Shared pages that the raylet has touched."""
    found = [process.memory_info().shared for process in psutil.process_iter(["name"]) if process.info["name"] == "raylet"]
    return max(found, default=0) / 1e6


def write_texts(texts: list[str], megabytes: float, folder: Path) -> int:
    """JSON lines for three sources in turn, in files of FILE_BYTES; the number of documents."""
    count = 0
    for number, lines in enumerate(in_files(texts, megabytes)):
        path = folder / "raw" / SOURCES[number % len(SOURCES)] / f"{number}.jsonl.gz"
        path.write_bytes(gzip.compress("".join(lines).encode(), 1))
        count += len(lines)
    return count


def in_files(texts: list[str], megabytes: float) -> Iterator[list[str]]:
    draw, lines, size, whole = random.Random(0), list[str](), 0, 0.0
    for number in itertools.count():
        words = texts[number % len(texts)].split()
        if number >= len(texts):
            draw.shuffle(words)
        text = " ".join(words)
        lines.append(json.dumps({"text": text, "meta": {"url": f"doc{number}"}}) + "\n")
        size += len(text)
        if size >= min(FILE_BYTES, megabytes * 1e6 / len(SOURCES)):
            yield lines
            whole, size, lines = whole + size, 0, []
        if whole >= megabytes * 1e6:
            return


def write_store(store: str, texts: list[str], megabytes: float, folder: Path) -> int:
    from medschool import storage

    for name in SOURCES:
        (folder / "raw" / name).mkdir(parents=True)
    model = folder / "raw" / "models" / "smollm2-135m-instruct"
    model.mkdir(parents=True)
    for info in storage.require_files(storage.join(store, "raw/models/smollm2-135m-instruct")):
        storage.download(info.uri, model / info.uri.rsplit("/", 1)[1])
    recipe = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
    for name, source in recipe["sources"].items():
        source["files"] = [{"uri": f"raw/{name}/*.jsonl.gz", "format": "redpajama", "licence": "public-domain"}]
        source["licences"] = ["public-domain"]
    recipe["clean"] = {"min_chars": 100}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return write_texts(texts, megabytes, folder)


def measured(folder: Path) -> dict[str, dict[str, float]]:
    """In a process of its own: every stage on a Ray that starts with the first."""
    import ray

    from jobs.run import Run
    from medschool.board import printing
    from medschool.recipe import load

    os.environ["MEDSCHOOL_CACHE"] = str(folder / "cache")
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING,
        object_store_memory=500_000_000, _temp_dir=str(folder / "ray"),
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    found = {}
    with printing(lambda line: None) as board:
        run = Run(load(folder / "recipe.yaml"), str(folder), board)
        for stage in ("model", "tokenizer", *STAGES):
            began = time.perf_counter()
            with watched() as peak:
                run.make(stage)
            if stage in STAGES:
                found[stage] = vars(peak) | {"seconds": time.perf_counter() - began}
    ray.shutdown()
    return found


def main() -> None:
    from tokens import documents_of

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=30, help="of the smaller corpus")
    parser.add_argument("--store", default=os.environ.get("MEDSCHOOL_STORE"))
    asked = parser.parse_args()
    if not asked.store:
        parser.exit(2, "no store: set MEDSCHOOL_STORE, or give --store\n")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    folder = Path(tempfile.mkdtemp(prefix="ms-bench-", dir="/tmp"))  # short: Ray puts Unix sockets below it
    os.environ.update(
        {
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_LOG_LEVEL": "CRITICAL",
            "RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT), str(ROOT / "bench")]),
        }
    )  # fmt: skip
    try:
        print(json.dumps(machine("ray", "pyarrow")))
        texts = [document.text for document in itertools.islice(documents_of(asked.store), 20_000)]
        for times in (1, 10):
            count = write_store(asked.store, texts, asked.megabytes * times, folder / str(times))
            print(f"{asked.megabytes * times:.0f} MB of text, {count:,} documents")
            for stage, figures in in_fresh_process(measured, folder / str(times)).items():
                print(f"  {stage:<11}" + "  ".join(f"{name} {value:7.1f}" for name, value in figures.items()))
            shutil.rmtree(folder / str(times))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
