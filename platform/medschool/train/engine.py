"""The DeepSpeed engine of a course: model, optimizer and schedule, on one worker of its group.

With ZeRO 3 each weight is dealt out to the ranks as soon as it is made, and rank 0 alone reads the files: no rank ever holds the
whole model. Nothing is compiled from C++ when training starts: torch's own AdamW is used, and the one operator that DeepSpeed
would build on CPUs serves inference only.

Before the first step one forward pass looks whether the documents of a row are apart, on this model, with this attention, on this
hardware: another first document must not change one bit of what the model says to the second one.
"""

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medschool.errors import PlanError
from medschool.recipe.training import Tuning
from medschool.train.capability import check_capabilities, this_machine, wanted
from medschool.train.course import Course
from medschool.train.layout import layout_of_group
from medschool.train.lora import add_adapters
from medschool.train.model import changed_logits, load_model, loss_at_targets, model_copy, model_inputs, to_device
from medschool.train.neftune import add_noise
from medschool.train.schedule import lr_factor
from medschool.train.zero import check_batch, deepspeed_config

PROBE_TOKENS = 8
"""Length of each of the two documents of the first forward pass."""


def build_engine(course: Course, world_size: int) -> Any:
    """The engine, before its first step. Every rank calls this, within a process group.

    Raises PlanError for what this machine or model cannot do, and what loading a model raises.
    """
    check_capabilities(wanted(course.recipe, course.spec), this_machine())
    folder = model_copy(course.model)
    check_batch(course.recipe, course.phase, world_size, _positions(folder))
    deepspeed = import_deepspeed()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a C++ build of half a minute that only inference uses
    deepspeed.comm.init_distributed(dist_init_required=False)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")  # DeepSpeed's calls, at every step
    torch.manual_seed(course.order.seed)
    config = deepspeed_config(course.recipe, course.phase, world_size, layout_of_group())
    spec = course.spec.optimizer
    model = _model(course, folder, config)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=config,
        lr_scheduler=lambda opt: torch.optim.lr_scheduler.LambdaLR(
            opt, lambda step: lr_factor(step, course.steps, spec.warmup_fraction, spec.final_lr_fraction)
        ),
        dist_init_required=False,
    )
    if course.recipe.cluster.zero_stage == 0 and course.recipe.model.dtype == "bf16":
        _forget_the_step_without_gradient(engine)
    check_documents_apart(engine)
    if course.recipe.cluster.compile:
        engine.compile()
    return engine


def import_deepspeed() -> Any:
    """DeepSpeed without MLflow, which its autotuner imports wherever it is installed: 0.7 of 1.0 s of CPU, in every worker."""
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # to Python: not installed
    try:
        import deepspeed
    finally:
        if hidden:
            del sys.modules["mlflow"]
    return deepspeed


def _forget_the_step_without_gradient(engine: Any) -> None:
    """Take back the step with gradients of zero by which DeepSpeed 0.19.8 makes room for the optimizer's state.

    It does so at ZeRO 0 in bf16 alone (FP16_UnfusedOptimizer.initialize_optimizer_states). Weight decay has shrunk its fp32 copy
    of the weights by then, and Adam's bias correction would count a step that never was: the first update would be 0.74 of its
    size (0.1 / (1 - 0.9^2) over the root of 0.001 / (1 - 0.999^2)).
    """
    engine.optimizer.optimizer.state.clear()
    engine.optimizer.refresh_fp32_params()


def _model(course: Course, folder: Path, config: dict[str, Any]) -> Any:
    """The model in training mode, with everything that the recipe wants done to it."""
    spec = course.recipe.cluster
    with _partitioned(config):
        model = load_model(folder, course.recipe.model.dtype, spec.attention)
    if spec.liger:
        from transformers.integrations import apply_liger_kernel

        apply_liger_kernel(model, {"fused_linear_cross_entropy": False, "cross_entropy": False})  # the loss stays ours
    if course.spec.lora is not None:
        model = add_adapters(model, course.spec.lora)
    if isinstance(course.spec, Tuning) and course.spec.neftune_alpha is not None:
        model = add_noise(model, course.spec.neftune_alpha, course.order.seed)
    if spec.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    few_targets = isinstance(course.spec, Tuning) and not spec.compile and changed_logits(model) is None
    if spec.loss_chunk_tokens is not None or few_targets:
        loss_at_targets(model, spec.loss_chunk_tokens)
    return model.train()


@contextmanager
def _partitioned(config: dict[str, Any]) -> Iterator[None]:
    """Within it, transformers deals out the weights of a model that it loads, where the configuration says ZeRO 3."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    alive = HfDeepSpeedConfig(config)  # transformers keeps a weak reference to it
    yield
    del alive


def _positions(folder: Path) -> int | None:
    """Longest row that the model's config.json allows, in tokens."""
    found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    return None if found is None else int(found)


def check_documents_apart(engine: Any) -> None:
    """Raise PlanError when a document in a row sees the one before it. Every rank calls this.

    Two rows differ in their first document alone. What a masked token adds is 0 in whatever precision, so the logits of the
    second document are equal to the last bit unless there is a leak.
    """
    config, lengths = engine.module.config, [PROBE_TOKENS, PROBE_TOKENS]
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 2 * PROBE_TOKENS))
    tokens[1, PROBE_TOKENS:] = tokens[0, PROBE_TOKENS:]
    said = []
    engine.module.eval()
    with torch.no_grad():
        for row in tokens:
            inputs = to_device(model_inputs(row[None], [lengths], config._attn_implementation), engine.device)
            said.append(engine.module(**inputs, use_cache=False).logits[0, PROBE_TOKENS:])
    engine.module.train()
    if not torch.equal(*said):
        raise PlanError(
            f"documents in one row see each other: {config.model_type} with {config._attn_implementation} on {engine.device}, "
            f"logits differ by up to {float((said[0] - said[1]).abs().max()):.2g}",
            "set cluster.attention to another implementation, and please report this",
            "cluster.attention",
        )
