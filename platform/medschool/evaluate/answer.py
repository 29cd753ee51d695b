"""Answers in words: what a user of the model would read, and how often no letter can be read from it.

    question --the shortest answer that names an option--> `generated`, the protocol of the paper
    question --reasons, then the option--> `chain_of_thought`

Both ask by an instruction of exams/layout.py, and read the first option that the text calls correct. Under the second the whole
exam is answered so: `as_scores` makes the table of its scores, in which an answer that cannot be read is wrong.

Decoding is greedy. The model's own generation_config.json is set aside for the time, because `generate` would fill every option
that is not given from it: sampling, penalties and banned tokens differ between checkpoints, and the exam must not.

Questions of similar length are answered together, padded on the left; the answers end at the EOS token or after
`max_new_tokens`. Price: one forward pass for each token of the longest answer in a batch. Not for clinical use.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from medschool.errors import InputError
from medschool.evaluate.exams import EXAM_SCORES_SCHEMA, question_prompt
from medschool.exams.layout import DIRECT_INSTRUCTIONS, read_answer
from medschool.instructions.template import ChatTemplate
from medschool.rows import ExamItem

BATCH_TOKENS = 4096
"""Tokens of prompts and answers in memory at once; bounds the cache (4096 tokens are 90 MB for 135M, 2 GB for 7B in bf16)."""

ANSWERS_SCHEMA = pa.schema(
    [
        ("exam", pa.string()),
        ("id", pa.string()),
        ("text", pa.large_string()),
        ("chosen", pa.int32()),
        ("correct", pa.bool_()),
        ("problem", pa.string()),
        ("protocol", pa.string()),
    ]
)
"""`problem`: why no option can be read, `empty` or `unread`; '' where one can. `protocol`: hash of evaluate.protocol."""


def write_answers(
    model: Any,
    template: ChatTemplate,
    items: Sequence[ExamItem],
    max_new_tokens: int,
    protocol: str = "",
    instruction: str = DIRECT_INSTRUCTIONS[0],
) -> pa.Table:
    """One row an item, in the order of `items`: ANSWERS_SCHEMA. `chosen` is null where no option can be read from the text.

    instruction: what stands before the question; one of RATIONALE_INSTRUCTIONS asks for a chain of thought.

    Raises InputError with the id of an item that does not fit into the model's context with its answer.
    """
    prompts = [question_prompt(item, template, instruction) for item in items]
    _check_length(items, prompts, max_new_tokens, model.config.max_position_embeddings)
    rows = []
    for item, text in zip(items, greedy_texts(model, template, prompts, max_new_tokens), strict=True):
        rows.append(judged(item, text) | {"protocol": protocol})
    return pa.Table.from_pylist(rows, ANSWERS_SCHEMA)


def judged(item: ExamItem, text: str) -> dict[str, Any]:
    """What a text says to an item: a row of ANSWERS_SCHEMA without its protocol."""
    chosen = read_answer(text, item.options)
    problem = "" if chosen is not None else "unread" if text.strip() else "empty"
    told = {"exam": item.exam, "id": item.id, "text": text}
    return {**told, "chosen": chosen, "correct": chosen == item.answer, "problem": problem}


def as_scores(written: pa.Table, items: Sequence[ExamItem]) -> pa.Table:
    """Written answers, ANSWERS_SCHEMA, as scores, EXAM_SCORES_SCHEMA without log-probabilities. items: of that exam."""
    keys = {item.id: item.answer for item in items}
    rows = [
        {key: row[key] for key in ("exam", "id", "chosen", "correct", "protocol")}
        | {"answer": keys[row["id"]], "chosen_norm": row["chosen"], "log_probs": [], "cut_tokens": 0}
        for row in written.to_pylist()
    ]
    return pa.Table.from_pylist(rows, EXAM_SCORES_SCHEMA)


def _check_length(items: Sequence[ExamItem], prompts: Sequence[list[int]], max_new_tokens: int, context: int) -> None:
    for item, prompt in zip(items, prompts, strict=True):
        if len(prompt) + max_new_tokens > context:
            raise InputError(
                f"{len(prompt)} tokens and {max_new_tokens} of its answer, the model's context is {context}",
                "leave the item out of the exam's file, lower evaluate.answer_tokens or thought_tokens, or take another model",
                f"{item.exam} {item.id}",
            )


def parse_rates(answers: pa.Table) -> dict[str, float]:
    """Share of the answers of each exam, ANSWERS_SCHEMA, from which an option can be read."""
    counts = answers.group_by("exam").aggregate([("chosen", "count"), ("id", "count")]).sort_by("exam").to_pylist()
    return {row["exam"]: row["chosen_count"] / row["id_count"] for row in counts}


def greedy_texts(model: Any, template: ChatTemplate, prompts: Sequence[list[int]], max_new_tokens: int) -> list[str]:
    """The continuation of each prompt (token ids) without control tokens, at most `max_new_tokens` tokens long."""
    texts = [""] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    while by_length:
        take = max(1, BATCH_TOKENS // (len(prompts[by_length[0]]) + max_new_tokens))
        group, by_length = by_length[:take], by_length[take:]
        answers = _group_answers(model, [prompts[index] for index in group], template.eos_id, max_new_tokens)
        for index, answer in zip(group, answers, strict=True):
            texts[index] = template.decode(answer)
    return texts


def _group_answers(model: Any, prompts: list[list[int]], eos_id: int, max_new_tokens: int) -> list[list[int]]:
    """New tokens of each prompt, without the EOS and what stands behind it."""
    from transformers import GenerationConfig

    longest = max(map(len, prompts))
    ids = torch.tensor([[eos_id] * (longest - len(prompt)) + prompt for prompt in prompts])
    real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    own, greedy = (
        model.generation_config,
        GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=eos_id, pad_token_id=eos_id),
    )
    model.generation_config = greedy
    try:
        with torch.inference_mode():
            out = model.generate(ids.to(model.device), attention_mask=real.to(model.device))
    finally:
        model.generation_config = own
    answers: list[list[int]] = out[:, longest:].tolist()
    return [answer[: answer.index(eos_id)] if eos_id in answer else answer for answer in answers]
