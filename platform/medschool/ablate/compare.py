"""The verdict stage: every comparison that the recipe asks for, whether the gate passes, and the table as JSON."""

import json
from dataclasses import asdict

import pyarrow as pa

from medschool.ablate.verdict import Effect, effect
from medschool.artifact import Artifact, Output, write_file
from medschool.evaluate.on_ray import LOSSES, read_losses
from medschool.recipe import Recipe

VERDICT = "verdict.json"


def make_verdict(recipe: Recipe, scores: dict[str, Artifact], prefix_uri: str) -> Output:
    """Compare every trained variant with the control (or with the base, where there is none) on every source."""
    losses = {name: read_losses(artifact.uri(LOSSES)) for name, artifact in scores.items()}
    effects = _effects(recipe, losses)
    passed, reason = gate_result(recipe, effects)
    verdict = {
        "perplexity": {name: artifact.facts["perplexity"] for name, artifact in scores.items()},
        "effects": [asdict(item) | {"word": item.word} for item in effects],
        "gate": {"passed": passed, "reason": reason},
        "confidence": recipe.evaluate.confidence,
    }
    return Output((write_file(prefix_uri, VERDICT, json.dumps(verdict, indent=1, sort_keys=True).encode()),), verdict)


def _effects(recipe: Recipe, losses: dict[str, pa.Table]) -> list[Effect]:
    trained = [name for name, variant in recipe.variants.items() if variant.weights is not None]
    untrained = [name for name in recipe.variants if name not in trained]
    control = [recipe.gate.control] if recipe.gate else []
    pairs = [(name, other) for name in trained for other in (*control, *untrained) if name != other]
    spec = recipe.evaluate
    return [
        effect(source, name, other, losses, spec.bootstrap_resamples, spec.confidence, recipe.seed)
        for name, other in dict.fromkeys(pairs)
        for source in recipe.sources
    ]


def gate_result(recipe: Recipe, effects: list[Effect]) -> tuple[bool, str]:
    """Whether the candidate may be registered, and the sentence that says why or why not."""
    gate = recipe.gate
    if gate is None:
        return False, "the recipe has no gate, so nothing is registered"
    decisive = [e for e in effects if (e.variant, e.reference) == (gate.candidate, gate.control) and e.source in gate.improves]
    failed = [e for e in decisive if e.word != "helped"]
    words = [f"{e.source} {percent(e.change)} [{percent(e.low)}, {percent(e.high)}]" for e in (failed or decisive)]
    complete = {e.source for e in decisive} == set(gate.improves)
    verb = "does not improve on" if failed else "improves on"
    return complete and not failed, f"{gate.candidate} {verb} {gate.control}: {', '.join(words)}"


def percent(value: float) -> str:
    return f"{100 * value:+.1f}%"
