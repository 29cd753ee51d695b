"""How fast documents become shards of tokens on two cores: the tokens stage, datatrove, `datasets`, and the tokenizer alone.

Documents are MEDLINE abstracts, read from the store's raw files by the product's reader and cleaned by its steps, in two Parquet
files of equal size. All arms encode all of them with the same tokenizer and put an EOS behind each:

    ours        the tokens stage as jobs run it: held-out choice, gate, both passes through Ray Data, where/ tables, manifest
    plain       the same where gigatoken is not installed
    datatrove   ParquetReader and DocumentTokenizer, LocalPipelineExecutor(tasks=2, workers=2); its defaults, documents shuffled
    datasets    load, map(batched, num_proc=2) with the tokenizer's fastest call, save_to_disk; not shuffled, not packed
    raw         `tokenizers` encode_batch_fast on two threads, texts in memory, nothing written: the ceiling without gigatoken

Two vocabularies: the store's SmolLM2, and a BPE of LLaMA's format (byte fallback, no pre-tokenizer, 32,000 entries) trained on a
part of the text. gigatoken encodes both. Every arm runs in a fresh process, one at a time, in turns. In it are timed, in this
order: a first run over one megabyte (`first`: with the start of whatever it starts; Ray itself is up), the same again (`start`),
and the whole text. Files are on disk (fsync) before the clock stops. `whole` counts the tokens of all the text over all the time;
`steady` is the whole less the one megabyte, over the difference of their times: without what a job costs whatever its size.
`per CPU` is whole over the CPU seconds of the process and all below it, which other work on the machine disturbs less.

Before anything counts, each arm's output is compared with `encode_batch`, document by document (ours row by row, and where the
rows of a portion end), and again after each run. datatrove is tried with its workers' threads as they come and with one thread
each; the faster way is timed. Medians, and for ratios a 95% interval of bootstrapped medians; above 1 ours is faster.

Two arms more, by `--arms one_thread,two_threads`, say how a node's cores are best used: two processes that read, encode and pack
portions on one thread each, against one process with two threads.

`python bench/tokens.py [--reps 5] [--megabytes 33] [--store URI] [--json FILE]`; the store is MEDSCHOOL_STORE's, or a folder with
raw/medline/*.xml.gz and raw/models/smollm2-135m-instruct, as `medschool fetch quickstart` puts them. The stage works in portions
of 16 MiB: 33 MB are two, one for each core, as each core has many in a large corpus. Five reps take some ten minutes.
"""

import argparse
import functools
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import cpu_seconds, in_fresh_process, interval, machine, on_disk, spread

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "platform"))

CORES = 2
ROW_TOKENS = 2048
SMALL_BYTES = 1_000_000
VOCABULARY = 32_000
TRAINED_BYTES = 8_000_000
"""Text that the vocabulary is trained on."""
ENCODE_DOCUMENTS = 4_000
"""Texts given to `tokenizers` at once by the arm `raw`."""
SETTINGS = {
    "ours": {},
    "plain": {},
    "datatrove": {},
    "datatrove, one thread each": {"TOKENIZERS_PARALLELISM": "false"},
    "datasets": {},  # sets one thread a process itself
    "raw": {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(CORES)},
    "one_thread": {"TOKENIZERS_PARALLELISM": "false"},
    "two_threads": {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(CORES)},
}
LIBRARIES = ("ray", "tokenizers", "gigatoken", "datatrove", "datasets", "pyarrow")
DEFAULT_ARMS = "ours,plain,datatrove,datasets,raw"
SMOLLM2, LLAMA = "smollm2", "llama"
Run = Callable[[Path, Path], None]
"""From a store with documents/*.parquet to files below a folder."""
Ids = list[np.ndarray]


@dataclass(frozen=True)
class Job:
    """What an arm is given: `small` and `whole` are stores with a corpus each."""

    arm: str
    tokenizer: Path
    small: Path
    whole: Path
    out: Path


# ---- what goes in


def write_documents(store_uri: str, megabytes: float, folder: Path) -> list[str]:
    """Cleaned abstracts of so many bytes in all, in two files; their texts."""
    from medschool.corpus.pieces import Pieces
    from medschool.rows import DOCUMENT_SCHEMA

    room, texts, files = megabytes * 1e6, list[str](), list[Pieces]()
    size = 0
    for document in documents_of(store_uri):
        if size >= room:
            break
        if size >= len(files) * room / CORES:
            files.append(Pieces(folder / "documents" / f"{len(files):05}.parquet", DOCUMENT_SCHEMA))
        files[-1].put(document)
        texts.append(document.text)
        size += len(document.text.encode())
    for file in files:
        file.close()
    return texts


