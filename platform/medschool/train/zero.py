"""The DeepSpeed configuration, derived from the recipe by one function; there is no JSON file to keep beside it.

A global batch of B rows is dealt to W workers as ceil(B / W) rows each, padded with rows without weight, and those are taken
through the model in micro-batches of equal size; their gradients are added up before the update. Clipping is DeepSpeed's, the
schedule and the scale of the loss are the loop's.

Offloading keeps the optimizer's state, and with ZeRO 3 the weights too, in the host's memory. The update then runs on the CPU
with torch's own AdamW: DeepSpeed has a faster one, which it compiles with the machine's C++ compiler when training starts, for
minutes.
"""

from typing import Any

from medschool.errors import PlanError
from medschool.procedure import Phase, row_tokens, training
from medschool.recipe import Recipe
from medschool.tokens.stream import rank_rows
from medschool.train.layout import Layout
from medschool.train.network import zero_options


def micro_batch_rows(recipe: Recipe, phase: Phase, world_size: int) -> int:
    """Rows a rank takes through the model at once: the largest divisor of its share that the recipe's token limit allows."""
    share = rank_rows(training(recipe, phase).batch_rows, world_size)
    most = max(1, recipe.cluster.micro_batch_tokens // row_tokens(recipe, phase))
    return max(rows for rows in range(1, min(share, most) + 1) if share % rows == 0)


def check_batch(recipe: Recipe, phase: Phase, world_size: int, positions: int | None = None) -> None:
    """Raise PlanError when global batch, row length, micro-batch and world size do not fit each other or the model.

    positions: the model's max_position_embeddings, where it is known.
    """
    rows, length, limit = training(recipe, phase).batch_rows, row_tokens(recipe, phase), recipe.cluster.micro_batch_tokens
    sizes = f"a global batch of {rows} rows of {length} tokens, {limit} tokens a micro-batch, {world_size} workers"
    section = "tokens" if phase == "pretrain" else "chats"
    if positions is not None and length > positions:
        raise PlanError(
            f"{sizes}: a row is longer than the {positions} positions of the model",
            f"set {section}.row_tokens to {positions} at most",
            f"{section}.row_tokens",
        )
    if world_size > rows:
        raise PlanError(
            f"{sizes}: there are more workers than rows",
            f"set cluster.num_workers to {rows} at most, or {phase}.batch_rows to {world_size}",
            "cluster.num_workers",
        )


def deepspeed_config(recipe: Recipe, phase: Phase, world_size: int, layout: Layout | None = None) -> dict[str, Any]:
    """Configuration for deepspeed.initialize. `layout`: of a group that may stand on several machines."""
    spec = training(recipe, phase)
    share, micro = rank_rows(spec.batch_rows, world_size), micro_batch_rows(recipe, phase, world_size)
    return {
        "train_batch_size": share * world_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": share // micro,
        "gradient_clipping": spec.optimizer.clip_norm,
        "zero_optimization": {"stage": recipe.cluster.zero_stage, **_offloaded(recipe), **_over_machines(recipe, layout)},
        "bf16": {"enabled": recipe.model.dtype == "bf16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _offloaded(recipe: Recipe) -> dict[str, Any]:
    keys = {"optimizer": "offload_optimizer", "parameters": "offload_param"}
    pinned = recipe.cluster.gpus_per_worker > 0  # pages that a GPU copies from without the CPU's help
    return {keys[name]: {"device": "cpu", "pin_memory": pinned} for name in recipe.cluster.offload}


def _over_machines(recipe: Recipe, layout: Layout | None) -> dict[str, Any]:
    if layout is None:
        return {}
    width = 2 if recipe.model.dtype == "bf16" else 4
    return zero_options(layout, recipe.cluster.zero_stage, width, "parameters" in recipe.cluster.offload)
