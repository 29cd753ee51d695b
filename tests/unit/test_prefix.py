"""Prompts that begin alike, read once: the same scores as each row alone, and fewer tokens through the model."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from medschool.evaluate import choices, prefix
from medschool.evaluate.choices import Choice, choice_log_probs
from medschool.evaluate.prefix import LEAST_SHARED, alike

CONTEXT = 160


def model_of(attention: str) -> Any:
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, vocab_size=60,
        max_position_embeddings=CONTEXT, attn_implementation=attention, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


MODELS = {attention: model_of(attention) for attention in ("sdpa", "eager")}
TOKEN = st.integers(0, 59)
ENDINGS = st.lists(st.lists(TOKEN, min_size=1, max_size=4).map(tuple), min_size=1, max_size=4).map(tuple)
BEGINNINGS = st.lists(st.lists(TOKEN, min_size=LEAST_SHARED - 1, max_size=LEAST_SHARED + 8).map(tuple), min_size=1, max_size=3)


@st.composite
def companies(draw: st.DrawFn) -> list[Choice]:
    """Choices of which several begin alike, as those with the same worked questions do."""
    begun = draw(BEGINNINGS)
    rests = st.lists(TOKEN, min_size=1, max_size=6).map(tuple)
    drawn = draw(st.lists(st.tuples(st.sampled_from([(), *begun]), rests, ENDINGS), min_size=1, max_size=7))
    return [Choice(beginning + rest, endings) for beginning, rest, endings in drawn]


def alone(model: Any, prompt: tuple[int, ...], ending: tuple[int, ...]) -> float:
    """The ending behind its prompt in a row of its own: no cache, no mask, no padding."""
    with torch.inference_mode():
        log_probs = model(input_ids=torch.tensor([[*prompt, *ending]]), use_cache=False).logits[0].float().log_softmax(-1)
    return sum(float(log_probs[len(prompt) + place - 1, token]) for place, token in enumerate(ending))


@settings(max_examples=30, deadline=None)
@given(companies(), st.sampled_from(["sdpa", "eager"]))
def test_what_is_read_once_scores_as_each_row_alone(drawn: list[Choice], attention: str) -> None:
    model = MODELS[attention]
    for choice, scores in zip(drawn, choice_log_probs(model, drawn), strict=True):
        assert scores == pytest.approx([alone(model, choice.prompt, ending) for ending in choice.endings], abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(companies())
def test_every_prompt_is_in_one_group_and_begins_as_its_group(drawn: list[Choice]) -> None:
    prompts = [choice.prompt for choice in drawn]
    groups = alike(prompts)
    assert sorted(place for group in groups for place in group.members) == list(range(len(prompts)))
    for group in groups:
        mine = [prompts[place] for place in group.members]
        assert len({prompt[: group.tokens] for prompt in mine}) == 1 and min(map(len, mine)) > group.tokens
        assert group.tokens == 0 or (len(mine) > 1 and group.tokens >= LEAST_SHARED)


def tokens_read(monkeypatch: pytest.MonkeyPatch, drawn: list[Choice]) -> int:
    model, seen = MODELS["sdpa"], list[int]()
    forward = model.forward

    def counted(*args: Any, **inputs: Any) -> Any:
        seen.append(inputs["input_ids"].numel())
        return forward(*args, **inputs)

    monkeypatch.setattr(model, "forward", counted)
    choice_log_probs(model, drawn)
    monkeypatch.undo()
    return sum(seen)


def test_a_shared_beginning_goes_through_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    worked = tuple(place % 60 for place in range(100))
    drawn = [Choice((*worked, number, 7), ((1,), (2,))) for number in range(8)]
    assert tokens_read(monkeypatch, drawn) == 100 + 8 * 2
    assert tokens_read(monkeypatch, drawn[:1]) == 102


def test_a_batch_holds_no_more_keys_and_values_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [Choice((*range(50), number), ((1,), (2, 3))) for number in range(6)]
    whole = choice_log_probs(MODELS["sdpa"], drawn)
    rows: list[int] = []
    for_rows = prefix.for_rows
    monkeypatch.setattr(choices, "CACHE_TOKENS", 160)
    monkeypatch.setattr(choices, "for_rows", lambda kept, count: rows.append(count) or for_rows(kept, count))
    for found, expected in zip(choice_log_probs(MODELS["sdpa"], drawn), whole, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
    assert rows == [3, 3]
