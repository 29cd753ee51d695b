"""Memory that one training worker needs, worked out before anything starts.

    states        weights, gradients, AdamW's two moments and the fp32 copy of the weights; ZeRO deals them out to the workers
                  (Rajbhandari et al. 2020, section 3: 2 + 2 + 12 bytes a weight in bf16)
    buffers       what DeepSpeed gathers gradients in, and at stage 3 weights: its defaults, config.py of deepspeed.runtime.zero
    activations   what the layers keep for the backward pass, counted from transformers' LLaMA (modeling_llama.py)
    logits        output head and loss in fp32, at the moment when the loss goes backward

Peak is the largest of two moments: the begin of the backward pass, and the update, when the gradients are there in fp32 too.
Left out are the allocator's gaps, kernels' scratch space and the process itself (torch on a GPU: about half a GiB). On the host
every worker keeps one copy of what it saves in a checkpoint, and what is offloaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from medschool.cluster.fit import parameters
from medschool.recipe.cluster import Cluster
from medschool.recipe.training import Lora, Shape

BYTES = {"bf16": 2, "fp32": 4}
REDUCE_BUCKET, LIVE_PARAMETERS = 500_000_000, 1_000_000_000
"""Elements: DeepSpeed 0.19.8's reduce_bucket_size and stage3_max_live_parameters."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker. Without a GPU everything is the host's."""

    states_bytes: int
    buffers_bytes: int
    activations_bytes: int
    logits_bytes: int
    peak_bytes: int
    """Of the accelerator, or of the process where there is none."""
    host_bytes: int
    """Beside that: the copy of a checkpoint, and what is offloaded."""


def training_memory(
    shape: Shape, spec: Cluster, dtype: str, micro_batch_tokens: int, row_tokens: int, workers: int, lora: Lora | None = None
) -> Memory:
    """What a worker of so many holds when it trains a model of `shape`.

    micro_batch_tokens: tokens that it takes through the model at once, whole rows of `row_tokens`.
    """
    width, stage, count = BYTES[dtype], spec.zero_stage, parameters(shape)
    trained = count if lora is None else adapter_parameters(shape, lora)
    weights = width * (count + (trained if lora else 0))
    gradients, optimizer = width * trained, (8 if stage == 0 and dtype == "fp32" else 12) * trained
    weights, gradients = weights // (workers if stage == 3 else 1), gradients // (workers if stage >= 2 else 1)
    optimizer //= workers if stage >= 1 else 1
    offloaded = optimizer * ("optimizer" in spec.offload) + weights * ("parameters" in spec.offload)
    states = weights + gradients + optimizer - offloaded
    gathered = width * min(count, LIVE_PARAMETERS) if stage == 3 else 0
    buffers = gathered + (width * min(trained, REDUCE_BUCKET) if stage else 0)
    layer = layer_bytes(shape, width, spec.attention, row_tokens) * micro_batch_tokens
    kept = shape.hidden_size * width * micro_batch_tokens
    logits = 12 * shape.vocab_size * min(micro_batch_tokens, spec.loss_chunk_tokens or micro_batch_tokens)
    if spec.activation_checkpointing:
        activations, backward = shape.num_hidden_layers * kept + layer, shape.num_hidden_layers * kept + max(layer, logits)
    else:
        activations = shape.num_hidden_layers * layer
        backward = activations + logits
    update = 0 if "optimizer" in spec.offload else 4 * trained // (workers if stage >= 1 else 1)
    return Memory(states, buffers, activations, logits, states + max(buffers + backward, update), optimizer + weights + offloaded)


def second_copy_bytes(shape: Shape, spec: Cluster, dtype: str, workers: int, machines: int) -> int:
    """The weights that each machine keeps a second time at stage 3, dealt out to its own workers (train.network.zero_options).

    Left out of `training_memory`, because only a cluster file says how many machines there are.
    """
    if spec.zero_stage != 3 or machines == 1 or workers % machines or workers == machines or "parameters" in spec.offload:
        return 0
    return BYTES[dtype] * parameters(shape) * machines // workers


def layer_bytes(shape: Shape, width: int, attention: str, row_tokens: int) -> int:
    """Bytes that one decoder layer keeps for the backward pass, a token of `width` bytes a number.

    Norms (2): the input in fp32, the normalised one, the root. Attention: q, k and v (those repeated for each head where there is
    a mask), what it gives, and that in the layout of the output projection, which reads it. MLP: gate, its SiLU, up, and their
    product. `sdpa` keeps the mask as numbers, `eager` the softmax of the scores in fp32 and as the next product reads it.
    """
    hidden, inner, heads = shape.hidden_size, shape.intermediate_size, shape.num_attention_heads
    repeated = hidden if attention in ("sdpa", "eager") else hidden // heads * shape.num_key_value_heads
    masks = {"sdpa": width * row_tokens + 4 * heads, "eager": (4 + width * (width < 4)) * heads * row_tokens}
    return 8 * hidden + width * (6 * hidden + 2 * repeated + 4 * inner) + 8 + masks.get(attention, 4 * heads)


def adapter_parameters(shape: Shape, lora: Lora) -> int:
    """Weights of the adapters A (rank, in) and B (out, rank) on every named linear layer."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    heads = hidden // shape.num_attention_heads * shape.num_key_value_heads
    sizes: Mapping[str, int] = {
        "q_proj": 2 * hidden, "k_proj": hidden + heads, "v_proj": hidden + heads, "o_proj": 2 * hidden,
        "gate_proj": hidden + inner, "up_proj": hidden + inner, "down_proj": hidden + inner,
    }  # fmt: skip
    return shape.num_hidden_layers * lora.rank * sum(sizes.get(name, 0) for name in lora.modules)
