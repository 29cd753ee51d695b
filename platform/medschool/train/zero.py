"""The DeepSpeed configuration, derived from the recipe by one function; there is no JSON file to keep beside it."""

from typing import Any

from medschool.procedure import Phase, row_tokens, training
from medschool.recipe import Recipe
from medschool.tokens.stream import rank_rows


def micro_batch_rows(recipe: Recipe, phase: Phase, world_size: int) -> int:
    """Rows a rank takes through the model at once: the largest divisor of its share that the recipe's token limit allows."""
    share = rank_rows(training(recipe, phase).batch_rows, world_size)
    most = max(1, recipe.cluster.micro_batch_tokens // row_tokens(recipe, phase))
    return max(rows for rows in range(1, min(share, most) + 1) if share % rows == 0)


def deepspeed_config(recipe: Recipe, phase: Phase, world_size: int) -> dict[str, Any]:
    """Configuration for deepspeed.initialize. Loss scaling and the schedule are the loop's, clipping is DeepSpeed's."""
    spec = training(recipe, phase)
    share, micro = rank_rows(spec.batch_rows, world_size), micro_batch_rows(recipe, phase, world_size)
    return {
        "train_batch_size": share * world_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": share // micro,
        "gradient_clipping": spec.optimizer.clip_norm,
        "zero_optimization": {"stage": recipe.cluster.zero_stage},
        "bf16": {"enabled": recipe.model.dtype == "bf16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
