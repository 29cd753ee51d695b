"""The verdict stage: scores of every trial, every comparison that the recipe asks for, and whether the gate passes, as JSON.

    per-item scores of each trial --make_verdict--> verdict.json --read_verdict--> text table, HTML page, Markdown, MLflow

Compared are: each trained variant with the gate's control (the same number of tokens without the component) and with each variant
that does not train; and each variant with instructions with the one that has equal weights and none, which is what instruction
tuning adds. Everything that a user reads comes from this one file, so no two numbers can differ.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from medschool import storage
from medschool.ablate.chance import Sampling, Shift
from medschool.ablate.exam_scores import exam_scores
from medschool.ablate.family import family, judged
from medschool.ablate.gate import gate_result
from medschool.ablate.probes import probe_counts, probe_effects
from medschool.ablate.retention import retained
from medschool.ablate.verdict import (
    Effect,
    Pairs,
    accuracy_effect,
    accuracy_shift,
    held_out,
    only,
    perplexity_effect,
    perplexity_shift,
)
from medschool.ablate.written import written_scores
from medschool.artifact import Artifact, Output, write_file
from medschool.errors import StageError
from medschool.evaluate.protocol import GENERATED, THOUGHT, protocol_name
from medschool.recipe import Recipe
from medschool.recipe.evaluation import Gate

VERDICT = "verdict.json"
Protocols = tuple[str | None, str | None]
"""Hashes of the scores of an exam and of its answers in words; None where the scores name none."""


@dataclass(frozen=True)
class Scored:
    """What one trial, a variant under one training seed, scored on every document, item and probe. Tables may be empty."""

    name: str
    variant: str
    seed: int | None
    """None for a variant that does not train."""
    losses: pa.Table
    """(source, id, nll_nats, targets)"""
    answers: pa.Table
    """(exam, id, answer, chosen, correct)"""
    written: pa.Table
    """(exam, id, text, chosen, correct); `chosen` is null where the answer names no option."""
    probes: pa.Table
    """(id, kind, seed, answer, chosen, correct, log_prob, tokens); `seed` is null for a twin."""


def make_verdict(
    recipe: Recipe,
    trials: list[Scored],
    prefix_uri: str,
    contamination: Sequence[dict[str, Any]] = (),
    in_corpus: Mapping[str, Collection[str]] | None = None,
) -> Output:
    """Write verdict.json below `prefix_uri`; the gate's result as facts.

    contamination, in_corpus: of medschool.ablate.contamination, the entries and the ids of each exam's items that were found.

    Raises StageError when a score is not finite, or the trials of a comparison have other seeds, documents, items or probes.
    """
    spec = recipe.evaluate
    how = Sampling(spec.bootstrap_resamples, spec.confidence, recipe.seed)
    for trial in trials:
        _check_finite(trial)
    protocols = {exam: _protocols(trials, exam) for exam in recipe.exams}
    pairs = {(name, other): paired_trials(trials, name, other) for name, other in comparisons(recipe)}
    shifts = _shifts(recipe, trials)
    effects = judged([one for names, sides in pairs.items() for one in _effects(recipe, *names, sides, how, shifts)], spec)
    retention = retained(effects, recipe.retention, spec.confidence)
    probes = [
        found
        for names, sides in pairs.items()
        for found in probe_effects(*names, {seed: (a.probes, b.probes) for seed, (a, b) in sides.items()}, how)
        if found["kind"].split("/", 1)[1] not in recipe.variants[names[1]].pretrained_on  # else both have read these facts
    ]
    scores = [_trial(recipe, trial, protocols, in_corpus or {}) for trial in trials]
    gate = gate_result(recipe.gate, effects, retention, scores)
    verdict = {
        "confidence": spec.confidence,
        "trials": scores,
        "effects": [asdict(effect) for effect in effects],
        "family": family(effects, spec),
        "retention": [asdict(entry) for entry in retention],
        "probes": probes,
        "gate": gate,
        "contamination": list(contamination),
    }
    text = json.dumps(verdict, indent=1, allow_nan=False)
    return Output((write_file(prefix_uri, VERDICT, text.encode()),), {"gate": gate})


def read_verdict(artifact: Artifact) -> dict[str, Any]:
    """The whole verdict of a finished stage."""
    verdict: dict[str, Any] = json.loads(storage.read_bytes(artifact.uri(VERDICT)))
    return verdict


def _check_finite(trial: Scored) -> None:
    for table, column in ((trial.losses, "nll_nats"), (trial.probes, "log_prob")):
        if table.num_rows and not np.isfinite(table.column(column).to_numpy()).all():
            problem = f"`{column}` is not a finite number in every row, as after a training that diverged"
            raise StageError(problem, "lower this variant's learning rate, or leave the variant out", f"trial {trial.name}")


def _protocols(trials: Sequence[Scored], exam: str) -> Protocols:
    return _protocol([(t.name, t.answers) for t in trials], exam), _protocol([(t.name, t.written) for t in trials], exam)


def _protocol(tables: Sequence[tuple[str, pa.Table]], exam: str) -> str | None:
    """Hash of the protocol that all trials sat this exam under; None where the scores name none. Raises StageError for two."""
    known: dict[str, str] = {}
    for trial, rows in tables:
        if rows.num_rows and "protocol" in rows.column_names:
            known |= dict.fromkeys(only(rows, "exam", exam).column("protocol").unique().to_pylist(), trial)
    if len(known) > 1:
        told = " and ".join(f"{hash_} (trial {name})" for hash_, name in known.items())
        raise StageError(f"was sat under different protocols: {told}", "evaluate all trials again under one", f"exam {exam}")
    return next(iter(known), None)


# ---- what is compared ---------------------------------------------------------------------------------------------------------


def comparisons(recipe: Recipe) -> list[tuple[str, str]]:
    """(variant, reference) of every comparison, each once, in the recipe's order."""
    untrained = [name for name, variant in recipe.variants.items() if not variant.trains]
    pairs = []
    for name, variant in recipe.variants.items():
        references = [recipe.gate.control] if recipe.gate else []
        if variant.instructions:
            references += [
                other
                for other, plain in recipe.variants.items()
                if not plain.instructions and (plain.weights, plain.weights_from) == (variant.weights, variant.weights_from)
            ]
        if variant.trains:
            pairs += [(name, other) for other in (*references, *untrained) if other != name]
    return list(dict.fromkeys(pairs))


