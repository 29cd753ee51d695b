"""The verdict stage: scores of every trial, every comparison that the recipe asks for, and whether the gate passes, as JSON.

    per-item scores of each trial --make_verdict--> verdict.json --read_verdict--> text table, HTML page, MLflow

Compared are: each trained variant with the gate's control (the same number of tokens without the component) and with each variant
that does not train; and each variant with instructions with the one that has equal weights and none, which is what instruction
tuning adds. Everything that a user reads comes from this one file, so no two numbers can differ.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from medschool import storage
from medschool.ablate.probes import probe_counts, probe_effects
from medschool.ablate.verdict import (
    Effect,
    Measure,
    Pairs,
    Sampling,
    accuracy_effect,
    held_out,
    only,
    perplexity_effect,
    wilson,
)
from medschool.artifact import Artifact, Output, write_file
from medschool.errors import StageError
from medschool.recipe import Recipe
from medschool.recipe.schema import Gate

VERDICT = "verdict.json"


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


def make_verdict(recipe: Recipe, trials: list[Scored], prefix_uri: str, contamination: Sequence[dict[str, Any]] = ()) -> Output:
    """Write verdict.json below `prefix_uri`; the gate's result as facts. contamination: of medschool.ablate.contamination.

    Raises StageError when a score is not finite, or the trials of a comparison have other seeds, documents, items or probes.
    """
    spec = recipe.evaluate
    how = Sampling(spec.bootstrap_resamples, spec.confidence, recipe.seed)
    for trial in trials:
        _check_finite(trial)
    pairs = {(name, other): paired_trials(trials, name, other) for name, other in comparisons(recipe)}
    effects = [effect for names, sides in pairs.items() for effect in _effects(recipe, *names, sides, how)]
    probes = [
        found
        for names, sides in pairs.items()
        for found in probe_effects(*names, {seed: (a.probes, b.probes) for seed, (a, b) in sides.items()}, how)
        if found["kind"].split("/", 1)[1] not in recipe.variants[names[1]].pretrained_on  # else both have read these facts
    ]
    scores = [_trial(recipe, trial) for trial in trials]
    gate = gate_result(recipe.gate, effects, scores)
    verdict = {
        "confidence": spec.confidence,
        "trials": scores,
        "effects": [asdict(effect) for effect in effects],
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
    recipe: Recipe, variant: str, reference: str, sides: dict[int, tuple[Scored, Scored]], how: Sampling
) -> list[Effect]:
    losses: Pairs = {seed: (a.losses, b.losses) for seed, (a, b) in sides.items()}
    answers: Pairs = {seed: (a.answers, b.answers) for seed, (a, b) in sides.items()}
    return [
        *(perplexity_effect(source, variant, reference, losses, how) for source in recipe.sources),
        *(accuracy_effect(exam, variant, reference, answers, how) for exam in recipe.exams),
    ]


# ---- scores of one trial ------------------------------------------------------------------------------------------------------


def _trial(recipe: Recipe, trial: Scored) -> dict[str, Any]:
    return {
        "name": trial.name,
        "variant": trial.variant,
        "seed": trial.seed,
        "perplexity": {source: _perplexity(trial.losses, source) for source in recipe.sources},
        "exams": {exam: _exam(trial, exam, recipe.evaluate.confidence) for exam in recipe.exams},
        "probes": probe_counts(trial.probes, trial.seed),
    }


def _perplexity(losses: pa.Table, source: str) -> dict[str, Any]:
    rows = held_out(losses, source)
    targets = sum(rows.column("targets").to_pylist())
    if not targets:
        raise StageError("no held-out document of this source was scored", "evaluate again, on longer documents", source)
    nats = sum(rows.sort_by("id").column("nll_nats").to_pylist())
    return {"value": float(np.exp(nats / targets)), "documents": rows.num_rows, "targets": targets}


def _exam(trial: Scored, exam: str, confidence: float) -> dict[str, Any]:
    right = only(trial.answers, "exam", exam).column("correct").to_pylist()
    if not right:
        raise StageError("no item of this exam was answered", "evaluate again", exam)
    low, high = wilson(sum(right), len(right), confidence)
    written = only(trial.written, "exam", exam) if trial.written.num_rows else trial.written
    return {
        "items": len(right),
        "correct": sum(right),
        "accuracy": sum(right) / len(right),
        "low": low,
        "high": high,
        "written": _written(written) if written.num_rows else None,
    }


def _written(rows: pa.Table) -> dict[str, int]:
    return {
        "items": rows.num_rows,
        "correct": sum(rows.column("correct").to_pylist()),
        "unparsed": rows.column("chosen").null_count,
    }


# ---- the gate -----------------------------------------------------------------------------------------------------------------


def gate_result(gate: Gate | None, effects: Sequence[Effect], trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first candidate that passes, its trial to register, and the sentences that say why or why not.

    A candidate passes when every source of `improves` is helped against the control and no exam of `keeps` is hurt. An exam that
    is too small to show harm lets it pass: the sentence has the interval. Of several seeds the trial with the lowest mean
    perplexity on `improves` wins.
    """
    failed = {"passed": False, "winner": None, "winner_trial": None}
    if gate is None:
        return failed | {"reason": "The recipe has no gate, so nothing is registered."}
    notes = []
    for name in gate.candidates:
        passed, note = _judged(gate, name, effects)
        notes.append(note)
        if passed:
            return {"passed": True, "winner": name, "winner_trial": _best(gate, name, trials), "reason": " ".join(notes)}
    return failed | {"reason": " ".join(notes)}


