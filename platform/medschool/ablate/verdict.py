"""Differences between variants on the same held-out documents, by the paired bootstrap.

The effect of a variant against another on one source is the relative change of perplexity, exp(d) - 1, where d is the difference
of the summed losses over all documents divided by the number of targets. Its interval comes from resampling documents (Efron and
Tibshirani 1993, chapter 13, percentile method): both variants are taken on the same resampled documents, so what makes a document
easy or hard cancels. A single variant's own interval is wide for exactly that reason and says little about the difference.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from scipy.stats import bootstrap

from medschool.errors import StageError

Word = Literal["helped", "hurt", "cannot tell"]


@dataclass(frozen=True)
class Effect:
    """Relative change of held-out perplexity of `variant` against `reference` on one source; -0.05 is five per cent lower."""

    source: str
    variant: str
    reference: str
    documents: int
    change: float
    low: float
    high: float

    @property
    def word(self) -> Word:
        """`helped` when the whole interval is below zero, `hurt` when above, else `cannot tell`."""
        return "helped" if self.high < 0 else "hurt" if self.low > 0 else "cannot tell"


def effect(
    source: str, variant: str, reference: str, losses: dict[str, pa.Table], resamples: int, confidence: float, seed: int
) -> Effect:
    """Paired effect on one source. Raises StageError when the two variants were not scored on the same documents."""
    ids, nll, targets = _paired(source, losses[variant], losses[reference])
    differences = nll[0] - nll[1]

    def change(d: np.ndarray, n: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(np.expm1(d.sum(axis=axis) / n.sum(axis=axis)))

    point = float(change(differences, targets))
    if len(ids) < 2:
        return Effect(source, variant, reference, len(ids), point, float("-inf"), float("inf"))
    result = bootstrap(
        (differences, targets), change, paired=True, vectorized=True, n_resamples=resamples, batch=1000,
        confidence_level=confidence, method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = result.confidence_interval
    return Effect(source, variant, reference, len(ids), point, float(low), float(high))


def _paired(source: str, variant: pa.Table, reference: pa.Table) -> tuple[list[str], tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Ids, the losses of both, and the targets of the documents of one source, in the same order."""
    rows = []
    for table in (variant, reference):
        mask = pa.array([name == source for name in table.column("source").to_pylist()])
        rows.append(table.filter(mask).sort_by("id"))
    if rows[0].column("id") != rows[1].column("id") or rows[0].column("targets") != rows[1].column("targets"):
        raise StageError(
            "the two variants were not scored on the same documents", "evaluate both again from one token artifact", source
        )
    targets = rows[0].column("targets").to_numpy().astype(float)
    return (
        rows[0].column("id").to_pylist(),
        (rows[0].column("nll_nats").to_numpy(), rows[1].column("nll_nats").to_numpy()),
        targets,
    )
