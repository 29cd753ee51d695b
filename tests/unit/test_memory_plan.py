"""The memory that a plan foretells: the activations against what torch keeps, byte by byte, the rest by its parts."""

import dataclasses
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import LlamaConfig, LlamaForCausalLM

from medschool.cluster.fit import parameters
from medschool.cluster.memory import adapter_parameters, layer_bytes, training_memory
from medschool.plan import make_plan
from medschool.recipe import load
from medschool.recipe.cluster import Cluster
from medschool.recipe.training import Lora, Shape

BIG = Path(__file__).parents[2] / "recipes" / "pmc_llama_13b.yaml"
SHAPE = Shape(
    hidden_size=128, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=2, intermediate_size=352, vocab_size=500,
    tie_word_embeddings=False, max_position_embeddings=512,
)  # fmt: skip


def model(shape: Shape, attention: str, dtype: torch.dtype) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**shape.model_dump(), attn_implementation=attention)).to(dtype).train()


def kept_bytes(layers: int, attention: str, dtype: torch.dtype, tokens: int) -> int:
    """What torch keeps for the backward pass of the decoder: every storage once, weights left out."""
    llama, kept = model(SHAPE.model_copy(update={"num_hidden_layers": layers}), attention, dtype), dict[int, torch.Tensor]()
    weights = {weight.untyped_storage().data_ptr() for weight in llama.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    half = torch.arange(tokens // 2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = llama.model(
            input_ids=torch.zeros((1, tokens), dtype=torch.int64), position_ids=torch.cat([half, half])[None], use_cache=False
        )
    assert out.last_hidden_state.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("tokens", [64, 256])
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_layer_keeps_what_torch_keeps(attention: str, dtype: torch.dtype, width: int, tokens: int) -> None:
    two_layers = kept_bytes(3, attention, dtype, tokens) - kept_bytes(1, attention, dtype, tokens)
    assert layer_bytes(SHAPE, width, attention, tokens) * 2 * tokens == two_layers


@pytest.mark.parametrize("modules", [("q_proj",), ("k_proj", "down_proj"), Lora(rank=1, alpha=1).modules])
def test_adapters_are_counted_as_peft_makes_them(modules: tuple[str, ...]) -> None:
    shape = SHAPE.model_copy(update={"num_hidden_layers": 2})
    made = inject_adapter_in_model(LoraConfig(r=3, target_modules=list(modules)), model(shape, "sdpa", torch.float32))
    counted = sum(weight.numel() for weight in made.parameters() if weight.requires_grad)
    assert adapter_parameters(shape, Lora(rank=3, alpha=1, modules=modules)) == counted


def needed(workers: int = 4, lora: Lora | None = None, **cluster: object) -> dict[str, int]:
    spec = Cluster.model_validate({"num_workers": workers, "micro_batch_tokens": 256, **cluster})
    return dataclasses.asdict(training_memory(SHAPE, spec, "bf16", 256, 128, workers, lora))


def test_each_stage_of_zero_deals_out_one_thing_more() -> None:
    count = parameters(SHAPE)
    states = [needed(zero_stage=stage)["states_bytes"] for stage in range(4)]
    assert states == [16 * count, (4 + 3) * count, 2 * count + (2 * count) // 4 + 3 * count, (2 * count) // 4 * 2 + 3 * count]
    one = [needed(1, zero_stage=stage)["states_bytes"] for stage in range(4)]
    assert one == [16 * count] * 4


def test_what_saves_memory_saves_it_where_it_should() -> None:
    plain, count = needed(zero_stage=3), parameters(SHAPE)
    offloaded = needed(zero_stage=3, offload=("optimizer", "parameters"))
    assert offloaded["states_bytes"] == (2 * count) // 4
    assert offloaded["host_bytes"] - plain["host_bytes"] == plain["states_bytes"] - offloaded["states_bytes"]
    assert needed(loss_chunk_tokens=64)["logits_bytes"] * 4 == needed()["logits_bytes"] == 12 * 500 * 256
    whole, again = needed(), needed(activation_checkpointing=True)
    assert again["activations_bytes"] == whole["activations_bytes"] + 2 * 128 * 256, "one layer: its input beside it"
    lora = needed(lora=Lora(rank=4, alpha=8))
    assert lora["states_bytes"] < whole["states_bytes"] and lora["activations_bytes"] == whole["activations_bytes"]
    for found in (plain, offloaded, whole, again, lora):
        assert found["states_bytes"] < found["peak_bytes"] < sum(found.values())


def test_the_paper_s_run_fits_its_cards_as_shipped() -> None:
    def peak_gib(*overrides: str) -> float:
        (course,) = make_plan(load(BIG, overrides), "").courses
        assert course.memory
        return course.memory.peak_bytes / 2**30

    assert peak_gib() < 80 < peak_gib("cluster.activation_checkpointing=false")
