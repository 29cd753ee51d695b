"""A trained adapter as files: how a training writes them, and whether a folder of them can be served.

    engine --A and B, one at a time--> CPU of rank 0 --> adapter/adapter_config.json
                                                         adapter/adapter_model.safetensors
                                                         adapter/chat_template.jinja, where the model has one

It is the folder that peft's `save_pretrained` writes; peft, and whatever else reads such folders, loads it over the model that
the training began from. The merged model beside it (medschool.train.export) is what was proven; the adapter holds the same A and
B without the rounding of the sum.

What cannot be served is what an engine would leave out in silence: anything in the files beside matrices A and B, a rank or a
strength of its own for some layers, variants that compute something else (IGNORED). Nor can the output layer (OUTPUT).

Price: a few MB. Source of the names: peft 0.21 (`LoraConfig`, `save_pretrained`); of what is left out: vLLM 0.29
(vllm/lora/peft_helper.py). Nothing here needs torch before it is called.
"""

import shutil
from pathlib import Path
from typing import Any

from medschool.errors import InputError
from medschool.recipe.training import Lora

FOLDER = "adapter"
CONFIG, WEIGHTS, TEMPLATE = "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"
PICKLED = "adapter_model.bin"
IN_PEFT = "base_model.model."
"""What stands before the names of a model's weights in peft's files."""
MOST_RANK = 512
"""The highest that vLLM serves."""
IGNORED = (
    "use_dora", "rank_pattern", "alpha_pattern", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters",
    "layer_replication", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config",
    "monteclora_config", "velora_config",
)  # fmt: skip
"""Keys of adapter_config.json that change what is computed, and that vLLM does not read."""
OUTPUT = "lm_head"
"""With an adapter on it vLLM computes the log-probabilities of prompts with indices of one place a request: two of them in one
batch end its process (vllm/lora/punica_wrapper/punica_cpu.py, `add_lora_logits`)."""
MERGE = "merge the adapter into its model with peft, and serve that"


def adapter_on_cpu(module: Any, partitioned: bool, keep: bool = True) -> dict[str, Any]:
    """A and B of every adapted layer, by the names of peft's files; copies of `partitioned` ones, gathered one by one.

    Where they are partitioned (ZeRO 3) every rank calls this; those that do not `keep` get nothing.
    """
    import deepspeed

    from medschool.train.lora import ADAPTER

    found = {}
    for name, parameter in module.named_parameters():
        if f".{ADAPTER}." in name:
            with deepspeed.zero.GatheredParameters([parameter], enabled=partitioned):
                if keep:
                    found[IN_PEFT + name.replace(f".{ADAPTER}.", ".")] = parameter.detach().to("cpu", copy=partitioned)
    return found


def write_adapter(tensors: dict[str, Any], spec: Lora, exported: Path, folder: Path) -> None:
    """The adapter as a new folder; its prompts are those of the `exported` model, whose template goes with it."""
    from safetensors.torch import save_file

    from medschool.train.lora import peft_config

    peft_config(spec, inference_mode=True).save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(folder / WEIGHTS), {"format": "pt"})
    if (exported / TEMPLATE).is_file():
        shutil.copyfile(exported / TEMPLATE, folder / TEMPLATE)


def checked_rank(config: Any, where: str) -> int:
    """The rank that adapter_config.json names. Raises InputError unless A and B are all that there is to it."""
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise InputError(f"{CONFIG} says peft_type {kind!r}", "only LORA adapters can be served", where)
    named = [key for key in IGNORED if config.get(key)] + ["bias"] * (config.get("bias", "none") != "none")
    if named:
        raise InputError(f"{CONFIG} sets {', '.join(named)}, which serving would leave out", MERGE, where)
    rank = config.get("r")
    if not isinstance(rank, int) or not 1 <= rank <= MOST_RANK:
        raise InputError(f"{CONFIG} says rank {rank!r}", f"serve adapters of rank 1 to {MOST_RANK}", where)
    return rank


def checked_layers(folder: Path, template: str | None, where: str) -> tuple[str, ...]:
    """The kinds of layers that the adapter is on, such as `q_proj`, each once.

    Raises InputError for tensors beside A and B, for the output layer's, and for a template of its own that is not `template`,
    the served model's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(folder / WEIGHTS), "np") as file:
            names = list(file.keys())
    except SafetensorError as error:
        raise InputError(f"{WEIGHTS} is none, or damaged ({error})", "save the adapter again", where) from error
    if other := [name for name in names if not name.endswith((".lora_A.weight", ".lora_B.weight"))]:
        problem = f"{WEIGHTS} has {len(other)} tensors beside A and B, {other[0]} among them, which serving would leave out"
        raise InputError(problem, MERGE, where)
    layers = tuple(sorted({name.split(".")[-3] for name in names}))
    if OUTPUT in layers:
        raise InputError(f"the adapter is on the output layer too ({OUTPUT}), where it can not be served", MERGE, where)
    own = folder / TEMPLATE
    if own.is_file() and own.read_text(encoding="utf-8") != template:
        problem = "the prompts that the adapter was trained on have another template than the served model's"
        raise InputError(problem, "serve the merged model of its training, which carries its template", where)
    return layers
