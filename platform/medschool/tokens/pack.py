"""From documents or conversations to rows of equal length. Four ways, all of them pure functions of their arguments.

`pack`, the recipe's `concatenate`: documents stand one behind the other, an EOS after each, and the stream is cut. No padding:
the tokens behind the last full row are left out and counted.

    [doc A ... eos][doc B .....  |  ... eos][doc C ... eos][doc D ..   |   ...]
     row 0                          row 1                                row 2

`pack_best_fit`, `best_fit` (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"): a document that fits into a row is
never cut. Of a longer one the full rows are cut off first, and the rest is packed like a short document. Every token is in a row;
the room left is padding, which is never trained on, and counted.

    [doc A ... eos][doc C eos][pad]  |  [doc B, first row of it ..........]  |  [.. rest of B eos][doc D ... eos]

`pack_windows`, `windows`, the released code of PMC-LLaMA (`Paper_dataset.py`): one window of a row's length from each document,
at a uniformly drawn place, nothing else in its row; a document shorter than a row is padded with EOS.

    [doc A, a window of it ......]  |  [doc B eos][pad ..........]  |  [doc C, a window of it ......]

Like the released code: one row a document and pass, whatever its length. Unlike it: the window is drawn once, from the recipe's
seed and the document's id, so that every pass sees the same one, where theirs draws anew (rows are stored, so that their order
can be replayed); the last possible place can be drawn too (their `randint(0, len - 512)` never gives it); padding is not trained
on (theirs is); a document ends with EOS and has no BOS (theirs begins with BOS and has no EOS); a row has `row_tokens` tokens
(theirs 512).

`pack_whole`: conversations stay whole, because half of one is an answer without its question; the room left is padding.

    [chat A ......][chat B .........][pad]  |  [chat C ..................][pad]

Every row remembers which pieces it holds and how long each is, so that a mask can keep them apart and the ledger can say who was
seen, and which of its tokens are trained: all of a document, the answers of a conversation, nothing of padding. In memory are the
documents that are given and their rows: about twice their tokens.
"""

import bisect
from dataclasses import dataclass
from typing import Any

import numpy as np

from medschool.seed import seed_of

PADDING = ""
"""Id of a piece that is padding."""


@dataclass(frozen=True)
class Rows:
    """Packed rows. Shapes: `tokens`, `trained` (rows, row_tokens); the lists have one entry a row, with one value a piece."""

    tokens: np.ndarray
    trained: np.ndarray
    """Which tokens are predicted in training, as bool."""
    doc_ids: list[list[str]]
    doc_lengths: list[list[int]]
    """Lengths of the pieces in tokens, in order; they sum to row_tokens."""
    tail_tokens: int
    """Tokens left out: behind the last full row, or outside of the windows."""
    documents: int = 0
    """Documents or conversations that went in, those without a token in any row included."""

    @property
    def padding_tokens(self) -> int:
        """Tokens that stand for nothing and are not trained on."""
        pieces = zip(self.doc_ids, self.doc_lengths, strict=True)
        return sum(lengths[-1] for ids, lengths in pieces if ids and ids[-1] == PADDING)