def _judged(gate: Gate, name: str, effects: Sequence[Effect]) -> tuple[bool, str]:
    found = {(e.measure, e.on): e for e in effects if (e.variant, e.reference) == (name, gate.control)}
    lower, kept = [found["perplexity", source] for source in gate.improves], [found["accuracy", exam] for exam in gate.keeps]
    bad = [e for e in lower if e.word != "helped"] + [e for e in kept if e.word == "hurt"]
    if bad:
        words = ", ".join(f"{_shown(e)} ({e.word})" for e in bad)
        return False, f"{name} does not pass against {gate.control}: {words}."
    keeps = f", and is not worse beyond chance: {', '.join(map(_shown, kept))}" if kept else ""
    return True, f"{name} improves on {gate.control}: {', '.join(map(_shown, lower))}{keeps}."


def _shown(effect: Effect) -> str:
    return f"{effect.on} {change_text(effect.measure, effect.change)} {interval_text(effect.measure, effect.low, effect.high)}"


def _best(gate: Gate, name: str, trials: Sequence[dict[str, Any]]) -> str:
    mine = [trial for trial in trials if trial["variant"] == name]
    best = min(
        mine, key=lambda trial: (np.mean([trial["perplexity"][source]["value"] for source in gate.improves]), trial["name"])
    )
    return str(best["name"])


# ---- numbers in words ---------------------------------------------------------------------------------------------------------


def percent(value: float) -> str:
    """`-4.3%`"""
    return f"{100 * value:+.1f}%"


def change_text(measure: Measure, value: float | None) -> str:
    """`-4.3%` of perplexity, `+1.5 pts` of accuracy, `-` where there is none."""
    if value is None:
        return "-"
    return percent(value) if measure == "perplexity" else f"{100 * value:+.1f} pts"


def interval_text(measure: Measure, low: float | None, high: float | None) -> str:
    """`[-6.4%, -2.1%]` of perplexity, `[-3.0, +6.0]` points of accuracy."""
    if low is None or high is None:
        return "no interval"
    return f"[{percent(low)}, {percent(high)}]" if measure == "perplexity" else f"[{100 * low:+.1f}, {100 * high:+.1f}]"
