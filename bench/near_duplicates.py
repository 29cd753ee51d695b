"""Near-duplicate removal, side by side: ours, datasketch and datatrove's minhash, on one core and with the same texts.

    python -m bench.near_duplicates DOCUMENTS.parquet [--documents 50000] [--rounds 5]

The texts are those of a corpus (`documents/*.parquet` of the store). To every fifth one a copy is added with up to 4% of its
words replaced (a Jaccard similarity of 0.67 to 1), because abstracts have few natural near-duplicates. All systems see the
documents longest first, five-word shingles, 128 permutations and the threshold 0.8, and all decide which documents stay. What
stays is compared first, without and with the copies; where two systems differ, exact similarities say who is right. Then CPU
times are taken on one core, the systems taking turns. Reading the file is not timed, shingling is.

    datasketch            as in its manual: MinHashLSH(0.8), asked before each insert; what it returns counts as a duplicate
    datasketch, verified  the same with our 14 bands of 9, and the estimated similarity compared with the threshold
    datatrove             signature, buckets and cluster steps in one process on local files, 14 buckets of 9 hashes, not
                          verified; words split at white space, where its default is spaCy; SHA-1, because its default
                          gives strings to xxhash, which version 4 refuses
"""

import argparse
import random
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medschool.duplicates.candidates import PAIR, RECORD, candidate_pairs, distinct, verified
from medschool.duplicates.components import choose
from medschool.duplicates.minhash import band_hashes, banding, needed_places, shingles, signatures

THRESHOLD, PERMUTATIONS, NGRAM = 0.8, 128, 5
BATCH = 1024
MARKS = re.compile(r"[^\w\s]|_")
Texts = list[str]
Kept = frozenset[int]


def ours(texts: Texts) -> Kept:
    """The passes of medschool.duplicates without Ray and without a store."""
    cut = banding(THRESHOLD, PERMUTATIONS)
    made, records = [], []
    for start in range(0, len(texts), BATCH):
        some = texts[start : start + BATCH]
        hashes, offsets = shingles(pa.array(some, pa.large_string()), NGRAM)
        made.append(signatures(hashes, offsets, PERMUTATIONS))
        buckets = band_hashes(made[-1], cut)
        batch = np.empty(buckets.shape, RECORD)
        batch["bucket"] = buckets
        batch["rank"] = batch["document"] = np.arange(start, start + len(some))[:, None]
        records.append(batch[np.diff(offsets) > 0].ravel())
    whole, needed = np.concatenate(made), needed_places(THRESHOLD, PERMUTATIONS)
    found = [
        verified(pairs, lambda which: whole[which.astype(int)], needed) for pairs in candidate_pairs(np.concatenate(records))
    ]
    choice = choose(distinct(np.concatenate([np.empty(0, PAIR), *found])))
    return frozenset(range(len(texts))) - frozenset(choice.documents[~choice.kept].tolist())


def words_of(text: str) -> list[str]:
    return MARKS.sub("", text.lower()).split()


def datasketch(texts: Texts, verify: bool = False) -> Kept:
    """The loop of its manual: an index of what stays, asked for each document."""
    from datasketch import MinHash, MinHashLSH

    cut = banding(THRESHOLD, PERMUTATIONS)
    index = MinHashLSH(THRESHOLD, PERMUTATIONS, params=(cut.bands, cut.rows) if verify else None)
    sketches: dict[int, MinHash] = {}
    for at, text in enumerate(texts):
        words = words_of(text)
        sketch = MinHash(PERMUTATIONS)
        sketch.update_batch({" ".join(words[k : k + NGRAM]).encode() for k in range(max(1, len(words) - NGRAM + 1))})
        twins = index.query(sketch)
        if any(sketch.jaccard(sketches[twin]) >= THRESHOLD for twin in twins) if verify else twins:
            continue
        index.insert(at, sketch, check_duplication=False)
        sketches[at] = sketch
    return frozenset(sketches)


def datatrove(texts: Texts) -> Kept:
    """Its three steps on local files; the first document of a cluster stays."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.text import TextNormConfig
    from datatrove.utils.word_tokenizers import WordTokenizer
    from loguru import logger

    logger.disable("datatrove")

    class Split(WordTokenizer):
        """Its default is spaCy's; this one is faster."""

        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    cut = banding(THRESHOLD, PERMUTATIONS)
    norm = TextNormConfig(norm_numbers=False, norm_weekdays=False, norm_monthnames=False)
    sha1 = HashConfig(hash_fc="sha1")
    config = MinhashConfig(n_grams=NGRAM, num_buckets=cut.bands, hashes_per_bucket=cut.rows, norm_config=norm, hash_config=sha1)
    folder = Path(tempfile.mkdtemp(prefix="near-", dir="/tmp"))
    try:
        signature = MinhashDedupSignature(str(folder / "signatures"), config, Split())  # type: ignore[arg-type]
        signature.run((Document(text=text, id=str(at)) for at, text in enumerate(texts)), 0, 1)  # type: ignore[arg-type]
        for bucket in range(cut.bands):
            MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=config).run(None, bucket, cut.bands)  # type: ignore[arg-type]
        MinhashDedupCluster(str(folder / "buckets"), str(folder / "removed"), config=config).run(None, 0, 1)  # type: ignore[arg-type]
        removed = np.concatenate([np.fromfile(path, "<u4") for path in (folder / "removed").glob("*.remove")] or [np.empty(0)])
        return frozenset(range(len(texts))) - frozenset(removed.astype(int).tolist())
    finally:
        shutil.rmtree(folder)


