"""The DeepSpeed configuration, derived from the recipe by one function; there is no JSON file to keep beside it."""

from typing import Any

from medschool.recipe import Recipe
from medschool.tokens.stream import rank_rows


def micro_batch_rows(recipe: Recipe, world_size: int) -> int:
    """Rows a rank takes through the model at once: the largest divisor of its share that the recipe allows."""
    share = rank_rows(recipe.pretrain.batch_rows, world_size)
    return max(rows for rows in range(1, min(share, recipe.cluster.micro_batch_rows) + 1) if share % rows == 0)


def deepspeed_config(recipe: Recipe, world_size: int) -> dict[str, Any]:
    """Configuration for deepspeed.initialize. Loss scaling and the schedule are the loop's, clipping is DeepSpeed's."""
    share, micro = rank_rows(recipe.pretrain.batch_rows, world_size), micro_batch_rows(recipe, world_size)
    return {
        "train_batch_size": share * world_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": share // micro,
        "gradient_clipping": recipe.pretrain.optimizer.clip_norm,
        "zero_optimization": {"stage": recipe.cluster.zero_stage},
        "bf16": {"enabled": recipe.model.dtype == "bf16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
