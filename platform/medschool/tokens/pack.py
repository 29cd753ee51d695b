"""Concatenate and cut: documents behind each other, EOS after each, in rows of equal length.

    [doc A ... eos][doc B .....  |  ... eos][doc C ... eos][doc D ..   |   ...]
     row 0                          row 1                                row 2

Every row remembers which documents it holds and how long each piece is, so that a mask can keep documents apart and the ledger
can say who was seen. No padding: the tokens behind the last full row are left out and counted.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Rows:
    """Packed rows. Shapes: `tokens` (rows, row_tokens); the lists have one entry a row, with one value a piece of a document."""

    tokens: np.ndarray
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
    return Rows(stream[: count * row_tokens].reshape(count, row_tokens), row_ids, row_lengths, total - count * row_tokens)


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
