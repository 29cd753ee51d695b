"""What a recipe will do, before anything runs: each stage's standing; tokens, steps, repeats, FLOP and memory of training.

Sizes come from finished token artifacts where there are any (without the rows that are withheld), else from `expected_tokens` in
the recipe. A variant that would see a source more often than `max_repeats` allows is refused, here and again when it trains.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from medschool import storage
from medschool.cluster.fit import parameters, shape_of, training_flops
from medschool.cluster.memory import Memory, training_memory
from medschool.errors import MedschoolError, PlanError, StageError
from medschool.procedure import (
    PHASES,
    Phase,
    counting_variant,
    phase_weights,
    phase_weights_from,
    resolve_all,
    row_tokens,
    training,
    trials,
)
from medschool.recipe import Recipe
from medschool.recipe.training import Shape
from medschool.stage import Resolved
from medschool.tokens.mixture import Schedule, Weights
from medschool.tokens.shards import INDEX, Index, parse_index
from medschool.train.zero import micro_batch_rows


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
    """How often each source or set is seen, where its size is known: tokens taken from it, over its tokens."""
    epochs_by_source: dict[str, int]
    """How many passes over it end, where its size is known."""
    weights: Weights
    weights_from: Mapping[int, Weights]
    """The curriculum: weights by the number of steps before them."""
    memory: Memory | None
    """Of each worker, as an estimate; None where the model's shape is not known."""


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
            "phases": [vars(course) | {"memory": course.memory and vars(course.memory)} for course in self.courses],
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
            f"    tokens by source (times seen, whole epochs): {seen}",
            *(f"    {_change(step, weights, course.steps)}" for step, weights in course.weights_from.items()),
            *([f"    {_memory_line(course.memory, self.recipe)}"] if course.memory else []),
        ]


def _times(course: Course, source: str) -> str:
    """` (5 x, 5)`: how often a source of known size is seen, and how many passes over it end."""
    known = source in course.repeats_by_source
    return f" ({course.repeats_by_source[source]:.3g} x, {course.epochs_by_source[source]})" if known else ""


def _memory_line(memory: Memory, recipe: Recipe) -> str:
    parts = {
        "states": memory.states_bytes,
        "buffers": memory.buffers_bytes,
        "activations": memory.activations_bytes,
        "logits": memory.logits_bytes,
    }
    listed = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in parts.items())
    where = "on its GPU" if recipe.cluster.gpus_per_worker else "of the host"
    return (
        f"memory a worker, estimated: {memory.peak_bytes / 2**30:.1f} GiB {where} ({listed}), "
        f"{memory.host_bytes / 2**30:.1f} GiB of the host for checkpoints" + (" and offload" if recipe.cluster.offload else "")
    )


def _change(step: int, weights: Weights, steps: int) -> str:
    parts = ", ".join(f"{name} {part}" for name, part in weights.items())
    return f"after step {step:,}: {parts}" + ("" if step < steps else "  (this run ends before)")


def make_plan(recipe: Recipe, store_uri: str) -> Plan:
    """Resolve every stage and work out every training.

    Raises PlanError when the recipe and the model do not fit each other, or a source would be seen more often than it may.
    """
    shape = check_model(recipe, store_uri)
    resolved = resolve_all(recipe, store_uri)
    rows = {phase: _sizes(recipe, phase, resolved) for phase in PHASES}
    courses = []
    same: dict[str, str] = {}
    for trial in trials(recipe):
        said: list[object] = []
        for phase in PHASES:
            if (schedule := phase_schedule(recipe, trial.variant, phase)) is None:
                continue
            stage = f"{phase}/{trial.name}"
            said += [phase, schedule.weights, schedule.weights_from, trial.seed]
            courses.append(_course(recipe, stage, phase, schedule, rows[phase], shape, same.setdefault(str(said), stage)))
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
    variant = counting_variant(recipe, phase)
    schedule = phase_schedule(recipe, variant, phase)
    assert schedule is not None
    steps = schedule.batches_for(spec.length.epochs_of, spec.length.epochs * counted)
    if steps is None:
        raise PlanError(
            f"the curriculum of {variant} stops taking {spec.length.epochs_of} before {spec.length.epochs} epochs of it are over",
            f"keep it in the last weights of variants.{variant}.weights_from, or give {phase}.length.steps",
            f"{phase}.length.epochs_of",
        )
    return steps


