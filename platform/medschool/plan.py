"""What a recipe will do, before anything runs: each stage's standing, and the tokens, steps and FLOP of training.

Sizes come from finished token artifacts where there are any, else from `expected_tokens` in the recipe.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medschool import storage
from medschool.cluster.fit import parameters, shape_of, training_flops
from medschool.errors import MedschoolError, PlanError, StageError
from medschool.procedure import PHASES, Phase, counting_weights, phase_weights, resolve_all, row_tokens, training, trials
from medschool.recipe import Recipe
from medschool.recipe.schema import Shape
from medschool.stage import Resolved
from medschool.tokens.mixture import Mixture
from medschool.tokens.shards import INDEX, Index, parse_index


@dataclass(frozen=True)
class Course:
    """One phase of training of one trial. None where the size of what counts its epochs is not known yet."""

    stage: str
    """`pretrain/knowledge`, `instruct/instructed`..."""
    shared_with: str | None
    """An earlier stage that trains the same, so that this one costs nothing."""
    steps: int | None
    tokens: int | None
    flops: float | None
    tokens_by_source: dict[str, int]
    repeats_by_source: dict[str, float]
    """How often each source or set is seen, where its size is known."""


@dataclass(frozen=True)
class Plan:
    """A recipe against a store."""

    recipe: Recipe
    stages: dict[str, Resolved]
    courses: tuple[Course, ...]
    parameters: int | None

    def as_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.name,
            "parameters": self.parameters,
            "stages": [
                {"name": name, "state": item.state, "fingerprint": item.fingerprint, "reason": item.reason}
                for name, item in self.stages.items()
            ],
            "phases": [vars(course) for course in self.courses],
            "totals": {phase: self._total(phase) for phase in PHASES},
            "budget_minutes": self.recipe.budget.minutes if self.recipe.budget else None,
        }

    def _total(self, phase: Phase) -> dict[str, float]:
        paid = [course for course in self.courses if course.stage.startswith(f"{phase}/") and course.shared_with is None]
        return {
            "tokens": sum(course.tokens or 0 for course in paid),
            "steps": sum(course.steps or 0 for course in paid),
            "flops": sum(course.flops or 0.0 for course in paid),
        }

    def lines(self) -> list[str]:
        """The plan as text."""
        width = max(map(len, self.stages))
        text = [f"{name:<{width}}  {item.state:<8} {item.reason}".rstrip() for name, item in self.stages.items()]
        if self.parameters:
            text += ["", f"model: {self.parameters / 1e9:.3g}e9 parameters"]
        return [*text, *(line for course in self.courses for line in self._course_lines(course))]

    def _course_lines(self, course: Course) -> list[str]:
        if course.shared_with is not None:
            return [f"{course.stage}: the same as {course.shared_with}, trained once"]
        if course.steps is None or course.tokens is None:
            phase: Phase = "pretrain" if course.stage.startswith("pretrain/") else "instruct"
            counted = training(self.recipe, phase).length.epochs_of
            return [f"{course.stage}: length unknown until {counted} is tokenized, unless it has expected_tokens"]
        seen = ", ".join(f"{name} {count:,}{_times(course, name)}" for name, count in course.tokens_by_source.items())
        flops = f", {course.flops:.2g} FLOP" if course.flops else ""
        return [
            f"{course.stage}: {course.steps:,} steps, {course.tokens:,} tokens{flops}",
            f"    tokens by source (times seen): {seen}",
        ]


def _times(course: Course, source: str) -> str:
    """` (5 x)`: how often a source of known size is seen."""
    return f" ({course.repeats_by_source[source]:.3g} x)" if source in course.repeats_by_source else ""


def make_plan(recipe: Recipe, store_uri: str) -> Plan:
    """Resolve every stage and work out every training. Raises PlanError when the recipe and the model do not fit each other."""
    shape = check_model(recipe, store_uri)
    resolved = resolve_all(recipe, store_uri)
    rows = {phase: _sizes(recipe, phase, resolved) for phase in PHASES}
    courses = []
    same: dict[str, str] = {}
    for trial in trials(recipe):
        said: list[object] = []
        for phase in PHASES:
            if (weights := phase_weights(recipe, trial.variant, phase)) is None:
                continue
            stage = f"{phase}/{trial.name}"
            said += [phase, sorted(weights.items()), trial.seed]
            courses.append(_course(recipe, stage, phase, weights, rows[phase], shape, same.setdefault(str(said), stage)))
    return Plan(recipe, resolved, tuple(courses), parameters(shape) if shape else None)


def check_model(recipe: Recipe, store_uri: str) -> Shape | None:
    """The model's shape where it is known. Raises PlanError when a row is longer than the model takes, or two shapes differ."""
    shape = model_shape(recipe, store_uri)
    lengths = {"tokens.row_tokens": recipe.tokens.row_tokens, "chats.row_tokens": recipe.chats.row_tokens if recipe.chats else 0}
    for key, length in lengths.items():
        if shape and length > shape.max_position_embeddings:
            raise PlanError(
                f"{key} is {length}, the model takes at most {shape.max_position_embeddings} positions",
                f"set {key} to {shape.max_position_embeddings} or less",
                key,
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


def phase_steps(recipe: Recipe, phase: Phase, rows: Mapping[str, int | None]) -> int | None:
    """Optimizer steps of a phase, for every variant; None when the size of what counts its epochs is unknown."""
    spec = training(recipe, phase)
    if spec.length.steps is not None:
        return spec.length.steps
    assert spec.length.epochs is not None and spec.length.epochs_of is not None
    counted = rows[spec.length.epochs_of]
    if counted is None:
        return None
    mixture = Mixture(counting_weights(recipe, phase), spec.batch_rows)
    return mixture.batches_for(spec.length.epochs_of, spec.length.epochs * counted)


def check_rows(weights: dict[str, int], phase: Phase, rows: Mapping[str, int | None]) -> None:
    """Raise StageError when a source or set of the mixture has no full row."""
    for name in weights:
        if rows[name] == 0:
            section, length = ("sources", "tokens") if phase == "pretrain" else ("instructions", "chats")
            raise StageError(
                "has not one full row of tokens", f"add text to it, or change {length}.row_tokens", f"{section}.{name}"
            )


def _sizes(recipe: Recipe, phase: Phase, resolved: dict[str, Resolved]) -> dict[str, int | None]:
    """Rows of every source or set: as stored, else as expected, else None."""
    if phase == "instruct":
        return {name: _stored_rows(resolved[f"chats/{name}"]) for name in recipe.instructions if recipe.chats}
    expected = {
        name: spec.expected_tokens // recipe.tokens.row_tokens for name, spec in recipe.sources.items() if spec.expected_tokens
    }
    return {
        name: rows if (rows := _stored_rows(resolved[f"tokens/{name}"])) is not None else expected.get(name)
        for name in recipe.sources
    }


def _stored_rows(resolved: Resolved) -> int | None:
    index = read_index(resolved)
    return None if index is None else index.rows


def _course(
    recipe: Recipe,
    stage: str,
    phase: Phase,
    weights: dict[str, int],
    rows: dict[str, int | None],
    shape: Shape | None,
    first: str,
) -> Course:
    shared = None if first == stage else first
    steps = phase_steps(recipe, phase, rows)
    if steps is None:
        return Course(stage, shared, None, None, None, {}, {})
    length, batch_rows = row_tokens(recipe, phase), training(recipe, phase).batch_rows
    taken = Mixture(weights, batch_rows).rows_before(steps)
    tokens = steps * batch_rows * length
    return Course(
        stage=stage,
        shared_with=shared,
        steps=steps,
        tokens=tokens,
        flops=training_flops(shape, tokens) if shape else None,
        tokens_by_source={name: count * length for name, count in taken.items()},
        repeats_by_source={name: round(count / size, 3) for name, count in taken.items() if (size := rows[name])},
    )