def documents_of(store_uri: str) -> Iterator[Any]:
    """Every abstract of the raw files that has text, once, cleaned; of any licence: nothing is trained here."""
    from medschool import storage
    from medschool.corpus.admit import Terms, admit
    from medschool.corpus.clean import Rules
    from medschool.corpus.medline import medline
    from medschool.rows import Document, Draft

    licences = frozenset({"nlm-medline", "publisher-copyright"})
    terms = Terms(Rules(100, licences), frozenset(), frozenset(), None, (), None)
    seen: set[str] = set()
    for info in storage.require_files(storage.join(store_uri, "raw/medline/*.xml.gz")):
        with storage.open_raw(info.uri, info.uri) as stream:
            for row in medline(stream, info.uri, "papers"):
                judged = admit(row, terms, None).row if isinstance(row, Draft) else row
                if isinstance(judged, Document) and judged.id not in seen:
                    seen.add(judged.id)
                    yield judged


def register(store: Path, tokenizer: Path, texts: Iterable[str]) -> None:
    """Put the documents of a store and a tokenizer down as what their stages made."""
    from medschool import artifact
    from medschool.artifact import ArtifactFile, Output, upload_folder

    def corpus(prefix: str) -> Output:
        files: tuple[ArtifactFile, ...] = upload_folder(prefix, store / "documents", "documents")
        return Output(files, {"chars": sum(map(len, texts))})

    artifact.make(str(store), "corpus/papers", tokenizer.name, {}, corpus)
    artifact.make(str(store), "tokenizer", tokenizer.name, {}, lambda prefix: Output(upload_folder(prefix, tokenizer)))


def fetch_tokenizer(store_uri: str, folder: Path) -> Path:
    from medschool import storage

    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        storage.download(storage.join(store_uri, "raw/models/smollm2-135m-instruct", name), folder / name)
    return folder


