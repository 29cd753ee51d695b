"""Conversations packed into rows teach a model what they teach it one by one: gradients and losses, for every template."""

from pathlib import Path

import numpy as np
import pytest
import torch
from templates import TEMPLATES, save_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from medschool.instructions.template import ChatTemplate
from medschool.rows import Message
from medschool.tokens.pack import pack_whole
from medschool.train.model import model_inputs, summed_loss, targets_of

ROW_TOKENS = 512
CONVERSATIONS = [
    [Message("user", "a b\n\nrd?"), Message("assistant", "###Answer: OPTION B IS CORRECT.")],
    [Message("user", "the dose"), Message("assistant", "trial."), Message("user", "of"), Message("assistant", ":# renal")],
    [Message("user", "cardiac " * 4), Message("assistant", "no")],
    [Message("user", "x"), Message("assistant", "the renal dose of the trial. " * 2)],
]


@pytest.mark.parametrize("turns", ["all", "last"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_gradient_of_packed_conversations_is_the_sum_of_theirs_alone(name: str, turns: str, tmp_path: Path) -> None:
    text, eos, _ = TEMPLATES[name]
    save_tokenizer(tmp_path, text, eos)
    template = ChatTemplate(tmp_path)
    found = [template.masked(each, turns) for each in CONVERSATIONS]  # type: ignore[arg-type]
    pairs = [(np.array(each.ids, np.uint16), np.array(each.trained)) for each in found]
    rows = pack_whole([f"c{number}" for number in range(len(pairs))], pairs, ROW_TOKENS, template.eos_id, np.dtype(np.uint16))
    assert max(map(len, rows.doc_ids)) > 2  # some row holds several conversations and padding
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, vocab_size=400
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    targets = targets_of(rows.tokens, rows.doc_lengths, rows.trained, np.ones(len(rows.tokens)))
    packed = summed_loss(model, model_inputs(rows.tokens, rows.doc_lengths), targets)
    packed.backward()
    together = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    losses = []
    for each in found:  # plain: no packing, no positions, no mask of the repository
        ids = torch.tensor([each.ids])
        labels = torch.tensor([[token if flag else -100 for token, flag in zip(each.ids, each.trained, strict=True)]])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum")
        loss.backward()
        losses.append(loss.item())
    assert packed.item() == pytest.approx(sum(losses), rel=1e-5)
    for grad, weight in zip(together, model.parameters(), strict=True):
        assert (grad - weight.grad).abs().max() <= 1e-5 * weight.grad.abs().max()
