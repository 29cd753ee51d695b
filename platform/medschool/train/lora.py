"""Low-rank adapters (Hu et al. 2021): the model's weights stay, each chosen linear layer W learns B A beside it, through peft.

    y = W x + (alpha / rank) B A x          W (out, in) frozen, A (rank, in) drawn at random, B (out, rank) zero at the start

The adapters are put into the model itself, so that everything else sees the same kind of model: the same loop, mask and
checkpoints. Gradients and optimizer state exist for A and B alone; the forward and backward passes cost what they cost without,
and the frozen weights still stand in every checkpoint of the training state. For the export (alpha / rank) B A is added to W and
rounded once (medschool.train.export), and plain transformers loads the result. The adapter goes beside it as peft saves one, so
that many can be served over one copy of the model (medschool.train.adapter_files).
"""

import importlib.util
from typing import Any

import torch

from medschool.errors import PlanError
from medschool.recipe.training import Lora

ADAPTER = "default"


def add_adapters(model: Any, spec: Lora) -> Any:
    """The model with adapters in place, and nothing else trained. The adapters' A are drawn from torch's seed.

    Raises PlanError where peft is not installed, or the model has no layer of the given names.
    """
    if importlib.util.find_spec("peft") is None:
        raise PlanError("peft, which makes the adapters, is not installed", "pip install peft==0.21.2", "lora")
    from peft import inject_adapter_in_model

    linear = {name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    if unknown := set(spec.modules) - linear:
        raise PlanError(
            f"{model.config.model_type} has no linear layers named {', '.join(sorted(unknown))}",
            f"choose from {', '.join(sorted(linear))}",
            "lora.modules",
        )
    with torch.no_grad():
        model = inject_adapter_in_model(peft_config(spec), model, ADAPTER)
    return model.to(next(model.parameters()).dtype)  # peft makes adapters of a bf16 model in fp32; DeepSpeed takes one kind


def peft_config(spec: Lora, **more: Any) -> Any:
    """peft's LoraConfig of a recipe's section, and `more` of its fields."""
    from peft import LoraConfig

    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=list(spec.modules),
        bias="none",
        task_type="CAUSAL_LM",
        **more,
    )
