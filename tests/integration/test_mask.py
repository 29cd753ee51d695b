"""Documents in one row against each document alone: logits and gradients, for each family of models and attention that runs here."""

import copy
import itertools

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, SmolLM3Config

from medschool.train.model import model_inputs, summed_loss, targets_of

LENGTHS = [[9, 7], [16], [1, 1, 14], [6, 1, 9]]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
SHAPE |= {"vocab_size": 60, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "mistral with a window": MistralConfig(**SHAPE, sliding_window=4),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen2 with a window in its second layer": Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "smollm3 without rotation in its second layer": SmolLM3Config(**SHAPE, no_rope_layers=[1, 0]),
}


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(3, 60, (len(LENGTHS), 16)).astype(np.uint16)


def pair(family: str, attention: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model, and its twin of the same weights with the plainest attention, which only ever sees documents alone."""
    torch.manual_seed(0)
    twin = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family]), attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family]), attn_implementation=attention)
    model.load_state_dict(twin.state_dict())
    return model, twin


def documents(tokens: np.ndarray) -> list[tuple[int, int, torch.Tensor]]:
    """(row, first position, ids (1, length)) of each document."""
    ends = [list(itertools.accumulate(lengths)) for lengths in LENGTHS]
    spans = [
        (row, end - length, end) for row, lengths in enumerate(LENGTHS) for length, end in zip(lengths, ends[row], strict=True)
    ]
    return [(row, start, torch.from_numpy(tokens[row, start:end].astype(np.int64))[None]) for row, start, end in spans]


def largest_logit_difference(model: torch.nn.Module, twin: torch.nn.Module, tokens: np.ndarray, attention: str) -> float:
    packed = model(**model_inputs(tokens, LENGTHS, attention), use_cache=False).logits
    differences = [
        (packed[row, start : start + ids.shape[1]] - twin(input_ids=ids, use_cache=False).logits[0]).abs().max()
        for row, start, ids in documents(tokens)
    ]
    return float(torch.stack(differences).max().detach())


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_give_the_logits_of_their_documents_alone(family: str, attention: str, mode: str, tokens: np.ndarray) -> None:
    model, twin = (getattr(each, mode)() for each in pair(family, attention))
    assert largest_logit_difference(model, twin, tokens, attention) < 1e-6


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_give_the_gradients_of_their_documents_alone(family: str, attention: str, tokens: np.ndarray) -> None:
    model, twin = pair(family, attention)
    inputs = model_inputs(tokens, LENGTHS, attention)
    summed_loss(model, inputs, targets_of(tokens, LENGTHS, np.ones(tokens.shape, bool), np.ones(len(tokens)))).backward()
    for _, _, ids in documents(tokens):
        logits = twin(input_ids=ids, use_cache=False).logits[0]
        torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum").backward()
    for (name, weight), alone in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(weight.grad, alone.grad, rtol=1e-5, atol=1e-5), name


def test_a_window_hides_what_is_further_back() -> None:
    """The window is what makes a mask of one's own wrong: this fails where all layers see the whole document."""
    model, _ = pair("mistral with a window", "sdpa")
    plain, _ = pair("mistral", "sdpa")
    plain.load_state_dict(model.state_dict())
    ids = np.random.default_rng(1).integers(3, 60, (1, 16)).astype(np.uint16)
    with_window, without = (each(**model_inputs(ids, [[16]]), use_cache=False).logits[0] for each in (model, plain))
    assert torch.allclose(with_window[:4], without[:4], atol=1e-6) and not torch.allclose(with_window[4:], without[4:], atol=1e-3)


def test_a_leak_is_seen_by_these_tests(tokens: np.ndarray) -> None:
    """Without restarting positions, the same comparison finds a large difference."""
    model, twin = pair("llama", "sdpa")
    whole_rows = {**model_inputs(tokens, LENGTHS), "position_ids": torch.arange(16).repeat(len(tokens), 1)}
    packed = model(**whole_rows, use_cache=False).logits
    row, start, ids = documents(tokens)[1]
    assert (packed[row, start:] - twin(input_ids=ids, use_cache=False).logits[0]).abs().max() > 1e-2


@pytest.mark.long  # compiling its kernels takes half a minute
@pytest.mark.parametrize("family", FAMILIES)
def test_flex_attention_keeps_documents_apart_in_the_forward_pass(family: str, tokens: np.ndarray) -> None:
    model, twin = pair(family, "flex_attention")
    with torch.no_grad():
        assert largest_logit_difference(model, twin, tokens, "flex_attention") < 1e-6


def test_flash_attention_is_told_where_each_document_starts(tokens: np.ndarray) -> None:
    """What its variable-length kernel is called with; no GPU has run the kernel itself."""
    inputs = model_inputs(tokens, LENGTHS, "flash_attention_2")
    starts = [row * 16 + start for row, start, _ in documents(tokens)]
    assert inputs["cu_seq_lens_q"].tolist() == inputs["cu_seq_lens_k"].tolist() == [*starts, tokens.size]
    assert inputs["cu_seq_lens_q"].dtype == torch.int32 and inputs["max_length_q"] == inputs["max_length_k"] == 16


def test_flash_attention_passes_the_boundaries_to_its_kernel(tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's place is taken by a plain one over each document: transformers hands the boundaries on, in every layer."""
    from transformers import modeling_flash_attention_utils as flash

    calls = []

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor, **about: object) -> torch.Tensor:
        """q (B * L, heads, d): causal attention within each document."""
        calls.append(about["max_seqlen_q"])
        parts = []
        for start, end in itertools.pairwise(cu_seqlens_q.tolist()):
            one = [each[start:end].transpose(0, 1)[None] for each in (q, k, v)]
            parts.append(
                torch.nn.functional.scaled_dot_product_attention(*one, is_causal=True, enable_gqa=True)[0].transpose(0, 1)
            )
        return torch.cat(parts)

    def process(**about: object) -> dict[str, object]:
        return {name: value for name, value in about.items() if name.startswith("max_seqlen")}

    monkeypatch.setattr(
        flash, "lazy_import_flash_attention", lambda *_, **__: ((None, kernel, None, None, None), (process, process))
    )
    model, twin = pair("llama", "sdpa")
    model.config._attn_implementation = "flash_attention_2"
    assert largest_logit_difference(model, twin, tokens, "flash_attention_2") < 1e-6
    assert calls == [16, 16]