def with_copies(texts: Texts) -> Texts:
    """Every text, and an edited copy of every fifth; the longest first."""
    draw = random.Random(7)
    made = list(texts)
    for text in texts[::5]:
        words = text.split()
        for at in draw.sample(range(len(words)), round(draw.uniform(0, 0.04) * len(words))):
            words[at] = f"x{draw.randrange(10**9)}"
        made.append(" ".join(words))
    return sorted(made, key=preference)


def exact_among(texts: Texts, gone: Kept, others_gone: Kept) -> tuple[int, int]:
    """Of what only `gone` has: documents with a longer one at an exact Jaccard similarity of THRESHOLD or more, and all."""
    alone = sorted(gone - others_gone)
    sets = [{(*words[k : k + NGRAM],) for k in range(max(1, len(words) - NGRAM + 1))} for words in map(words_of, texts)]
    wanted = set().union(*(sets[at] for at in alone))
    by_shingle: dict[tuple[str, ...], list[int]] = {}
    for at, one in enumerate(sets):
        for gram in one & wanted:
            by_shingle.setdefault(gram, []).append(at)
    similar = 0
    for at in alone:
        near = {twin for gram in sets[at] for twin in by_shingle[gram] if twin < at}
        similar += any(len(sets[at] & sets[twin]) >= THRESHOLD * len(sets[at] | sets[twin]) for twin in near)
    return similar, len(alone)


def preference(text: str) -> tuple[int, str]:
    return -len(text), text


def ratio_interval(theirs: list[float], mine: list[float]) -> tuple[float, float]:
    """95% bootstrap interval of the ratio of medians."""
    draw = np.random.default_rng(0)
    picks = draw.integers(0, len(mine), (10_000, len(mine)))
    ratios = np.median(np.array(theirs)[picks], axis=1) / np.median(np.array(mine)[picks], axis=1)
    return float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975))


def compare(what: str, texts: Texts, systems: dict[str, Callable[[Texts], Kept]]) -> None:
    """Print what each system leaves out, and how far it agrees with ours."""
    print(f"{what}: {len(texts):,}, {sum(len(text.split()) for text in texts) / len(texts):.0f} words each", flush=True)
    mine = systems["ours"](texts)
    print(f"  {'ours':<22} leaves out {len(texts) - len(mine):6,}")
    for name, run in list(systems.items())[1:]:
        kept = run(texts)
        everything = frozenset(range(len(texts)))
        gone, ours_gone = everything - kept, everything - mine
        line = f"  {name:<22} leaves out {len(gone):6,}   Jaccard with ours: kept {len(kept & mine) / len(kept | mine):.4f}"
        print(f"{line}, left out {len(gone & ours_gone) / max(1, len(gone | ours_gone)):.3f}", end="")
        similar, alone = exact_among(texts, ours_gone, gone)
        theirs_similar, theirs = exact_among(texts, gone, ours_gone)
        print(
            f"; with an exact twin: {similar} of the {alone} only ours leaves out, {theirs_similar} of its {theirs}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("file", nargs="+")
    parser.add_argument("--documents", type=int, default=50_000, help="documents before copies are added, at most")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    read = pa.concat_tables([pq.read_table(path, columns=["text"]) for path in args.file]).column("text").to_pylist()
    plain = sorted(read[: args.documents], key=preference)
    systems: dict[str, Callable[[Texts], Kept]] = {
        "ours": ours,
        "datasketch": datasketch,
        "datasketch, verified": lambda some: datasketch(some, verify=True),
        "datatrove": datatrove,
    }
    for name, run in list(systems.items()):
        try:
            run(plain[:100])
        except ImportError as error:
            print(f"{name} does not run here: {error}")
            del systems[name]
    compare("the documents as they are", plain, systems)
    texts = with_copies(plain)
    compare("with copies", texts, systems)
    times: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(args.rounds):
        for name, run in systems.items():
            began = time.process_time()
            run(texts)
            times[name].append(time.process_time() - began)
    for name, values in times.items():
        median = statistics.median(values)
        low, high = ratio_interval(values, times["ours"])
        speed = f"{len(texts) / median:9,.0f} documents/s of CPU   median {median:.2f} s [{min(values):.2f}, {max(values):.2f}]"
        ratio = median / statistics.median(times["ours"])
        print(f"  {name:<22} {speed}   n={len(values)}   time / ours {ratio:.1f} [{low:.1f}, {high:.1f}]")


if __name__ == "__main__":
    main()
