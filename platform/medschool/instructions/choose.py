"""Which of a set's conversations are kept: no repeats, and of the others a sample where the recipe asks for one.

Of conversations with the same words, turn by turn, the first one stays, in the order of the recipe's files and their records. A
sample is those of the lowest ranks, which the seed draws, and of equal ranks the first; so it does not depend on who was faster,
and a larger one holds a smaller one. Equal words are told by 64 bits of a sha256: among a million conversations, one wrong match
has a chance of 3 in 100 million.

Memory: about 50 bytes a conversation, 25 MB for the 514 thousand of MedC-I; a tenth of a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Choice:
    """What becomes of the conversations of one portion. Shapes: (conversations,), bool."""

    kept: np.ndarray
    repeats: np.ndarray


def choose(
    passed: Sequence[np.ndarray], hashes: Sequence[np.ndarray], ranks: Sequence[np.ndarray], sample: int | None
) -> list[Choice]:
    """One choice a portion, in order. Each argument has an array a portion, of shape (conversations,); sample: None keeps all."""
    every_hash, every_rank, candidate = np.concatenate(hashes), np.concatenate(ranks), np.concatenate(passed)
    places = np.flatnonzero(candidate)
    kept = np.zeros(len(candidate), dtype=bool)
    kept[places[np.unique(every_hash[places], return_index=True)[1]]] = True
    repeats = candidate & ~kept
    if sample is not None:
        first = np.flatnonzero(kept)
        kept[first[np.argsort(every_rank[first], kind="stable")[sample:]]] = False  # of equal ranks the first ones stay
    starts = np.cumsum([0, *map(len, hashes)])
    return [Choice(kept[start:stop], repeats[start:stop]) for start, stop in pairwise(starts)]