def train_tokenizer(texts: list[str], folder: Path) -> Path:
    """A tokenizer of LLaMA's format: BPE over whole texts, spaces as U+2581, unknown characters as bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tool = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tool.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tool.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")  # in training only
    tool.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, limit_alphabet=1000, show_progress=False)
    tool.train_from_iterator(up_to(texts, TRAINED_BYTES), trainer)
    raw = json.loads(tool.to_str())
    folder.mkdir()
    made = raw | {"pre_tokenizer": None, "added_tokens": raw["added_tokens"][:3]}
    (folder / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}), encoding="utf-8")
    return folder


def up_to(texts: list[str], size_bytes: int) -> list[str]:
    """The first texts, of so many bytes together."""
    ends = itertools.accumulate(len(text.encode()) for text in texts)
    return [text for text, end in zip(texts, ends, strict=True) if end <= size_bytes]


def texts_of(store: Path) -> list[str]:
    import pyarrow.parquet as pq

    tables = [pq.read_table(path, columns=["text"]) for path in sorted((store / "documents").iterdir())]
    return [text for table in tables for text in table.column("text").to_pylist()]


# ---- the arms: each gives a function from a store's documents to files below a folder, and says what ends with it


def ours(job: Job, ends: ExitStack) -> Run:
    import ray

    from medschool import artifact
    from medschool.recipe import load
    from medschool.tokens.on_ray import make_tokens

    os.environ["MEDSCHOOL_CACHE"] = str(job.out / "cache")
    if job.arm == "plain":
        sys.modules["gigatoken"] = None  # type: ignore[assignment]  # the gate is asked here; the tasks do as it says
    ray.init(
        address="local", num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING,
        object_store_memory=300_000_000, _temp_dir=str(job.out / "ray"),
    )  # fmt: skip
    ends.callback(ray.shutdown)
    ray.data.DataContext.get_current().enable_progress_bars = False
    recipe = load(ROOT / "recipes" / "quickstart.yaml", [f"tokens.row_tokens={ROW_TOKENS}"])

    def run(store: Path, out: Path) -> None:
        found = {name: artifact.find(str(store), name, job.tokenizer.name) for name in ("corpus/papers", "tokenizer")}
        inputs = {name: made for name, made in found.items() if made}
        work = str(job.out / f"work-{out.name}")
        artifact.make(str(out), "tokens/papers", "0", {}, lambda prefix: make_tokens(recipe, "papers", inputs, prefix, work))

    return run


def datatrove(job: Job, ends: ExitStack) -> Run:
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    file = str(job.tokenizer / "tokenizer.json")

    def run(store: Path, out: Path) -> None:
        reader = ParquetReader(str(store / "documents"), read_metadata=False)
        writer = DocumentTokenizer(str(out), file, eos_token=eos_of(job.tokenizer), seed=1)
        LocalPipelineExecutor([reader, writer], tasks=CORES, workers=CORES, logging_dir=str(job.out / f"log-{out.name}")).run()

    return run


def datasets(job: Job, ends: ExitStack) -> Run:
    import datasets as library

    library.disable_progress_bars()

    def run(store: Path, out: Path) -> None:
        files, cache = sorted(map(str, (store / "documents").iterdir())), str(job.out / f"cache-{out.name}")
        read = library.load_dataset("parquet", data_files=files, split="train", columns=["text"], cache_dir=cache)
        made = read.map(
            encode_batch, batched=True, num_proc=CORES, remove_columns=["text"], fn_kwargs={"folder": str(job.tokenizer)}
        )
        made.save_to_disk(str(out))

    return run


def encode_batch(batch: dict[str, list[str]], folder: str) -> dict[str, Ids]:
    tool = loaded(folder)
    return {"tokens": [np.append(ids, tool.eos_id).astype(tool.dtype) for ids in tool.encode(batch["text"])]}


@functools.lru_cache(maxsize=1)
def loaded(folder: str) -> Any:
    from medschool.tokens.tokenizer import load_tokenizer

    return load_tokenizer(Path(folder))


def raw(job: Job, ends: ExitStack) -> Run:
    tool = loaded(str(job.tokenizer)).raw
    texts = {store: texts_of(store) for store in (job.small, job.whole)}

    def run(store: Path, out: Path) -> None:
        some = texts[store]
        for start in range(0, len(some), ENCODE_DOCUMENTS):
            tool.encode_batch_fast(some[start : start + ENCODE_DOCUMENTS], add_special_tokens=False)

    return run


def one_thread(job: Job, ends: ExitStack) -> Run:
    spawn = multiprocessing.get_context("spawn")
    pools = [ends.enter_context(ProcessPoolExecutor(1, spawn)) for _ in range(CORES)]  # each has work, and so is warm

    def run(store: Path, out: Path) -> None:
        portions = packing(store, job.tokenizer, out)
        for future in [pool.submit(pack_one, *portion) for pool, portion in zip(pools, portions, strict=True)]:
            future.result()

    return run


def two_threads(job: Job, ends: ExitStack) -> Run:
    def run(store: Path, out: Path) -> None:
        for portion in packing(store, job.tokenizer, out):
            pack_one(*portion)

    return run


def packing(store: Path, tokenizer: Path, out: Path) -> list[tuple[Any, str, Path]]:
    out.mkdir()
    return [(portion, str(tokenizer), out / f"{number}.npy") for number, portion in enumerate(file_portions(store))]


def file_portions(store: Path) -> list[Any]:
    """Each file of documents as a portion."""
    import pyarrow.parquet as pq

    files = sorted((store / "documents").iterdir())
    return [[(str(file), list(range(pq.ParquetFile(file).num_row_groups)))] for file in files]


def pack_one(portion: Any, folder: str, file: Path) -> None:
    """One portion from Parquet to rows, as a task of the first pass does it, without the fast tokenizer."""
    import pyarrow as pa

    from medschool.tokens.pack import pack
    from medschool.tokens.portions import read_portion

    tool, ids, encoded = loaded(folder), list[str](), list[np.ndarray]()
    for some, texts in read_portion(portion, pa.array([], pa.string())):
        ids += some
        encoded += tool.encode(texts)
    np.save(file, pack(ids, encoded, ROW_TOKENS, tool.eos_id, tool.dtype).tokens)


ARMS: dict[str, Callable[[Job, ExitStack], Run]] = {
    "ours": ours, "plain": ours, "datatrove": datatrove, "datasets": datasets, "raw": raw, "one_thread": one_thread,
    "two_threads": two_threads,
}  # fmt: skip


# ---- whether they made the same


def eos_of(tokenizer: Path) -> str:
    named = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))["eos_token"]
    return str(named["content"] if isinstance(named, dict) else named)


def reference(tokenizer: Path, texts: list[str]) -> Ids:
    """Ids of every document, with its EOS, by the library's ordinary call. Raises AssertionError where its fast call differs."""
    tool, found = loaded(str(tokenizer)), []
    for start in range(0, len(texts), ENCODE_DOCUMENTS):
        some = texts[start : start + ENCODE_DOCUMENTS]
        encoded = [one.ids for one in tool.raw.encode_batch(some, add_special_tokens=False)]
        assert encoded == [one.ids for one in tool.raw.encode_batch_fast(some, add_special_tokens=False)], "raw: ids differ"
        found += [np.array([*ids, tool.eos_id], dtype=tool.dtype) for ids in encoded]
    return found