def phase_schedule(recipe: Recipe, variant: str, phase: Phase) -> Schedule | None:
    """The mixture of a phase over all its steps; None when the variant has no such phase."""
    weights = phase_weights(recipe, variant, phase)
    if weights is None:
        return None
    return Schedule(weights, training(recipe, phase).batch_rows, phase_weights_from(recipe, variant, phase))


def check_repeats(
    recipe: Recipe, stage: str, phase: Phase, schedule: Schedule, steps: int, rows: Mapping[str, int | None]
) -> None:
    """Raise PlanError when so many steps are more passes over the `rows` of a source or set than `max_repeats` allows.

    The batch that fills the last pass may go over it, as it does where a length is given in epochs.
    """
    taken, without_last = schedule.rows_before(steps), schedule.rows_before(steps - 1)
    for name, cap in training(recipe, phase).max_repeats.items():
        size, needed = rows.get(name), taken.get(name, 0)
        if size and needed > cap * size <= without_last[name]:
            raise PlanError(
                f"would see {name} {needed / size:.4g} times ({needed:,} rows, it has {size:,}); the cap is {cap:g}",
                f"train fewer steps, lower its weight, add text to it, or raise {phase}.max_repeats.{name}",
                stage,
            )


def check_rows(names: Iterable[str], phase: Phase, rows: Mapping[str, int | None]) -> None:
    """Raise StageError when a source or set of the mixture has no full row."""
    for name in names:
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
    stored = {name: _stored_rows(resolved[f"tokens/{name}"], resolved.get(f"withheld/{name}")) for name in recipe.sources}
    return {name: expected.get(name) if rows is None else rows for name, rows in stored.items()}


def _stored_rows(tokens: Resolved, withheld: Resolved | None = None) -> int | None:
    """Rows that can be trained on; None before they are made."""
    index = read_index(tokens)
    kept_out = withheld.artifact.facts["rows"] if withheld and withheld.artifact else 0
    return None if index is None else index.rows - int(kept_out)


def _course(
    recipe: Recipe,
    stage: str,
    phase: Phase,
    schedule: Schedule,
    rows: dict[str, int | None],
    shape: Shape | None,
    first: str,
) -> Course:
    shared = None if first == stage else first
    steps = phase_steps(recipe, phase, rows)
    if steps is None:
        return Course(stage, shared, None, None, None, {}, {}, {}, schedule.weights, schedule.weights_from, None)
    length, taken = row_tokens(recipe, phase), schedule.rows_before(steps)
    check_repeats(recipe, stage, phase, schedule, steps, rows)
    tokens = steps * schedule.batch_rows * length
    return Course(
        stage=stage,
        shared_with=shared,
        steps=steps,
        tokens=tokens,
        flops=training_flops(shape, tokens) if shape else None,
        tokens_by_source={name: count * length for name, count in taken.items()},
        repeats_by_source={name: round(count / size, 3) for name, count in taken.items() if (size := rows[name])},
        epochs_by_source={name: count // size for name, count in taken.items() if (size := rows[name])},
        weights=schedule.weights,
        weights_from=schedule.weights_from,
        memory=_memory(recipe, phase, shape) if shape else None,
    )


def _memory(recipe: Recipe, phase: Phase, shape: Shape) -> Memory:
    """With the fewest workers, which hold the most each."""
    workers, length = recipe.cluster.fewest_workers, row_tokens(recipe, phase)
    tokens = micro_batch_rows(recipe, phase, workers) * length
    return training_memory(shape, recipe.cluster, recipe.model.dtype, tokens, length, workers, training(recipe, phase).lora)
