"""NEFTune's noise: its size for each conversation of a row, where it comes from, and where there is none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from medschool.artifact import digest_of
from medschool.errors import RecipeError
from medschool.procedure import stages
from medschool.recipe import load
from medschool.train.model import model_inputs, row_losses, targets_of
from medschool.train.neftune import add_noise, draw_noise, row_noise

ROOT = Path(__file__).parents[2]
LENGTHS = [[5, 3], [8], [1, 1, 6]]
ROWS = [12, 13, -1]
ALPHA, SEED, WIDTH = 10.0, 3, 32


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, vocab_size=60,
        max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60, (3, 8)).astype(np.uint16)


def test_the_noise_of_each_conversation_is_as_large_as_the_paper_says() -> None:
    lengths, width = [400, 50, 2000], 64
    noise, end = row_noise(ALPHA, SEED, 7, lengths, width), 0
    for length in lengths:
        piece, end = noise[end : end + length], end + length
        bound = ALPHA / np.sqrt(length * width)  # the paper's alpha / sqrt(L d)
        assert 0.99 * bound < np.abs(piece).max() <= bound * (1 + 1e-6)
        assert piece.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)  # that of an even draw
        assert abs(piece.mean()) < 4 * bound / np.sqrt(3 * piece.size)
    assert end == len(noise) and noise.dtype == np.float32


def test_a_row_draws_by_its_place_in_the_run_and_the_seed_alone() -> None:
    one = row_noise(ALPHA, SEED, 7, [5, 3], WIDTH)
    assert np.array_equal(one, row_noise(ALPHA, SEED, 7, [5, 3], WIDTH))
    assert not np.isclose(one, row_noise(ALPHA, SEED, 8, [5, 3], WIDTH)).any(axis=1).all()
    assert not np.array_equal(one, row_noise(ALPHA, SEED + 1, 7, [5, 3], WIDTH))
    assert np.allclose(row_noise(2 * ALPHA, SEED, 7, [5, 3], WIDTH), 2 * one)
    assert not row_noise(ALPHA, SEED, -1, [5, 3], WIDTH).any()


def losses(model: LlamaForCausalLM, tokens: np.ndarray, micro: int) -> list[float]:
    found = []
    for first in range(0, len(tokens), micro):
        rows = slice(first, first + micro)
        targets = targets_of(tokens[rows], LENGTHS[rows], np.ones(tokens[rows].shape, bool), np.ones(len(tokens[rows])))
        draw_noise(model, ROWS[rows], LENGTHS[rows], torch.device("cpu"))
        found += row_losses(model, model_inputs(tokens[rows], LENGTHS[rows]), targets).tolist()
    return found


def test_the_model_in_training_reads_embeddings_with_the_noise_and_nothing_else_changes(tokens: np.ndarray) -> None:
    plain, noisy = tiny().train(), add_noise(tiny(), ALPHA, SEED).train()
    expected = []
    for row, number, lengths in zip(tokens, ROWS, LENGTHS, strict=True):
        inputs = model_inputs(row[None], [lengths])
        embedded = plain.get_input_embeddings()(inputs.pop("input_ids"))
        noise = torch.from_numpy(row_noise(ALPHA, SEED, number, lengths, WIDTH))
        targets = targets_of(row[None], [lengths], np.ones((1, 8), bool), np.ones(1))
        expected += row_losses(plain, {**inputs, "inputs_embeds": embedded + noise}, targets).tolist()
    assert losses(noisy, tokens, 3) == pytest.approx(expected, rel=1e-5)
    quiet = losses(plain, tokens, 3)
    assert all(abs(one - two) > 1e-3 for one, two in zip(expected[:2], quiet[:2], strict=True))
    assert expected[2] == pytest.approx(quiet[2], rel=1e-6)  # a row that fills up a slice


@pytest.mark.parametrize("micro", [1, 2])
def test_the_size_of_a_micro_batch_changes_no_noise(micro: int, tokens: np.ndarray) -> None:
    model = add_noise(tiny(), ALPHA, SEED).train()
    assert losses(model, tokens, micro) == pytest.approx(losses(model, tokens, 3), rel=1e-5)


def test_what_is_measured_has_no_noise(tokens: np.ndarray) -> None:
    noisy = add_noise(tiny(), ALPHA, SEED).eval()
    assert losses(noisy, tokens, 3) == losses(tiny().eval(), tokens, 3)


def test_it_decides_the_tuning_alone_and_pretraining_has_none() -> None:
    before, after = (
        {stage.name: digest_of([stage.sections]) for stage in stages(load(ROOT / "recipes" / "quickstart.yaml", overrides))}
        for overrides in ([], ["instruct.neftune_alpha=5"])
    )
    assert {name for name in before if before[name] != after[name]} == {"instruct/instructed"}
    with pytest.raises(RecipeError, match=r"pretrain\.neftune_alpha: unknown key"):
        load(ROOT / "recipes" / "quickstart.yaml", ["pretrain.neftune_alpha=5"])
    with pytest.raises(RecipeError, match="neftune_alpha"):
        load(ROOT / "recipes" / "quickstart.yaml", ["instruct.neftune_alpha=0"])
