"""Which documents are kept out of training to measure it.

Documents are ranked by a hash of (seed, id) and taken from the top until the token budget is full. So the choice does not depend
on the order or number of files, and a corpus that grows keeps most of its held-out set.
"""

import pyarrow as pa
import pyarrow.compute as pc

from medschool import storage
from medschool.errors import StageError
from medschool.seed import seed_of
from medschool.tokens.tokenizer import Tokenizer

LARGEST_SHARE = 0.1
"""Of a source's documents, the most that are held out."""
SHORTEST = 16
"""Tokens that even a short document is expected to have; bounds how many candidates are read."""


def choose_heldout(part_uris: list[str], tokenizer: Tokenizer, max_tokens: int, document_tokens: int, seed: int) -> pa.Table:
    """Table (id, tokens) of held-out documents, each cut to `document_tokens`, at most `max_tokens` and a tenth of the documents.

    Raises StageError when the source is too small to hold anything out.
    """
    first: dict[str, str] = {}  # a revised record has the id of the one before; the first part that holds it counts
    for uri in part_uris:
        for id_ in _column(uri, "id"):
            first.setdefault(id_, uri)
    ids = [(seed_of(seed, "heldout", id_), id_, uri) for id_, uri in first.items()]
    candidates = min(-(-max_tokens // min(SHORTEST, document_tokens)), int(len(ids) * LARGEST_SHARE))
    ranked = sorted(ids)[: max(1, candidates)]
    if len(ids) < 2:
        raise StageError(
            f"{len(ids)} document cannot be split into training and held-out text", "add documents to this source", part_uris[0]
        )
    texts = _texts(ranked)
    encoded = tokenizer.encode([texts[id_] for _, id_, _ in ranked])
    chosen_ids, chosen, total = [], [], 0
    for (_, id_, _), tokens in zip(ranked, encoded, strict=True):
        if total >= max_tokens:
            break
        chosen_ids.append(id_)
        chosen.append(tokens[: min(document_tokens, max_tokens - total)])
        total += len(chosen[-1])
    return pa.table({"id": chosen_ids, "tokens": pa.array(chosen, pa.list_(pa.from_numpy_dtype(tokenizer.dtype)))})


def _column(uri: str, name: str) -> list[str]:
    values: list[str] = storage.read_parquet(uri, [name]).column(name).to_pylist()
    return values


def _texts(ranked: list[tuple[int, str, str]]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for uri in sorted({uri for _, _, uri in ranked}):
        wanted = [id_ for _, id_, where in ranked if where == uri]
        part = storage.read_parquet(uri, ["id", "text"])
        rows = part.filter(pc.is_in(part.column("id"), pa.array(wanted)))
        texts |= dict(zip(rows.column("id").to_pylist(), rows.column("text").to_pylist(), strict=True))
    return texts
