"""The DeepSpeed engine of a course: model, optimizer and schedule, on one worker of its group."""

from typing import Any

from medschool.train.course import Course
from medschool.train.model import load_model, model_copy
from medschool.train.schedule import lr_factor
from medschool.train.zero import deepspeed_config


def build_engine(course: Course, world_size: int) -> Any:
    """The engine, before its first step. Every rank calls this, within a process group. Raises what loading a model does."""
    import deepspeed
    import torch

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a C++ build of half a minute that only inference uses
    torch.manual_seed(course.order.seed)
    spec = course.spec.optimizer
    model = load_model(model_copy(course.model), course.recipe.model.dtype)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=deepspeed_config(course.recipe, course.phase, world_size),
        lr_scheduler=lambda opt: torch.optim.lr_scheduler.LambdaLR(
            opt, lambda step: lr_factor(step, course.steps, spec.warmup_fraction, spec.final_lr_fraction)
        ),
        dist_init_required=False,
    )
    return engine