def main_probes(gate: Gate | None, probes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the probes' comparisons, those that a short account shows: against the gate's control, or all where there is no gate."""
    return [probe for probe in probes if gate is None or probe["reference"] == gate.control]


def paired_trials(trials: Sequence[Scored], variant: str, reference: str) -> dict[int, tuple[Scored, Scored]]:
    """The two sides by training seed, ascending; a reference that does not train stands beside every seed.

    Raises StageError when both train and their seeds differ, or one of them has no trial.
    """
    mine = {trial.seed: trial for trial in trials if trial.variant == variant}
    other = {trial.seed: trial for trial in trials if trial.variant == reference}
    if not mine or None in mine or (set(other) != {None} and set(other) != set(mine)):
        problem = f"trials of {variant} have the seeds {_seeds(mine)}, those of {reference} {_seeds(other)}"
        raise StageError(problem, "train and evaluate both under the recipe's seeds", f"{variant} - {reference}")
    return {
        seed: (mine[seed], other[None if None in other else seed]) for seed in sorted(seed for seed in mine if seed is not None)
    }


def _seeds(trials: dict[int | None, Scored]) -> str:
    return ", ".join(map(str, trials)) or "of no trial"


def _effects(
    recipe: Recipe,
    variant: str,
    reference: str,
    sides: dict[int, tuple[Scored, Scored]],
    how: Sampling,
    shifts: dict[str, Shift | None],
) -> list[Effect]:
    losses: Pairs = {seed: (a.losses, b.losses) for seed, (a, b) in sides.items()}
    answers: Pairs = {seed: (a.answers, b.answers) for seed, (a, b) in sides.items()}
    trained = 1 + recipe.variants[reference].trains
    between = {on: shift and shift.between(trained) for on, shift in shifts.items()}
    return [
        *(perplexity_effect(name, variant, reference, losses, how, between[f"sources.{name}"]) for name in recipe.sources),
        *(accuracy_effect(name, variant, reference, answers, how, between[f"exams.{name}"]) for name in recipe.exams),
    ]


def _shifts(recipe: Recipe, trials: Sequence[Scored]) -> dict[str, Shift | None]:
    """How much a training seed moves a model's score on each `sources.<name>` and `exams.<name>`."""
    trained = [[trial for trial in trials if trial.variant == name] for name, spec in recipe.variants.items() if spec.trains]
    losses, answers = (
        [[trial.losses for trial in same] for same in trained],
        [[trial.answers for trial in same] for same in trained],
    )
    return {
        **{f"sources.{name}": perplexity_shift(name, losses) for name in recipe.sources},
        **{f"exams.{name}": accuracy_shift(name, answers) for name in recipe.exams},
    }


# ---- scores of one trial ------------------------------------------------------------------------------------------------------


def _trial(
    recipe: Recipe, trial: Scored, protocols: Mapping[str, Protocols], in_corpus: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    return {
        "name": trial.name,
        "variant": trial.variant,
        "seed": trial.seed,
        "perplexity": {source: _perplexity(trial.losses, source) for source in recipe.sources},
        "exams": {exam: _exam(recipe, trial, exam, protocols[exam], in_corpus.get(exam)) for exam in recipe.exams},
        "probes": probe_counts(trial.probes, trial.seed),
    }


def _perplexity(losses: pa.Table, source: str) -> dict[str, Any]:
    rows = held_out(losses, source)
    targets = sum(rows.column("targets").to_pylist())
    if not targets:
        raise StageError("no held-out document of this source was scored", "evaluate again, on longer documents", source)
    nats = sum(rows.sort_by("id").column("nll_nats").to_pylist())
    return {"value": float(np.exp(nats / targets)), "documents": rows.num_rows, "targets": targets}


def _exam(recipe: Recipe, trial: Scored, exam: str, protocols: Protocols, found: Collection[str] | None) -> dict[str, Any]:
    rows, confidence = only(trial.answers, "exam", exam), recipe.evaluate.confidence
    if not rows.num_rows:
        raise StageError("no item of this exam was answered", "evaluate again", exam)
    name = protocol_name(recipe.exams[exam])
    return exam_scores(rows, found, confidence) | {
        "written": _written(trial, exam, name, protocols[1], found, confidence),
        "protocol": protocols[0],
        "protocol_name": name,
    }


def _written(
    trial: Scored, exam: str, name: str, protocol: str | None, found: Collection[str] | None, confidence: float
) -> dict[str, Any] | None:
    """Scores of the answers in words; None without any. Under a chain of thought they are those of the exam."""
    rows = only(trial.written, "exam", exam) if trial.written.num_rows else trial.written
    if not rows.num_rows:
        return None
    named = {"protocol": protocol, "protocol_name": name if name == THOUGHT else GENERATED}
    return written_scores(rows, confidence, found) | named
