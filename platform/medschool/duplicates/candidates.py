"""From buckets to verified pairs: which documents share a band, and whether their signatures agree.

A record says that a document stands in a bucket. Its `rank` orders documents by preference, the smaller the better: the longer
text first, and of equally long ones the one whose hash of source and id is smaller. So nothing depends on where a document lies.

    records, sorted by bucket and rank        a bucket of four: every document with the next ones and with the first
    bucket 17 | rank 3 | document 90          90-41  90-12  90-55
    bucket 17 | rank 5 | document 41                 41-12  41-55
    bucket 17 | rank 8 | document 12                        12-55
    bucket 17 | rank 9 | document 55
    bucket 23 | rank 2 | document 12          alone: no pair

In a bucket of more than WINDOW + 1 documents each one meets the next WINDOW and the first, not all of them: boilerplate that
stands in a million documents costs 33 million comparisons instead of 500 billion. Near-duplicates are about equally long, so they
are near each other in this order; what is missed here has the other bands to be found in.

Price: 33 comparisons a record at most, 0.2 microseconds each, beside the reading of the signatures.
Memory: a few copies of the records (24 bytes each), PAIRS_AT_ONCE pairs of signatures, and the verified pairs (34 bytes each).
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from medschool.seed import seed_of

WINDOW = 32
PAIRS_AT_ONCE = 2**16

RECORD = np.dtype([("bucket", "<u8"), ("rank", "<u8"), ("document", "<u8")])
PAIR = np.dtype([("first", "<u8"), ("second", "<u8"), ("first_rank", "<u8"), ("second_rank", "<u8"), ("equal", "<u2")])
"""Two documents, the preferred one first, and the places at which their signatures agree."""

Array = np.ndarray[Any, Any]


def rank_of(source: str, id_: str, chars: int) -> int:
    """64 bits that order documents by preference: the longest text first, then a hash of source and id."""
    return (2**32 - 1 - min(chars, 2**32 - 1)) << 32 | seed_of(source, id_) >> 32


def candidate_pairs(records: Array) -> Iterator[Array]:
    """Pairs of RECORDs that share a bucket, as PAIRs with `equal` 0; a pair may come twice, no array is longer than `records`."""
    records = _shared(records)
    bucket = records["bucket"]
    for step in range(1, WINDOW + 1):
        at = np.flatnonzero(bucket[step:] == bucket[:-step])
        if not len(at):
            return
        yield distinct(_pairs(records[at], records[at + step]))
    leader = np.searchsorted(bucket, bucket)
    far = np.flatnonzero(np.arange(len(bucket)) - leader > WINDOW)
    yield distinct(_pairs(records[leader[far]], records[far]))


def verified(pairs: Array, read_signatures: Callable[[Array], Array], needed: int) -> Array:
    """Those of `pairs` whose signatures agree at `needed` places or more, with `equal` filled in.

    read_signatures: documents, sorted and distinct, (n,) -> their signatures (n, permutations).
    """
    found = [np.empty(0, PAIR)]
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        some = pairs[start : start + PAIRS_AT_ONCE].copy()
        documents, places = np.unique(np.concatenate((some["first"], some["second"])), return_inverse=True)
        made = read_signatures(documents)
        some["equal"] = (made[places[: len(some)]] == made[places[len(some) :]]).sum(axis=1)
        found.append(some[some["equal"] >= needed])
    return np.concatenate(found)


def distinct(pairs: Array) -> Array:
    """`pairs`, each once, sorted by its documents."""
    pairs = pairs[np.lexsort((pairs["second"], pairs["first"]))]
    again = (pairs["first"][1:] == pairs["first"][:-1]) & (pairs["second"][1:] == pairs["second"][:-1])
    return pairs[np.append(True, ~again)] if len(pairs) else pairs


def _shared(records: Array) -> Array:
    """Those that are not alone in their bucket, by bucket and preference."""
    records = records[np.argsort(records["bucket"])]
    same = records["bucket"][1:] == records["bucket"][:-1]
    records = records[np.append(same, False) | np.append(False, same)] if len(records) else records
    return records[np.lexsort((records["document"], records["rank"], records["bucket"]))]


def _pairs(first: Array, second: Array) -> Array:
    made = np.zeros(len(first), PAIR)
    for name, records in (("first", first), ("second", second)):
        made[name], made[f"{name}_rank"] = records["document"], records["rank"]
    return made
