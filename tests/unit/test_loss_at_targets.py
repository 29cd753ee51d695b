"""The output head over tokens with a target alone: losses and gradients of the whole, how much the head sees, and whom it refuses."""

import copy

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from medschool.errors import PlanError
from medschool.train.model import loss_at_targets, model_inputs, row_losses, summed_loss, targets_of

LENGTHS = [[5, 3], [8], [1, 1, 6]]
TOKENS = np.random.default_rng(0).integers(0, 60, (3, 8)).astype(np.uint16)
FEW = np.random.default_rng(1).random((3, 8)) < 0.3
WAYS = [None, 1, 7, 100]


@pytest.fixture
def plain() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, vocab_size=60,
        max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).double()


def targets(trained: np.ndarray) -> torch.Tensor:
    return targets_of(TOKENS, LENGTHS, trained, np.array([1, 1, 1]))


@pytest.mark.parametrize("chunk_tokens", WAYS)
@pytest.mark.parametrize("trained", [FEW, np.ones((3, 8), bool), np.zeros((3, 8), bool)], ids=["few", "all", "none"])
def test_losses_and_gradients_are_those_of_the_whole(
    plain: LlamaForCausalLM, trained: np.ndarray, chunk_tokens: int | None
) -> None:
    model = copy.deepcopy(plain)
    loss_at_targets(model, chunk_tokens)
    inputs, wanted = model_inputs(TOKENS, LENGTHS), targets(trained)
    assert torch.allclose(row_losses(model, inputs, wanted), row_losses(plain, inputs, wanted), rtol=1e-6)
    for one in (model, plain):
        summed_loss(one, inputs, wanted).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk_tokens", WAYS)
def test_the_head_sees_as_many_tokens_as_have_a_target(plain: LlamaForCausalLM, chunk_tokens: int | None) -> None:
    loss_at_targets(plain, chunk_tokens)
    seen: list[int] = []
    plain.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    wanted = targets(FEW)
    summed_loss(plain, model_inputs(TOKENS, LENGTHS), wanted)
    assert sum(seen) == int((wanted >= 0).sum()) > 0 and max(seen) <= (chunk_tokens or wanted.numel())
    assert len(seen) == (1 if chunk_tokens is None else -(-wanted.numel() // chunk_tokens))  # equal on every rank, for ZeRO 3


def test_without_targets_the_model_answers_as_before(plain: LlamaForCausalLM) -> None:
    expected = plain(**model_inputs(TOKENS, LENGTHS)).logits
    loss_at_targets(plain, None)
    assert torch.equal(plain(**model_inputs(TOKENS, LENGTHS)).logits, expected)


def test_a_model_that_changes_its_logits_afterwards_is_refused(plain: LlamaForCausalLM) -> None:
    plain.config.logits_scaling = 8.0
    with pytest.raises(PlanError, match="changes its logits after the output head"):
        loss_at_targets(plain, 7)