def pack(ids: list[str], documents: list[np.ndarray], row_tokens: int, eos_id: int, dtype: np.dtype[Any]) -> Rows:
    """Rows of `documents` (token id arrays) in the given order, an EOS behind each document."""
    lengths = np.array([len(document) + 1 for document in documents], dtype=np.int64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    stream = np.empty(total, dtype=dtype)
    for document, end, length in zip(documents, ends, lengths, strict=True):
        stream[end - length : end - 1] = document
        stream[end - 1] = eos_id
    count = total // row_tokens
    row_ids, row_lengths = _pieces(ids, ends, count, row_tokens)
    tokens = stream[: count * row_tokens].reshape(count, row_tokens)
    return Rows(tokens, np.ones(tokens.shape, dtype=bool), row_ids, row_lengths, total - count * row_tokens, len(ids))


def pack_best_fit(ids: list[str], documents: list[np.ndarray], row_tokens: int, eos_id: int, dtype: np.dtype[Any]) -> Rows:
    """Rows of `documents` (token id arrays), an EOS behind each, none cut that fits into a row. No token is left out."""
    full: list[np.ndarray] = []
    full_ids: list[str] = []
    rest: list[tuple[np.ndarray, np.ndarray]] = []
    rest_ids: list[str] = []
    for id_, document in zip(ids, documents, strict=True):
        text = np.append(document, eos_id).astype(dtype)
        whole = len(text) // row_tokens * row_tokens
        if whole:
            full.append(text[:whole])
            full_ids += [id_] * (whole // row_tokens)
        if whole < len(text):
            rest.append((text[whole:], np.ones(len(text) - whole, dtype=bool)))
            rest_ids.append(id_)
    mixed = pack_whole(rest_ids, rest, row_tokens, eos_id, dtype)
    tokens = np.concatenate([np.empty(0, dtype=dtype), *full]).reshape(-1, row_tokens)
    return Rows(
        np.concatenate([tokens, mixed.tokens]),
        np.concatenate([np.ones(tokens.shape, dtype=bool), mixed.trained]),
        [[id_] for id_ in full_ids] + mixed.doc_ids,
        [[row_tokens]] * len(full_ids) + mixed.doc_lengths,
        0,
        len(ids),
    )


def pack_windows(
    ids: list[str], documents: list[np.ndarray], row_tokens: int, eos_id: int, dtype: np.dtype[Any], seed: int
) -> Rows:
    """One row a document, in the given order: a window of it at a place drawn from (seed, id), or all of it and padding."""
    tokens = np.full((len(ids), row_tokens), eos_id, dtype=dtype)
    trained = np.zeros(tokens.shape, dtype=bool)
    row_ids, row_lengths, outside = [], [], 0
    for row, (id_, document) in enumerate(zip(ids, documents, strict=True)):
        size = len(document) + 1
        start = seed_of(seed, "window", id_) % max(1, size - row_tokens + 1)
        piece = document[start : start + row_tokens]
        used = min(size, row_tokens)  # the EOS already stands behind a piece that is shorter than that
        tokens[row, : len(piece)] = piece
        trained[row, :used] = True
        outside += size - used
        row_ids.append([id_] + [PADDING] * (used < row_tokens))
        row_lengths.append([used] + [row_tokens - used] * (used < row_tokens))
    return Rows(tokens, trained, row_ids, row_lengths, outside, len(ids))


def pack_whole(
    ids: list[str], conversations: list[tuple[np.ndarray, np.ndarray]], row_tokens: int, padding_id: int, dtype: np.dtype[Any]
) -> Rows:
    """Rows of whole `conversations`, each a pair (tokens, trained) of at most `row_tokens`, longest first into the fullest row.

    Best fit decreasing (Johnson 1973): at most 11/9 of the fewest rows possible. Padding is a piece with the id PADDING.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in sorted(range(len(ids)), key=lambda index: (-len(conversations[index][0]), ids[index])):
        size = len(conversations[index][0])
        place = bisect.bisect_left(room, (size, -1))
        if place == len(room):
            rows.append([])
            room.append((row_tokens, len(rows) - 1))  # the largest room there can be: stays sorted
        free, row = room.pop(place)
        rows[row].append(index)
        bisect.insort(room, (free - size, row))
    tokens = np.full((len(rows), row_tokens), padding_id, dtype=dtype)
    trained = np.zeros(tokens.shape, dtype=bool)
    row_ids, row_lengths = [], []
    for row, members in enumerate(rows):
        lengths = [len(conversations[index][0]) for index in members]
        for index, end in zip(members, np.cumsum(lengths), strict=True):
            span = slice(end - len(conversations[index][0]), end)
            tokens[row, span], trained[row, span] = conversations[index]
        padding = row_tokens - sum(lengths)
        row_ids.append([ids[index] for index in members] + [PADDING] * (padding > 0))
        row_lengths.append(lengths + [padding] * (padding > 0))
    return Rows(tokens, trained, row_ids, row_lengths, 0, len(ids))


def _pieces(ids: list[str], ends: np.ndarray, count: int, row_tokens: int) -> tuple[list[list[str]], list[list[int]]]:
    """Which document pieces each of `count` rows holds, and their lengths."""
    row_ids, row_lengths = [], []
    for row in range(count):
        start, stop = row * row_tokens, (row + 1) * row_tokens
        first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left")
        edges = np.concatenate(([start], ends[first:last], [stop]))
        row_ids.append(ids[first : last + 1])
        row_lengths.append(np.diff(edges).tolist())
    return row_ids, row_lengths
