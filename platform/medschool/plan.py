"""What a recipe will do, before anything runs: each stage's standing, and the tokens, steps and FLOP of training.

Sizes come from finished token artifacts where there are any, else from `expected_tokens` in the recipe.
"""

import json
from dataclasses import dataclass
from typing import Any

from medschool import storage
from medschool.cluster.fit import parameters, shape_of, training_flops
from medschool.errors import MedschoolError, PlanError, StageError
from medschool.recipe import Recipe
from medschool.recipe.schema import Shape
from medschool.stage import Resolved, counting_weights, resolve_all
from medschool.tokens.mixture import Mixture
from medschool.tokens.shards import INDEX, Index, parse_index


@dataclass(frozen=True)
class Phase:
    """Training of one variant. None where the size of a source is not known yet."""

    variant: str
    steps: int | None
    tokens: int | None
    flops: float | None
    tokens_by_source: dict[str, int]
    repeats_by_source: dict[str, float]
    """How often each source is seen, where its size is known."""


@dataclass(frozen=True)
class Plan:
    """A recipe against a store."""

    recipe: Recipe
    stages: dict[str, Resolved]
    phases: tuple[Phase, ...]
    parameters: int | None

    def as_json(self) -> dict[str, Any]:
        known = [phase for phase in self.phases if phase.tokens is not None]
        return {
            "recipe": self.recipe.name,
            "parameters": self.parameters,
            "stages": [
                {"name": name, "state": item.state, "fingerprint": item.fingerprint, "reason": item.reason}
                for name, item in self.stages.items()
            ],
            "phases": [vars(phase) for phase in self.phases],
            "totals": {
                "pretrain": {
                    "tokens": sum(phase.tokens or 0 for phase in known),
                    "steps": sum(phase.steps or 0 for phase in known),
                    "flops": sum(phase.flops or 0.0 for phase in known),
                }
            },
        }

    def lines(self) -> list[str]:
        """The plan as text."""
        width = max(map(len, self.stages))
        text = [f"{name:<{width}}  {item.state:<8} {item.reason}".rstrip() for name, item in self.stages.items()]
        if self.parameters:
            text += ["", f"model: {self.parameters / 1e9:.3g}e9 parameters"]
        for phase in self.phases:
            if phase.steps is None or phase.tokens is None:
                text.append(
                    f"pretrain/{phase.variant}: length unknown until {self.recipe.pretrain.length.epochs_of} is tokenized, "
                    "unless it has expected_tokens"
                )
                continue
            seen = ", ".join(f"{name} {count:,}{_times(phase, name)}" for name, count in phase.tokens_by_source.items())
            flops = f", {phase.flops:.2g} FLOP" if phase.flops else ""
            text += [
                f"pretrain/{phase.variant}: {phase.steps:,} steps, {phase.tokens:,} tokens{flops}",
                f"    tokens by source (times seen): {seen}",
            ]
        return text


def _times(phase: Phase, source: str) -> str:
    """` (5 x)`: how often a source of known size is seen."""
    return f" ({phase.repeats_by_source[source]:.3g} x)" if source in phase.repeats_by_source else ""


def make_plan(recipe: Recipe, store_uri: str) -> Plan:
    """Resolve every stage and work out every phase. Raises PlanError when the recipe and the model do not fit each other."""
    shape = check_model(recipe, store_uri)
    resolved = resolve_all(recipe, store_uri)
    rows = {name: _rows(recipe, name, resolved) for name in recipe.sources}
    phases = tuple(_phase(recipe, name, rows, shape) for name, variant in recipe.variants.items() if variant.weights)
    return Plan(recipe, resolved, phases, parameters(shape) if shape else None)


def check_model(recipe: Recipe, store_uri: str) -> Shape | None:
    """The model's shape where it is known. Raises PlanError when a row is longer than the model takes, or two shapes differ."""
    shape = model_shape(recipe, store_uri)
    if shape and recipe.tokens.row_tokens > shape.max_position_embeddings:
        raise PlanError(
            f"tokens.row_tokens is {recipe.tokens.row_tokens}, the model takes at most {shape.max_position_embeddings} positions",
            f"set tokens.row_tokens to {shape.max_position_embeddings} or less",
            "tokens.row_tokens",
        )
    return shape


def model_shape(recipe: Recipe, store_uri: str) -> Shape | None:
    """Shape from the model's config.json in the store, else from the recipe; PlanError when the two differ."""
    if not store_uri:
        return recipe.model.shape
    uri = storage.join(store_uri, recipe.model.uri, "config.json")
    try:
        stored = shape_of(json.loads(storage.read_bytes(uri)), uri)
    except (FileNotFoundError, MedschoolError):
        return recipe.model.shape
    if recipe.model.shape and recipe.model.shape != stored:
        wrong = [name for name in Shape.model_fields if getattr(stored, name) != getattr(recipe.model.shape, name)]
        raise PlanError(
            f"{', '.join(wrong)} differ from the model's config.json", "correct model.shape or leave it out", "model.shape"
        )
    return stored


def read_index(resolved: Resolved) -> Index | None:
    """The index of a finished tokens stage."""
    return parse_index(storage.read_bytes(resolved.artifact.uri(INDEX))) if resolved.artifact else None


def phase_steps(recipe: Recipe, rows: dict[str, int | None]) -> int | None:
    """Optimizer steps of every variant; None when the size of the source that counts epochs is unknown."""
    length = recipe.pretrain.length
    if length.steps is not None:
        return length.steps
    assert length.epochs is not None and length.epochs_of is not None
    counted = rows[length.epochs_of]
    if counted is None:
        return None
    return Mixture(counting_weights(recipe), recipe.pretrain.batch_rows).batches_for(length.epochs_of, length.epochs * counted)


def check_rows(recipe: Recipe, variant: str, rows: dict[str, int | None]) -> None:
    """Raise StageError when a source that the variant trains on has no full row."""
    for name in recipe.variants[variant].weights or {}:
        if rows[name] == 0:
            raise StageError(
                "has not one full row of tokens", "add text to the source, or lower tokens.row_tokens", f"sources.{name}"
            )


def _rows(recipe: Recipe, source: str, resolved: dict[str, Resolved]) -> int | None:
    index = read_index(resolved[f"tokens/{source}"])
    if index is not None:
        return index.rows
    expected = recipe.sources[source].expected_tokens
    return None if expected is None else expected // recipe.tokens.row_tokens


def _phase(recipe: Recipe, variant: str, rows: dict[str, int | None], shape: Shape | None) -> Phase:
    weights = recipe.variants[variant].weights or {}
    steps = phase_steps(recipe, rows)
    if steps is None:
        return Phase(variant, None, None, None, {}, {})
    taken = Mixture(weights, recipe.pretrain.batch_rows).rows_before(steps)
    tokens = steps * recipe.pretrain.batch_rows * recipe.tokens.row_tokens
    return Phase(
        variant=variant,
        steps=steps,
        tokens=tokens,
        flops=training_flops(shape, tokens) if shape else None,
        tokens_by_source={name: count * recipe.tokens.row_tokens for name, count in taken.items()},
        repeats_by_source={name: round(count / size, 3) for name, count in taken.items() if (size := rows[name])},
    )
