"""From documents to the steps that trained on them.

    id --where/--> pieces (shard, row, tokens) --Order.batches_of--> batches --Ledger.step_of--> steps

The way back through the order is a search in one shard for each epoch, so a document costs the same whether the run has a hundred
batches or a million. `find` reads every token artifact of the store once, however many documents are asked for.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from medschool.artifact import Artifact
from medschool.ledger import Ledger
from medschool.tokens.where import Piece, heldout_ids, index_of, pieces_of
from medschool.trace.talks import talks_about


@dataclass(frozen=True)
class Found:
    """Documents in one token artifact."""

    artifact: Artifact
    pieces: dict[str, list[Piece]]
    """By id; only documents that stand in its rows, or that conversations in them were made from."""
    held_out: frozenset[str]
    """Documents that were asked for and are kept out of its rows, to measure."""


@dataclass(frozen=True)
class Seen:
    """What a run has seen of one document in one source."""

    document: str
    source: str
    visits: tuple[tuple[int, int], ...]
    """(step, tokens) of every piece each time it was trained on, in order."""
    document_tokens: int
    """Tokens of the document in all its rows: more than one pass over it is counted once."""

    @property
    def steps(self) -> list[int]:
        return sorted({step for step, _ in self.visits})

    @property
    def tokens(self) -> int:
        return sum(tokens for _, tokens in self.visits)

    @property
    def times(self) -> float:
        """How often the document was seen as a whole, on average over its tokens."""
        return self.tokens / self.document_tokens

    def until(self, step: int) -> "Seen":
        """What was seen up to and with a step."""
        return Seen(self.document, self.source, tuple(v for v in self.visits if v[0] <= step), self.document_tokens)


def find(artifacts: dict[str, Artifact], ids: Collection[str], sets: Mapping[str, Artifact]) -> dict[str, Found]:
    """The documents in every token artifact, by its digest. sets: of conversations, by digest, which may be about documents."""
    return {
        digest: Found(made, _pieces(made, ids, talks_about(made, sets, ids)), frozenset(heldout_ids(made) & set(ids)))
        for digest, made in artifacts.items()
    }


def _pieces(made: Artifact, ids: Collection[str], about: Mapping[str, str]) -> dict[str, list[Piece]]:
    """The pieces of each document, those of the conversations about it among them."""
    found: dict[str, list[Piece]] = {}
    for id_, pieces in pieces_of(made, index_of(made), {*ids, *about}).items():
        for known in {id_, about.get(id_, id_)} & set(ids):
            found.setdefault(known, []).extend(pieces)
    return found


def seen_by(ledger: Ledger, found: dict[str, Found]) -> list[Seen]:
    """What a run has seen of the documents; those that it has not seen are left out."""
    seen = []
    for source, digest in ledger.digests.items():
        for id_, pieces in (found[digest].pieces if digest in found else {}).items():
            visits = sorted((step, piece.tokens) for piece in pieces for step in _steps(ledger, source, piece))
            if visits:
                seen.append(Seen(id_, source, tuple(visits), sum(piece.tokens for piece in pieces)))
    return seen


def _steps(ledger: Ledger, source: str, piece: Piece) -> list[int]:
    """Steps that trained on the row of a piece, ascending."""
    batches = ledger.order.batches_of(source, piece.shard, piece.row, ledger.batches)
    return [step for batch in batches if (step := ledger.step_of(batch)) is not None]
