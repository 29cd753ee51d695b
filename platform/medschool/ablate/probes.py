"""What a variant knows that a reference does not: the change on facts that it was trained on, and on twins that nobody saw.

    already knew   share of the trained facts that the reference gets right
    learned        change on the trained facts          generalised   change on the twins
    specific       learned - generalised: what is due to having read these very facts, not to reading their kind of sentence

The share right moves in steps of one fact. The likelihood, the log-probability of the true ending in nats per token, moves with
every fact and shows what a few hundred steps do long before the choice between endings changes.

Trained facts belong to a training seed, because each seed draws other batches: they are compared under that seed alone and then
pooled; a fact that two seeds drew has an id for each and counts twice. A twin is compared under every seed and counts once, with
its mean. The two sets are told apart by nothing but the training, so `specific` resamples them independently of each other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medschool.ablate.chance import Sampling
from medschool.ablate.verdict import Change, Pairs, by_interval, only, same_rows, seed_means, share_change

Sides = list[tuple[pa.Table, pa.Table]]
"""Rows of the variant and of the reference on the same facts, for each training seed."""


def kinds(probes: pa.Table) -> list[str]:
    """The kinds of fact in rows (id, kind, ...), sorted; none where nothing was probed."""
    return sorted(set(probes.column("kind").to_pylist())) if probes.num_rows else []


def probe_counts(probes: pa.Table, seed: int | None) -> dict[str, dict[str, dict[str, int]]]:
    """For each kind, `trained` and `twins`: items, and how many are correct. A trial without a seed answers the facts of all."""
    found = {}
    for kind in kinds(probes):
        rows = only(probes, "kind", kind)
        trained = rows.filter(pc.is_valid(rows.column("seed"))) if seed is None else only(rows, "seed", seed)
        found[kind] = {"trained": _count(trained), "twins": _count(only(rows, "seed", None))}
    return found


def _count(rows: pa.Table) -> dict[str, int]:
    return {"items": rows.num_rows, "correct": sum(rows.column("correct").to_pylist())}


def probe_effects(variant: str, reference: str, pairs: Pairs, how: Sampling) -> list[dict[str, Any]]:
    """One entry for each kind of fact. Raises StageError when the two sides did not answer the same probes."""
    found = sorted({kind for pair in pairs.values() for table in pair for kind in kinds(table)})
    return [_probe_effect(kind, variant, reference, pairs, how) for kind in found]


def _probe_effect(kind: str, variant: str, reference: str, pairs: Pairs, how: Sampling) -> dict[str, Any]:
    trained, twins = list(_sides(pairs, kind, True)), list(_sides(pairs, kind, False))
    facts, others = _differences(trained, _right), _differences(twins, _right)
    gains, other_gains = _differences(trained, _nats), _differences(twins, _nats)
    knew = [right for _, rows in trained for right in rows.column("correct").to_pylist()]
    return {
        "kind": kind,
        "variant": variant,
        "reference": reference,
        "items": facts.shape[1],
        "twins": others.shape[1],
        "already_knew": sum(knew) / len(knew) if knew else None,
        "learned": _words(share_change(facts, how)),
        "generalised": _words(share_change(others, how)),
        "likelihood": {
            "learned": _words(mean_change(gains, how)),
            "generalised": _words(mean_change(other_gains, how)),
            "specific": _words(gap_change(gains, other_gains, how)),
        },
    }


def _words(found: Change) -> dict[str, Any]:
    return {key: value for key, value in asdict(found).items() if key != "by_seed"}


def _sides(pairs: Pairs, kind: str, trained: bool) -> Iterator[tuple[pa.Table, pa.Table]]:
    for seed, pair in pairs.items():
        rows = [only(only(table, "kind", kind), "seed", seed if trained else None) for table in pair]
        variant, reference = same_rows(rows, ("id", "answer", "tokens"), kind)
        yield variant, reference


def _right(rows: pa.Table) -> Sequence[float]:
    return [float(right) for right in rows.column("correct").to_pylist()]


def _nats(rows: pa.Table) -> Sequence[float]:
    return [nats / tokens for nats, tokens in zip(*(rows.column(c).to_pylist() for c in ("log_prob", "tokens")), strict=True)]


def _differences(sides: Sides, value: Callable[[pa.Table], Sequence[float]]) -> np.ndarray:
    """(seeds, facts), nan where a fact does not count under a seed. Facts are told apart by id."""
    columns = {id_: column for column, id_ in enumerate(sorted({id_ for rows, _ in sides for id_ in _ids(rows)}))}
    table = np.full((len(sides), len(columns)), np.nan)
    for row, (variant, reference) in enumerate(sides):
        table[row, [columns[id_] for id_ in _ids(variant)]] = np.subtract(value(variant), value(reference))
    return table


def _ids(rows: pa.Table) -> list[str]:
    found: list[str] = rows.column("id").to_pylist()
    return found


def mean_change(differences: np.ndarray, how: Sampling) -> Change:
    """Of a measure of which more is better: differences (seeds, items), nan where an item does not count under a seed."""
    if not differences.size:
        return Change(None, None, None, None, (), "cannot tell")
    items = np.nanmean(differences, axis=0)
    return by_interval(float(items.mean()), seed_means(differences), np.mean, (items,), True, how, better=1)


def gap_change(differences: np.ndarray, others: np.ndarray, how: Sampling) -> Change:
    """By how much more the items changed than the others; both (seeds, items), resampled independently of each other."""
    if not differences.size or not others.size:
        return Change(None, None, None, None, (), "cannot tell")

    def gap(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(a.mean(axis=axis) - b.mean(axis=axis))

    samples = (np.nanmean(differences, axis=0), np.nanmean(others, axis=0))
    by_seed = tuple(a - b for a, b in zip(seed_means(differences), seed_means(others), strict=True))
    return by_interval(float(gap(*samples)), by_seed, gap, samples, False, how, better=1)
