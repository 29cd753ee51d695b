"""The exam protocol `letters`: one question, one prompt, the most probable letter.

    [user: instruction, question, options] [assistant: "###Answer: OPTION"] -> " A" | " B" | " C" | " D"

The prompt is the checkpoint's own chat template with the first of the direct instructions, and the beginning of an answer as
tuning teaches it. The letter with the highest log-probability is the model's answer, so every model answers every question and
nothing depends on how it likes to phrase an answer; medschool.evaluate.answer measures whether it can write one down.

Logits of a bf16 model have 8 significant bits, so two letters may tie exactly. A tie is broken by a hash of the item and the
letter: the same for every model, and in favour of no letter.

The protocol `lm_eval` is medschool.evaluate.harness, `chain_of_thought` medschool.evaluate.answer; all make the same table.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from medschool.errors import InputError
from medschool.evaluate.choices import Choice, choice_log_probs, forked
from medschool.evaluate.harness import Encode, Scored, score_items
from medschool.evaluate.protocol import Sitting
from medschool.exams.layout import ANSWER_STEM, DIRECT_INSTRUCTIONS, letter, user_text
from medschool.instructions.template import ChatTemplate
from medschool.rows import ExamItem, Message
from medschool.seed import seed_of

EXAM_SCORES_SCHEMA = pa.schema(
    [
        ("exam", pa.string()),
        ("id", pa.string()),
        ("answer", pa.int32()),
        ("chosen", pa.int32()),
        ("correct", pa.bool_()),
        ("log_probs", pa.list_(pa.float64())),
        ("chosen_norm", pa.int32()),
        ("cut_tokens", pa.int32()),
        ("protocol", pa.string()),
    ]
)
"""`chosen_norm`: by the log-probability a character, as lm-evaluation-harness's `acc_norm`; of letters the same as `chosen`.
Both are null where an answer in words cannot be read, and such answers have no `log_probs`. `cut_tokens`: what a prompt
that was too long lost. `protocol`: hash of medschool.evaluate.protocol."""


def question_prompt(item: ExamItem, template: ChatTemplate, instruction: str = DIRECT_INSTRUCTIONS[0]) -> list[int]:
    """The question as a conversation, with the assistant's turn opened. Raises InputError when the template refuses it."""
    return template.prompt([Message("user", user_text(item, instruction))])


def exam_choices(items: Sequence[ExamItem], template: ChatTemplate) -> list[Choice]:
    """The choice between the letters of each item, each as the whole conversation that ends with it.

    Raises InputError when the tokenizer does not tell the letters apart.
    """
    choices = []
    for item in items:
        question = Message("user", user_text(item, DIRECT_INSTRUCTIONS[0]))
        stem, *answers = (
            template.unended([question, Message("assistant", text)])
            for text in (ANSWER_STEM, *(f"{ANSWER_STEM} {letter(index)}" for index in range(len(item.options))))
        )
        choices.append(forked(stem, answers))
    return choices


def score_exam(model: Any, template: ChatTemplate, items: Sequence[ExamItem], protocol: str = "") -> pa.Table:
    """One row an item, in the order of `items`: EXAM_SCORES_SCHEMA. `log_probs` are those of its letters, in nats.

    Raises InputError with the id of an item that does not fit into the model's context.
    """
    choices = exam_choices(items, template)
    context = model.config.max_position_embeddings
    for item, choice in zip(items, choices, strict=True):
        if choice.longest > context:
            raise InputError(
                f"{choice.longest} tokens with its answer, the model's context is {context}",
                "leave the item out of the exam's file, or take a model with a longer context",
                f"{item.exam} {item.id}",
            )
    scores = choice_log_probs(model, choices)
    chosen = [best(item.id, log_probs) for item, log_probs in zip(items, scores, strict=True)]
    rows = [Scored(tuple(log_probs), 0, index, index) for log_probs, index in zip(scores, chosen, strict=True)]
    return _table(items, rows, protocol)


def score_as_harness(model: Any, encode: Encode, items: Sequence[ExamItem], sitting: Sitting, protocol: str = "") -> pa.Table:
    """The same table under `lm_eval`, with the sitting's worked questions. Raises as harness.score_items."""
    return _table(items, score_items(model, encode, items, sitting.shots, sitting.shot_count), protocol)


def _table(items: Sequence[ExamItem], scored: Sequence[Scored], protocol: str) -> pa.Table:
    rows = [
        {
            "exam": item.exam,
            "id": item.id,
            "answer": item.answer,
            "chosen": found.chosen,
            "correct": found.chosen == item.answer,
            "log_probs": list(found.log_probs),
            "chosen_norm": found.chosen_norm,
            "cut_tokens": found.cut_tokens,
            "protocol": protocol,
        }
        for item, found in zip(items, scored, strict=True)
    ]
    return pa.Table.from_pylist(rows, EXAM_SCORES_SCHEMA)


def best(item_id: str, scores: Sequence[float]) -> int:
    """Index of the highest score; of equal ones, the one that a hash of item and index puts first."""
    return max(range(len(scores)), key=lambda index: (scores[index], seed_of(item_id, index)))
