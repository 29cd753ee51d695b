"""Which documents are kept out of training to measure it.

Documents are ranked by a hash of (seed, id) and taken from the top until the token budget is full. So the choice does not depend
on the order or number of files, and a corpus that grows keeps most of its held-out set.

Memory: 16 bytes a document for its hash and place, the ids of one file, and the texts of the documents that are tried. Only the
ids are read of every file; texts are read by row group, for about as many documents as fill the budget.
"""

from functools import partial
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medschool.corpus.canaries import is_canary
from medschool.errors import StageError
from medschool.seed import seed_of
from medschool.tokens.portions import open_parquet
from medschool.tokens.tokenizer import Tokenizer

LARGEST_SHARE = 0.1
"""Of a source's documents, the most that are held out."""
SHORTEST = 16
"""Tokens that even a short document is expected to have; bounds how many candidates are read."""


def choose_heldout(
    part_uris: list[str],
    tokenizer: Tokenizer,
    max_tokens: int,
    document_tokens: int,
    seed: int,
    removed: frozenset[str] = frozenset(),
) -> pa.Table:
    """Table (id, tokens) of held-out documents, each cut to `document_tokens`, at most `max_tokens` and a tenth of the documents.

    Documents whose id is in `removed` are not there. Raises StageError when the source is too small to hold anything out.
    """
    parts, rows, known = _ranked(part_uris, seed, removed)
    if known < 2:
        raise StageError(
            f"{known} document cannot be split into training and held-out text", "add documents to this source", part_uris[0]
        )
    candidates = max(1, min(-(-max_tokens // min(SHORTEST, document_tokens)), int(known * LARGEST_SHARE)))
    step = -(-max_tokens // document_tokens)
    chosen: list[np.ndarray] = []
    ids: list[str] = []
    total = 0
    for start in range(0, candidates, step):
        stop = min(start + step, candidates)
        found = _documents(part_uris, parts[start:stop], rows[start:stop])
        for id_, tokens in zip(found[0], tokenizer.encode(found[1]), strict=True):
            if total >= max_tokens:
                break
            ids.append(id_)
            chosen.append(tokens[: min(document_tokens, max_tokens - total)])
            total += len(chosen[-1])
        if total >= max_tokens:
            break
    return pa.table({"id": ids, "tokens": pa.array(chosen, pa.list_(pa.from_numpy_dtype(tokenizer.dtype)))})


def _ranked(part_uris: list[str], seed: int, removed: frozenset[str]) -> tuple[np.ndarray, np.ndarray, int]:
    """(part, row) of every document by rank, and their number; canaries are there to be trained on.

    A revised record has the id of the one before; the first part that holds an id counts.
    """
    hashes, places = [], []
    for uri in part_uris:
        ids = open_parquet(uri, lambda file: file.read(["id"]).column("id").to_pylist())
        kept = [row for row, id_ in enumerate(ids) if id_ not in removed and not is_canary(id_)]
        hashes.append(np.array([seed_of(seed, "heldout", ids[row]) for row in kept], dtype=np.uint64))
        places.append(np.array(kept, dtype=np.int32))
    _, first = np.unique(np.concatenate(hashes), return_index=True)  # sorted by hash, and the first of equal ones
    parts = np.repeat(np.arange(len(part_uris), dtype=np.int32), list(map(len, places)))
    return parts[first], np.concatenate(places)[first], len(first)


def _documents(part_uris: list[str], parts: np.ndarray, rows: np.ndarray) -> tuple[list[str], list[str]]:
    """Ids and texts of these documents, in this order."""
    texts: dict[tuple[int, int], tuple[str, str]] = {}
    for part, places in groupby(sorted(zip(parts.tolist(), rows.tolist(), strict=True)), key=lambda place: place[0]):
        wanted = [row for _, row in places]
        found = open_parquet(part_uris[part], partial(_rows_of, rows=wanted))
        texts |= {(part, row): pair for row, pair in zip(wanted, found, strict=True)}
    picked = [texts[place] for place in zip(parts.tolist(), rows.tolist(), strict=True)]
    return [id_ for id_, _ in picked], [text for _, text in picked]


def _rows_of(file: pq.ParquetFile, rows: list[int]) -> list[tuple[str, str]]:
    """(id, text) of these rows, given in rising order; one row group in memory at a time."""
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
    ends = np.cumsum(sizes)
    found: list[tuple[str, str]] = []
    for group, inside in groupby(rows, key=lambda row: int(np.searchsorted(ends, row, side="right"))):
        table = file.read_row_group(group, columns=["id", "text"])
        some = table.take(pa.array([row - int(ends[group]) + sizes[group] for row in inside]))
        found += zip(some.column("id").to_pylist(), some.column("text").to_pylist(), strict=True)
    return found