def prints(arrays: Iterable[np.ndarray]) -> Counter[bytes]:
    return Counter(hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest() for array in arrays)


def rows_of(portions: list[Any], documents: Ids, left_out: set[str]) -> Counter[bytes]:
    """The rows that `documents` must give: those of each portion in a stream, cut; the rest of it left out."""
    import pyarrow as pa

    from medschool.tokens.portions import read_portion

    found, rest = Counter[bytes](), iter(documents)
    for portion in portions:
        ids = [id_ for some, _ in read_portion(portion, pa.array([], pa.string())) for id_ in some]
        kept = [document for id_, document in zip(ids, itertools.islice(rest, len(ids)), strict=True) if id_ not in left_out]
        stream = np.concatenate(kept)
        found += prints(stream[: len(stream) // ROW_TOKENS * ROW_TOKENS].reshape(-1, ROW_TOKENS))
    return found


def check(job: Job, documents: Ids) -> None:
    """Raises AssertionError where what an arm wrote is not `documents`, each once. The arm `raw` writes nothing."""
    arm, store, out = job.arm, job.whole, job.out / "whole"
    if arm in ("ours", "plain"):
        from medschool import artifact
        from medschool.tokens.portions import cut_portions
        from medschool.tokens.shards import HELDOUT, read_table, tokens_of

        made = artifact.find(str(out), "tokens/papers", "0")
        assert made is not None
        gate = made.facts["fast_tokenizer"]
        assert gate.startswith("used" if arm == "ours" else "not used"), gate
        shards = [tokens_of(read_table(made.uri(file.path))) for file in made.files if file.path.startswith("shards/")]
        left_out = set(read_table(made.uri(HELDOUT)).column("id").to_pylist())
        portions = cut_portions(sorted(map(str, (store / "documents").iterdir())))
        assert sum(map(prints, shards), Counter()) == rows_of(portions, documents, left_out), f"{arm}: rows differ"
    elif arm == "datatrove":
        files = sorted(out.glob("*.ds"))
        ends = [np.fromfile(f"{file}.index", "<u8") for file in files]
        written = [np.fromfile(file, documents[0].dtype) for file in files]
        split = (part for ids, stops in zip(written, ends, strict=True) for part in np.split(ids, stops[:-1].astype(int)))
        assert prints(split) == prints(documents), "datatrove: ids differ"
    elif arm == "datasets":
        from datasets import load_from_disk

        found = load_from_disk(str(out)).with_format("numpy")["tokens"][:]
        assert all(map(np.array_equal, found, documents)) and len(found) == len(documents), "datasets: ids differ"
    elif arm != "raw":
        rows = (np.load(path) for path in out.iterdir())
        assert sum(map(prints, rows), Counter()) == rows_of(file_portions(store), documents, set()), f"{arm}: rows differ"


# ---- the clock


def measured(job: Job, settings: dict[str, str]) -> dict[str, float]:
    """In a process of its own: the three runs of an arm, in seconds, and the CPU seconds of the last."""
    os.environ.update(settings)
    job.out.mkdir()
    log = os.open(job.out / "log.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    found: dict[str, float] = {}
    with ExitStack() as ends:
        run = ARMS[job.arm](job, ends)
        for name, store in (("first", job.small), ("start", job.small), ("whole", job.whole)):
            began, cpu = time.perf_counter(), cpu_seconds()
            run(store, job.out / name)
            on_disk(job.out / name)
            found |= {f"{name} s": time.perf_counter() - began, "CPU s": cpu_seconds() - cpu}
    return found


def taken(job: Job, way: str, documents: Ids) -> dict[str, float]:
    """One measurement in a fresh process, its output checked and removed."""
    found = in_fresh_process(measured, job, SETTINGS[way])
    check(job, documents)
    shutil.rmtree(job.out)
    return found


# ---- the comparison


def speeds(reps: list[dict[str, float]], tokens: int, small_tokens: int) -> dict[str, list[float]]:
    """Millions of tokens a second, in each rep. `steady` takes the median start, and is nan where that is all there is."""
    start = float(np.median([rep["start s"] for rep in reps]))
    between = [rep["whole s"] - start for rep in reps]
    return {
        "whole": [tokens / rep["whole s"] / 1e6 for rep in reps],
        "steady": [(tokens - small_tokens) / seconds / 1e6 if seconds > 0 else np.nan for seconds in between],
        "per CPU": [tokens / rep["CPU s"] / 1e6 for rep in reps],
    }


def report(found: dict[str, list[dict[str, float]]], tokens: int, small_tokens: int) -> dict[str, Any]:
    """Print the medians and ratios of one vocabulary; the ratios of the first arm to the others."""
    rates = {arm: speeds(reps, tokens, small_tokens) for arm, reps in found.items()}
    first = next(iter(rates))
    ratios: dict[str, Any] = {}
    for measure in ("whole", "steady", "per CPU"):
        print(f"  {measure}, M tokens/s")
        for arm, values in ((arm, rate[measure]) for arm, rate in rates.items()):
            line = f"    {arm:<12} {spread(values)}"
            if arm != first:
                ratio = ratios.setdefault(measure, {})[arm] = interval(rates[first][measure], values)
                line += "   {} is {:.2f} [{:.2f}, {:.2f}] times as fast".format(first, *ratio)
            print(line)
    for name in ("first s", "start s"):
        print(f"  {name}: " + ", ".join(f"{arm} {np.median([rep[name] for rep in reps]):.2f}" for arm, reps in found.items()))
    return ratios


def faster_way(arm: str, job: Callable[[str], Job], documents: Ids) -> str:
    """How an arm is run: where there are two ways, the faster. Every way is checked here before it is timed."""
    times = {way: taken(job(arm), way, documents)["whole s"] for way in SETTINGS if way.split(",")[0] == arm}
    best = min(times, key=times.__getitem__)
    if len(times) > 1:
        print(f"  {arm}: " + ", ".join(f"{way} {seconds:.1f} s" for way, seconds in times.items()) + f"; timed: {best}")
    return best


def compare(tokenizer: Path, stores: tuple[Path, Path], arms: list[str], reps: int, folder: Path) -> dict[str, Any]:
    """All arms with one vocabulary."""
    small, whole = stores
    texts, small_texts = texts_of(whole), texts_of(small)
    register(whole, tokenizer, texts)
    register(small, tokenizer, small_texts)
    documents = in_fresh_process(reference, tokenizer, texts)
    tokens, small_tokens = sum(map(len, documents)), sum(map(len, documents[: len(small_texts)]))
    print(f"{tokenizer.name}: {len(texts):,} documents, {sum(len(t.encode()) for t in texts) / 1e6:.1f} MB, {tokens:,} tokens")

    def job(arm: str) -> Job:
        return Job(arm, tokenizer, small, whole, folder / "out")

    ways = {arm: faster_way(arm, job, documents) for arm in arms}
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for rep in range(reps):
        load = os.getloadavg()[0]
        for arm in arms:
            found[arm].append(taken(job(arm), ways[arm], documents))
        print(f"  rep {rep} (load {load:.1f}): " + ", ".join(f"{arm} {found[arm][-1]['whole s']:.2f} s" for arm in arms))
    ratios = report(found, tokens, small_tokens)
    return {"tokens": tokens, "small_tokens": small_tokens, "ways": ways, "runs": found, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=33)
    parser.add_argument("--arms", default=DEFAULT_ARMS)
    parser.add_argument("--vocabularies", default=f"{SMOLLM2},{LLAMA}")
    parser.add_argument("--store", default=os.environ.get("MEDSCHOOL_STORE"))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if not asked.store:
        parser.exit(2, "no store: set MEDSCHOOL_STORE, or give --store\n")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    folder = Path(tempfile.mkdtemp(prefix="ms-bench-", dir="/tmp"))  # short: Ray puts Unix sockets below it
    os.environ.update(
        {
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"),
            "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_LOG_LEVEL": "CRITICAL", "RAY_AUTH_MODE": "disabled",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")]),
        }
    )  # fmt: skip
    try:
        print(json.dumps(about := machine(*LIBRARIES) | {"threads": SETTINGS}))
        stores = (folder / "small", folder / "whole")
        texts = write_documents(asked.store, asked.megabytes, stores[1])
        write_documents(asked.store, SMALL_BYTES / 1e6, stores[0])
        made: dict[str, Any] = {}
        for name in asked.vocabularies.split(","):
            path = folder / name
            tokenizer = fetch_tokenizer(asked.store, path) if name == SMOLLM2 else train_tokenizer(texts, path)
            made[name] = compare(tokenizer, stores, asked.arms.split(","), asked.reps, folder)
        if asked.json:
            asked.json.write_text(json.dumps(about | {"megabytes": asked.megabytes} | made, indent=1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
