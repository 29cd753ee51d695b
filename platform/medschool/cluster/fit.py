"""Arithmetic of model size, work and room, used before anything starts."""

from collections.abc import Mapping

from medschool.errors import InputError
from medschool.recipe.cluster import Cluster
from medschool.recipe.training import Shape

FLOP_PER_PARAMETER_TOKEN = 6
"""Forward and backward pass of a dense transformer, attention scores left out (Kaplan et al. 2020, section 2.1)."""


def shape_of(config: dict[str, object], where: str) -> Shape:
    """The shape in a model's config.json. Raises InputError when it is not a LLaMA-style one."""
    try:
        values = {name: config[name] for name in Shape.model_fields if name in config}
        values.setdefault("num_key_value_heads", config["num_attention_heads"])
        values.setdefault("tie_word_embeddings", False)
        return Shape.model_validate(values)
    except (KeyError, ValueError) as error:
        raise InputError(f"not the config.json of a LLaMA-style model ({error})", "use a LLaMA-family model", where) from error


def parameters(shape: Shape) -> int:
    """Number of weights of a LLaMA-style decoder: embeddings, attention (q, k, v, o), gated MLP, RMS norms, output head."""
    head = shape.hidden_size // shape.num_attention_heads
    attention = 2 * shape.hidden_size * head * (shape.num_attention_heads + shape.num_key_value_heads)
    mlp = 3 * shape.hidden_size * shape.intermediate_size
    layer = attention + mlp + 2 * shape.hidden_size
    embeddings = shape.vocab_size * shape.hidden_size * (1 if shape.tie_word_embeddings else 2)
    return shape.num_hidden_layers * layer + embeddings + shape.hidden_size


def training_flops(shape: Shape, tokens: int) -> float:
    """Floating-point operations of training on so many tokens."""
    return float(FLOP_PER_PARAMETER_TOKEN * parameters(shape) * tokens)


def trial_needs(spec: Cluster, beside: int = 0, workers: int | None = None) -> dict[str, float]:
    """Logical CPUs and GPUs that one trial takes at its largest: its workers and their feed, or its scorers and theirs.

    beside: processes that score held-out documents while the workers train.
    workers: with so many of them; the most that the recipe allows when left out.
    """
    count = spec.most_workers if workers is None else workers
    return {
        "CPU": max(count * spec.cpus_per_worker + beside, spec.score_workers) + spec.data_cpus,
        "GPU": count * spec.gpus_per_worker,
    }


def concurrent_trials(spec: Cluster, room: Mapping[str, float], beside: int = 0) -> int:
    """Trials that the cluster holds at once, at least one.

    Ray Tune cannot work this out: the workers of a training stand outside the resources of the trial that starts it, so trials
    that look small would start together, take each other's CPUs, and leave none to the feed, which then waits for ever. Elastic
    ones count with the most workers that they may have, because they take as many as there is room for.
    """
    held = [int(room.get(name, 0) // need) for name, need in trial_needs(spec, beside).items() if need]
    return max(1, min([*held, spec.max_concurrent_trials or min(held)]))
