"""From texts to MinHash signatures, and from signatures to buckets of documents that may be similar.

A word is what stands between white space, in lower case, without its punctuation, so that copies which differ in case, commas or
line breaks are equal. A shingle is `ngram_words` words in a row; a shorter text is one shingle. Words become 64-bit hashes, each
word once, shingles a linear combination of them modulo 2^64, and rensa's R-MinHash v2 (Dahlgaard, Knudsen and Thorup 2017, Fast
Similarity Sketching) makes the signature: `permutations` numbers of 32 bits. The share of places at which two signatures agree
estimates the Jaccard similarity J of their shingles without bias, with a standard error of about sqrt(J (1 - J) / permutations):
0.035 at J = 0.8 and 128 permutations.

Banding (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4): a signature is cut into b bands of r places, and two
documents are compared when one whole band agrees, which happens with probability P(J) = 1 - (1 - J^r)^b. `banding` chooses b and
r for the threshold t by minimising

    0.1 * integral of P from 0 to t  +  0.9 * integral of (1 - P) from t to 1

False candidates weigh little because every pair is verified by its signatures. The usual equal weights (RedPajama's 9 bands of 13
for 0.8) find 40% of the pairs at J = 0.8 and 93% at 0.9; these (14 of 9) find 87% and 99.9%.

Price: about 30 microseconds an abstract of 130 words, on one core. Memory: some 70 bytes a word of the texts given at once.
It does not know languages that write without spaces: there a sentence is one word, and only equal sentences count.
"""

import functools
import string
import struct
from dataclasses import dataclass
from importlib import metadata
from math import ceil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import rensa

from medschool.errors import StageError

SEED = 42
ALGORITHM_VERSION = 2
"""Of rensa's R-MinHash: another version gives other signatures, so it comes with another version of the stage."""
FALSE_CANDIDATE_WEIGHT, MISS_WEIGHT = 0.1, 0.9

_ODD = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: an odd multiplier that spreads bits (Knuth, volume 3, 6.4)."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Banding:
    """How a signature is cut; places behind the last band serve the verification only."""

    bands: int
    rows: int
    """Places of a band."""

    def found(self, similarity: float) -> float:
        """Probability that a pair of this similarity becomes a candidate."""
        return float(1 - (1 - similarity**self.rows) ** self.bands)


@functools.cache
def banding(similarity: float, permutations: int) -> Banding:
    """The bands with the least weighted error for a threshold (see the module's docstring)."""
    grid = (np.arange(1000) + 0.5) / 1000
    above = grid >= similarity

    def error(cut: Banding) -> float:
        found = 1 - (1 - grid**cut.rows) ** cut.bands
        return float(FALSE_CANDIDATE_WEIGHT * found[~above].sum() + MISS_WEIGHT * (1 - found[above]).sum())

    return min((Banding(bands, permutations // bands) for bands in range(1, permutations + 1)), key=error)


def needed_places(similarity: float, permutations: int) -> int:
    """Places of two signatures that must agree."""
    return ceil(round(similarity * permutations, 6))


def shingles(texts: pa.Array, ngram_words: int) -> tuple[Array, Array]:
    """Shingle hashes of `texts` (large_string) one text after the other, and where each text's begin: (total,), (texts + 1,).

    A text without any word has none.
    """
    words = pc.ascii_split_whitespace(texts)  # a cleaned text has no other
    coded = words.flatten().dictionary_encode()
    hashes = _word_hashes(coded.dictionary)[coded.indices.to_numpy()]
    real = hashes != 0
    bounds = np.concatenate(([0], np.cumsum(real)))[words.offsets.to_numpy()]
    return _windows(hashes[real], np.diff(bounds), ngram_words)


def signatures(hashes: Array, offsets: Array, permutations: int) -> Array:
    """Signatures (texts, permutations) as uint32. A text without shingles has a signature too, which means nothing.

    Raises StageError when the rensa that is installed makes other signatures.
    """
    if rensa.RMinHash.ALGORITHM_VERSION != ALGORITHM_VERSION:
        found = rensa.RMinHash.ALGORITHM_VERSION
        raise StageError(
            f"rensa {metadata.version('rensa')} makes signatures of version {found}, not {ALGORITHM_VERSION}",
            "install the version of rensa that pyproject.toml names",
            "near_duplicates",
        )
    if len(offsets) == 1:
        return np.zeros((0, permutations), np.uint32)
    made = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), permutations, SEED)
    pack = struct.Struct(f"{permutations}I").pack  # numpy takes twice as long over lists of numbers
    return np.frombuffer(b"".join([pack(*row) for row in made.to_rows()]), np.uint32).reshape(-1, permutations)


def similarity(some: Array, others: Array) -> Array:
    """Estimated Jaccard similarity of signatures row by row: (n, permutations) twice -> (n,)."""
    return np.asarray((some == others).mean(axis=1))


def band_hashes(made: Array, cut: Banding) -> Array:
    """One 64-bit hash a band: (n, permutations) -> (n, bands). Equal bands have equal hashes; the band's number enters too."""
    places = made[:, : cut.bands * cut.rows].reshape(len(made), cut.bands, cut.rows)
    mixed = np.tile(np.arange(1, cut.bands + 1, dtype=np.uint64) * np.uint64(_ODD), (len(made), 1))
    for row in range(cut.rows):
        mixed = (mixed ^ places[:, :, row]) * np.uint64(_ODD)
        mixed ^= mixed >> np.uint64(32)
    return mixed


def _word_hashes(words: pa.Array) -> Array:
    """64 bits a word, of its lower-case letters and digits; 0 for what is punctuation only."""
    trimmed = pc.utf8_trim(pc.utf8_lower(words), characters=string.punctuation)
    plain = trimmed.to_pylist()
    for at in np.flatnonzero(~pc.utf8_is_alnum(trimmed).to_numpy(zero_copy_only=False)).tolist():
        plain[at] = "".join(filter(str.isalnum, plain[at]))
    hashes = np.fromiter(rensa.RMinHash.hash_token_sets([plain])[0], np.uint64, len(plain))
    hashes[[not word for word in plain]] = 0
    return hashes


def _windows(words: Array, lengths: Array, width: int) -> tuple[Array, Array]:
    """Hashes of every `width` words in a row inside each text. Texts are laid `width - 1` zeros apart, so none reaches over."""
    texts = np.arange(len(lengths))
    laid = np.zeros(len(words) + (len(lengths) + 1) * width, np.uint64)
    laid[np.arange(len(words)) + np.repeat(texts * (width - 1), lengths)] = words
    mixed = np.zeros(len(laid) - width, np.uint64)
    for place in range(width):
        mixed += laid[place : place + len(mixed)] * np.uint64(pow(_ODD, place + 1, 2**64))
    counts = np.where(lengths > 0, np.maximum(lengths - width + 1, 1), 0)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    begins = np.concatenate(([0], np.cumsum(lengths)))[:-1] + texts * (width - 1)
    return mixed[np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], counts)], offsets
