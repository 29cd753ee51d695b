"""Rows of conversations as the trainer receives them: every token with its position, its conversation, and whether it is trained.

Rows come through the reader of training (medschool.tokens.shards), positions through `model_inputs` and targets through
`targets_of` (medschool.train.model): a token is shown as trained where it is the target of the one before it, which is what the
loss is made of. So a mask that training would not follow is not shown as if it did.

A token's text is what it adds to the text of its conversation so far. A character of several tokens is told at its last one.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from medschool.artifact import Artifact
from medschool.tokens.pack import PADDING
from medschool.tokens.shards import read_rows, tokens_of, trained_of
from medschool.tokens.where import index_of
from medschool.train.model import IGNORED, model_inputs, targets_of

PAGE = "mask.html.j2"
WINDOW = 8
"""Tokens before one that are decoded with it; a character has at most four bytes."""


@dataclass(frozen=True)
class Shown:
    """One token."""

    id: int
    text: str
    position: int
    """In its conversation, from 0."""
    trained: bool


@dataclass(frozen=True)
class Piece:
    """One conversation in a row, or the padding at its end."""

    conversation: str
    """Its id; empty for padding."""
    tokens: tuple[Shown, ...]

    @property
    def trained(self) -> int:
        return sum(token.trained for token in self.tokens)


@dataclass(frozen=True)
class Row:
    """One row."""

    shard: int
    row: int
    pieces: tuple[Piece, ...]


def first_rows(made: Artifact, decode: Callable[[Sequence[int]], str], count: int) -> list[Row]:
    """The first `count` rows of a chats artifact, in stored order. decode: text of token ids, control tokens by their names.

    Raises as tokens.shards.read_rows.
    """
    found: list[Row] = []
    sha256 = {file.path: file.sha256 for file in made.files}
    for shard, (path, rows) in enumerate(index_of(made).shards):
        wanted = list(range(min(rows, count - len(found))))
        if wanted:
            pieces = _pieces(read_rows(made.uri(path), wanted, sha256[path]), decode)
            found += [Row(shard, row, some) for row, some in zip(wanted, pieces, strict=True)]
    return found


def _pieces(table: pa.Table, decode: Callable[[Sequence[int]], str]) -> list[tuple[Piece, ...]]:
    """The pieces of each of B rows of L tokens."""
    tokens, names, lengths = tokens_of(table), table.column("doc_ids").to_pylist(), table.column("doc_lengths").to_pylist()
    inputs = model_inputs(tokens, lengths)
    targets = targets_of(tokens, lengths, trained_of(table), np.ones(len(tokens))).numpy()
    trained = np.zeros(tokens.shape, dtype=bool)
    trained[:, 1:] = targets[:, :-1] != IGNORED  # position i predicts token i + 1
    parts = []
    for row, sizes in enumerate(lengths):
        ids, positions = inputs["input_ids"][row].tolist(), inputs["position_ids"][row].tolist()
        shown = [Shown(id_, "", *about) for id_, *about in zip(ids, positions, trained[row].tolist(), strict=True)]
        ends = np.cumsum(sizes).tolist()
        pieces = [shown[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        parts.append(tuple(Piece(name, _with_texts(some, decode)) for name, some in zip(names[row], pieces, strict=True)))
    return parts


def _with_texts(tokens: list[Shown], decode: Callable[[Sequence[int]], str]) -> tuple[Shown, ...]:
    texts = token_texts([token.id for token in tokens], decode)
    return tuple(replace(token, text=text) for token, text in zip(tokens, texts, strict=True))


def token_texts(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """What each token adds to the text; together the text of all. An unfinished character is empty until its last token."""
    texts, start, done = list[str](), 0, 0
    for place in range(len(ids)):
        before, now = decode(ids[start:done]), decode(ids[start : place + 1])
        if now.endswith("\ufffd") and place + 1 < len(ids) and place - done < WINDOW:
            texts.append("")
            continue
        texts.append(now[len(before) :])
        start, done = done, place + 1
    return texts


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def padding_of(row: Row) -> int:
    """Tokens of a row that stand for nothing."""
    return sum(len(piece.tokens) for piece in row.pieces if piece.conversation == PADDING)


def page(rows: Sequence[Row], name: str) -> str:
    """The rows as one self-contained HTML page."""
    return _template().render(rows=rows, name=name, padding_of=padding_of)


@cache
def _template() -> Template:
    """Loaded once a process; what is in a token's text stays text."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(PAGE)
