"""What we say, in vLLM's words, and what vLLM says, in ours. Plain values: all but `vllm_parameters` and `adapter_request` runs
without vLLM.

Source of every name: vLLM 0.29, `AsyncEngineArgs` (vllm/engine/arg_utils.py), `SamplingParams` (vllm/sampling_params.py), the
variables of vllm/envs.py, `RequestOutput` (vllm/outputs.py), `LoRAConfig` (vllm/config/lora.py), `LoRARequest`
(vllm/lora/request.py).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from medschool.errors import ServiceError
from medschool.serve.adapters import Pulled
from medschool.serve.engine import Likelihood, Sampling, Step

GIB = 2**30
CPU_BATCH_TOKENS = 512
"""Tokens of one step on CPUs: a long prompt is read in such pieces and does not hold the others up."""
MAX_LOGPROBS = 20
"""Likeliest tokens that a request may ask for, as in OpenAI's API; vLLM refuses more."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM has room for; an adapter of another one takes the room of the next higher."""
BATCH_ADAPTERS = 8
"""Adapters that one step computes at most on GPUs; answers of others wait. Each has its room on the card from the start."""
Dtype = Literal["bf16", "fp32"]
DTYPES = {"bf16": ("bfloat16", 2), "fp32": ("float32", 4)}
"""vLLM's name, and bytes a value."""


def engine_fields(
    folder: Path, context_tokens: int, places: int, dtype: Dtype, gpus: int, adapters: Sequence[Pulled] = ()
) -> dict[str, Any]:
    """vLLM's AsyncEngineArgs for the model in a folder, and the adapters over it."""
    fields = {
        "model": str(folder),
        "dtype": DTYPES[dtype][0],
        "load_format": "safetensors",
        "trust_remote_code": False,
        "max_model_len": context_tokens + 1,  # a text that fills the context is scored by asking for one token more
        "max_num_seqs": places,
        "max_logprobs": MAX_LOGPROBS,
        "logprobs_mode": "raw_logprobs",  # the model's own, before temperature, bias and penalties
        "enable_prefix_caching": True,
        "tensor_parallel_size": max(1, gpus),
        "distributed_executor_backend": "uni" if gpus == 1 else "mp",  # never Ray's: the replica owns its GPUs
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "generation_config": "vllm",  # the request says how to draw, not a file of the base model
        "seed": 0,
        "disable_log_stats": True,
        **adapter_fields(adapters, gpus),
    }
    return fields if gpus else {**fields, "enforce_eager": True, "max_num_batched_tokens": max(CPU_BATCH_TOKENS, places)}


def adapter_fields(adapters: Sequence[Pulled], gpus: int) -> dict[str, Any]:
    """What of AsyncEngineArgs is about these adapters, of rank 512 at most; nothing without any.

    Only layers that one of them is on are computed with adapters. vLLM would take the output layer too, and end at the
    log-probabilities of two prompts in one batch (`adapter_files.OUTPUT`).

    On CPUs vLLM gets one place more than there are adapters. Its kernels there take "no adapter", -1, for the index of the last
    place (vllm/lora/ops/torch_ops/lora_ops.py): in a batch with others, the plain model would answer as the adapter that lies in
    it. So that place stays empty, and adds zero. The kernels of GPUs leave such rows out.
    """
    if not adapters:
        return {}
    places = min(len(adapters), BATCH_ADAPTERS) if gpus else len(adapters) + 1
    return {
        "enable_lora": True,
        "max_lora_rank": next(rank for rank in RANKS if rank >= max(adapter.rank for adapter in adapters)),
        "lora_target_modules": sorted({layer for adapter in adapters for layer in adapter.layers}),
        "max_loras": places,
        "max_cpu_loras": max(places, len(adapters)),  # all of them stay in memory
    }


def environment(
    config: Mapping[str, Any], context_tokens: int, places: int, dtype: Dtype, gpus: int, threads: int
) -> dict[str, str]:
    """Variables that vLLM and its processes read. config: the model's config.json.

    On CPUs torch.compile is off: it would take minutes for the whole model and a dozen seconds for the first log-probabilities.
    """
    shared = {
        "VLLM_NO_USAGE_STATS": "1",  # it would tell its makers about this machine
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # for the one token more, which is drawn and never read
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "HF_HUB_OFFLINE": "1",
    }
    if gpus:
        return shared
    return shared | {
        "VLLM_CPU_KVCACHE_SPACE": str(math.ceil(cache_bytes(config, context_tokens, places, dtype) / GIB)),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # by default every replica of a node takes the same cores
        "OMP_NUM_THREADS": str(threads),
        "TORCHDYNAMO_DISABLE": "1",
    }


def cache_bytes(config: Mapping[str, Any], context_tokens: int, places: int, dtype: Dtype) -> int:
    """Keys and values of every place at full length: places * context * layers * 2 * kv_heads * head_dim * bytes per value."""
    heads = int(config["num_attention_heads"])
    head_size = int(config.get("head_dim") or config["hidden_size"] // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    return places * context_tokens * int(config["num_hidden_layers"]) * 2 * kv_heads * head_size * DTYPES[dtype][1]


def sampling_fields(sampling: Sampling, end_ids: Sequence[int]) -> dict[str, Any]:
    """How one answer is drawn, as `vllm_parameters` takes it. vLLM adds the end tokens of generation_config.json to `end_ids`."""
    return {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "logit_bias": dict(sampling.logit_bias) or None,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logprobs": sampling.top_logprobs,
        "stop_token_ids": list(end_ids),
        "schema": sampling.schema,
        "output_kind": "DELTA",
        "detokenize": False,
    }


def scoring_fields(top: int) -> dict[str, Any]:
    """The prompt's own log-probabilities, for which vLLM has to write a token; such a request does not read the prefix cache."""
    return {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": top, "output_kind": "FINAL_ONLY", "detokenize": False}


def vllm_parameters(fields: dict[str, Any]) -> Any:
    """vLLM's SamplingParams of these fields."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    rest = {name: value for name, value in fields.items() if name not in ("schema", "output_kind")}
    schema = fields.get("schema")
    structured = StructuredOutputsParams(json=schema) if schema else None
    return SamplingParams(**rest, structured_outputs=structured, output_kind=RequestOutputKind[fields["output_kind"]])


def adapter_request(name: str, number: int, folder: Path) -> Any:
    """vLLM's LoRARequest for an adapter in a local folder. number: from 1 on, another one for each."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(name, number, str(folder))


def step_of(output: Any, top: int | None) -> Step:
    """One of vLLM's RequestOutputs (of kind DELTA). Raises ServiceError where vLLM gave the request up."""
    made = output.outputs[0]
    if made.finish_reason not in (None, "stop", "length"):
        raise ServiceError(f"vLLM ended the answer: {made.finish_reason}", "see the replica's log", "engine")
    tokens = tuple(made.token_ids)
    if top is None:
        return Step(tokens, made.finish_reason)
    found = zip(made.logprobs, tokens, strict=True)
    return Step(tokens, made.finish_reason, tuple(likelihood(entries, token, top) for entries, token in found))


def likelihood(entries: Mapping[int, Any], token: int, top: int) -> Likelihood:
    """Of one place. entries: token id -> vLLM's Logprob, for the `top` likeliest and the token itself, each with its rank."""
    likeliest = sorted(entries.items(), key=lambda entry: int(entry[1].rank))[:top]
    return Likelihood(float(entries[token].logprob), tuple((other, float(found.logprob)) for other, found in likeliest))
