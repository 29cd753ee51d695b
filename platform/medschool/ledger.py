"""The ledger: which rows a checkpoint has consumed, and so which documents, written beside its weights.

The order of a run is a pure function, so nothing has to be written down row by row. The ledger holds what the function needs
(weights, curriculum, seed, rows of every shard, rows withheld), the digests of the token artifacts that the rows lie in, and how
far the run has come: it stands before batch `batches`, and all batches before it were trained but those in `skipped`.

    ledger + order --> step s trained batch b --> (source, shard, row) --where/NNNNN.parquet--> document ids

Beside that stands what really arrived: every training worker counts the rows it is fed, by source. `check` compares the two, so
that planned and consumed tokens agree or the run is no success.

It names content only, no address, worker or time: two runs that trained the same have the same ledger, byte by byte, whatever
happened on the way. It costs a number a shard and a number a withheld row: 50 kB for 9,000 shards.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from medschool.errors import InputError, StageError
from medschool.tokens.order import Order

LEDGER = "ledger.json"
LEDGER_FORMAT = 1


@dataclass(frozen=True)
class Ledger:
    """What one run has consumed so far."""

    order: Order
    row_tokens: int
    digests: Mapping[str, str]
    """Digest of the token artifact of each source (Artifact.digest)."""
    model: str
    """Digest of the model that the run began from."""
    batches: int = 0
    """The run stands before this batch."""
    skipped: tuple[int, ...] = ()
    """Batches before it that were not trained on, ascending."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Rows of each source as counted when they arrived: on one rank while it trains, of all ranks in a file."""

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return self.batches - len(self.skipped)

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of the rows counted, whole rows, by source."""
        return {name: count * self.row_tokens for name, count in self.rows.items()}

    def after(self, batch: int, rows: Mapping[str, int]) -> "Ledger":
        """The ledger after `batch` was trained on; batches between the last one and this one were skipped."""
        counted = {name: self.rows.get(name, 0) + rows.get(name, 0) for name in self.order.sources}
        return replace(self.before(batch), batches=batch + 1, rows=counted)

    def before(self, batch: int) -> "Ledger":
        """The ledger of a run that stands before `batch`; batches not trained on until there were skipped."""
        return replace(self, batches=batch, skipped=(*self.skipped, *range(self.batches, batch)))

    def of_all(self, counts: Iterable[Mapping[str, int]]) -> "Ledger":
        """The ledger of a whole worker group, from what each rank has counted."""
        parts = list(counts)
        return replace(self, rows={name: sum(part.get(name, 0) for part in parts) for name in self.order.sources})

    def planned_rows(self) -> dict[str, int]:
        """Rows of each source in the batches that were trained on, as the order has them."""
        planned = self.order.mixture.rows_before(self.batches)
        for batch in self.skipped:
            for name, rows in self.order.mixture.rows_in(batch).items():
                planned[name] -= rows
        return planned

    def step_of(self, batch: int) -> int | None:
        """The optimizer step (from 1) that trained on a batch; None when none has."""
        if batch >= self.batches or batch in self.skipped:
            return None
        return batch + 1 - sum(skipped < batch for skipped in self.skipped)

    def trained(self) -> list[tuple[int, int]]:
        """The batches trained on, as ranges [start, stop)."""
        edges = [-1, *self.skipped, self.batches]
        return [(left + 1, right) for left, right in itertools.pairwise(edges) if left + 1 < right]

    def trained_batches(self) -> Iterator[int]:
        """The batches trained on, in order: the n-th of them is step n."""
        return (batch for start, stop in self.trained() for batch in range(start, stop))

    def check(self, steps: int, where: str) -> None:
        """Raise StageError unless `steps` were trained and the tokens that arrived are those planned, source by source."""
        planned = {name: rows * self.row_tokens for name, rows in self.planned_rows().items()}
        if self.steps != steps or self.tokens != planned:
            raise StageError(
                f"consumed {self.tokens} tokens in {self.steps} steps, planned were {planned} in {steps}",
                "what was trained is not what the recipe says: do not use this model, and report it with the job's log",
                where,
            )


def ledger_bytes(ledger: Ledger) -> bytes:
    """The ledger as JSON; `trained`, `steps` and `tokens` are there for who reads it, and compared when it is read again."""
    order = ledger.order
    value = {
        "format": LEDGER_FORMAT,
        **_told(ledger),
        "skipped": ledger.skipped,
        "rows": ledger.rows,
        "row_tokens": ledger.row_tokens,
        "model": ledger.model,
        "digests": ledger.digests,
        "order": {
            "weights": order.weights,
            "weights_from": order.weights_from,
            "batch_rows": order.batch_rows,
            "seed": order.seed,
            "shard_rows": order.shard_rows,
            "withheld": order.withheld,
        },
    }
    return json.dumps(value).encode()


def parse_ledger(data: bytes, where: str) -> Ledger:
    """The ledger of a file. Raises InputError at `where` when it is not readable, or contradicts itself."""
    try:
        raw = json.loads(data)
        if raw["format"] != LEDGER_FORMAT:
            raise ValueError(f"format {raw['format']}, this version reads {LEDGER_FORMAT}")
        ledger = Ledger(
            _order(raw["order"]),
            raw["row_tokens"],
            raw["digests"],
            raw["model"],
            raw["steps"] + len(raw["skipped"]),
            tuple(raw["skipped"]),
            raw["rows"],
        )
        if any(raw[name] != value for name, value in json.loads(json.dumps(_told(ledger))).items()):
            raise ValueError("what it tells does not follow from what it holds")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"not a ledger ({error})", "restore the object; nothing can be said about this checkpoint", where
        ) from error
    return ledger


def _told(ledger: Ledger) -> dict[str, Any]:
    return {"steps": ledger.steps, "trained": ledger.trained(), "tokens": ledger.tokens}


def _order(raw: dict[str, Any]) -> Order:
    return Order(
        raw["weights"],
        raw["batch_rows"],
        {name: tuple(rows) for name, rows in raw["shard_rows"].items()},
        raw["seed"],
        {name: {int(shard): tuple(rows) for shard, rows in shards.items()} for name, shards in raw["withheld"].items()},
        {int(batch): weights for batch, weights in raw["weights_from"].items()},
    )


def go_on(fresh: Ledger, stored: Ledger, batches: int, steps: int, where: str) -> Ledger:
    """The ledger that a resumed run goes on with.

    Raises InputError at `where` unless it is of the same run as `fresh` and stands at the checkpoint's own batch and step.
    """
    begun = replace(stored, batches=0, skipped=(), rows={})
    if begun != replace(fresh, batches=0, skipped=(), rows={}) or (stored.batches, stored.steps) != (batches, steps):
        raise InputError(
            f"its ledger stands at batch {stored.batches}, step {stored.steps} of its run; the checkpoint is at batch {batches}, "
            f"step {steps} of this one",
            "delete the checkpoint: an older one is used",
            where,
        )
    return stored
