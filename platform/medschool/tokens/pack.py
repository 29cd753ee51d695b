"""From documents or conversations to rows of equal length.

Documents are concatenated and cut, an EOS after each. No padding: the tokens behind the last full row are left out and counted.

    [doc A ... eos][doc B .....  |  ... eos][doc C ... eos][doc D ..   |   ...]
     row 0                          row 1                                row 2

Conversations stay whole, because half of one is an answer without its question; the room left in a row is padding.

    [chat A ......][chat B .........][pad]  |  [chat C ..................][pad]

Every row remembers which pieces it holds and how long each is, so that a mask can keep them apart and the ledger can say who was
seen, and which of its tokens are trained: all of a document, the answers of a conversation, nothing of padding.
"""

import bisect
from dataclasses import dataclass
from typing import Any

import numpy as np


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
    """Tokens behind the last full row, left out."""


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
    return Rows(tokens, np.ones(tokens.shape, dtype=bool), row_ids, row_lengths, total - count * row_tokens)


def pack_whole(
    ids: list[str], conversations: list[tuple[np.ndarray, np.ndarray]], row_tokens: int, padding_id: int, dtype: np.dtype[Any]
) -> Rows:
    """Rows of whole `conversations`, each a pair (tokens, trained) of at most `row_tokens`, longest first into the fullest row.

    Best fit decreasing (Johnson 1973): at most 11/9 of the fewest rows possible. The padding of a row is a piece with the id "".
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
        row_ids.append([ids[index] for index in members] + [""] * (padding > 0))
        row_lengths.append(lengths + [padding] * (padding > 0))
    return Rows(tokens, trained, row_ids, row_lengths, 0)


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
