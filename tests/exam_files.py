"""Invented exam files in the four forms that lm-evaluation-harness reads, and a model whose weights are a formula.

The texts have what spoils a comparison: double spaces, spaces at the ends, line ends, letters of several bytes, a question as long
as the model's context.
"""

import random
from pathlib import Path
from typing import Any

WORDS = (
    "renal", "cardiac", "", "hepatic", "patients", "cohort", "dose", "trial", "serum", "", "lesion", "therapy", "biopsy", "naïve", "β-cell",
    "onset", "risk",
)  # fmt: skip
"""The empty ones make double spaces."""
SUBJECTS = ("anatomy", "high_school_us_history")
ITEMS, WORKED = 6, 3
CONTEXT_TOKENS = 640


def records(form: str, worked: bool) -> list[dict[str, Any]]:
    """Records of `form` (mmlu, medqa, medmcqa or pubmedqa): ITEMS that are asked, or WORKED that stand before them."""
    draw = random.Random(f"{form} {worked}")
    return [_record(form, draw, number) for number in range(WORKED if worked else ITEMS)]


def _record(form: str, draw: random.Random, number: int) -> dict[str, Any]:
    question, options = f"{_words(draw, 9)}?{' ' * (number % 2)}", [f"{_words(draw, 2)}{' ' * (index % 2)}" for index in range(4)]
    question = f" {_words(draw, 40)}\n{question}" if number == ITEMS - 2 else question
    question = f"{_words(draw, 120)} {question}" if number == ITEMS - 1 else question
    answer = draw.randrange(4)
    if form == "mmlu":
        return {"question": question, "choices": options, "answer": answer, "subject": SUBJECTS[number % len(SUBJECTS)]}
    if form == "medqa":
        endings = {f"ending{index}": option for index, option in enumerate(options)}
        return {"id": f"q{number}", "sent1": question, "sent2": "", **endings, "label": answer}
    if form == "medmcqa":
        named = dict(zip(("opa", "opb", "opc", "opd"), options, strict=True))
        return {"id": f"q{number}", "question": question, **named, "cop": number % 4, "exp": None, "subject_name": "Skin"}
    decision = ("yes", "no", "maybe")[answer % 3]
    return {"QUESTION": question, "CONTEXTS": [_words(draw, 12), f" {_words(draw, 8)} "], "final_decision": decision}


def _words(draw: random.Random, count: int) -> str:
    """The last word has letters: two options are never the same."""
    return " ".join([*(draw.choice(WORDS) for _ in range(count - 1)), f"no{draw.randrange(10**6)}"])


def write_formula_model(folder: Path, kind: str) -> None:
    """A LLaMA of 50 thousand weights and a tokenizer of bytes with a few merges, as plain Hugging Face files.

    kind: `bos` adds a BOS to each text and cuts it into words; `border` does neither, and merges a colon with the space behind it,
    so that the last token of a context is not one of the whole text.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    pairs = [(":", "Ġ")] if kind == "border" else [("Ġ", "A"), ("Ġ", "m"), ("Ġm", "a"), ("Ġma", "y"), ("Ġ", "n"), ("Ġn", "o")]
    special = ["<s>", "</s>"]
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(first + second for first, second in pairs)]
    core = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, pairs))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "bos")
    core.decoder = decoders.ByteLevel()
    if kind == "bos":
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    config = LlamaConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96, vocab_size=len(names),
        max_position_embeddings=CONTEXT_TOKENS, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for number, (_, weights) in enumerate(sorted(model.named_parameters())):
            if weights.ndim > 1:
                places = torch.arange(weights.numel(), dtype=torch.float64).view_as(weights)
                weights.copy_(0.4 * torch.sin(places * (1.1 + 0.37 * number)))
    model.save_pretrained(folder)
