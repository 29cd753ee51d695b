"""The exam protocol `lm_eval`: option log-likelihood exactly as lm-evaluation-harness 0.4.13 scores the same task.

    worked questions, question up to "Answer:"  ->  log P(" A"), log P(" B"), ...  ->  the highest, and the highest a character

What the harness's model `hf` does (lm_eval/api/model.py `_encode_pair`, lm_eval/models/huggingface.py `_loglikelihood_tokens`),
and is done here:

- The text goes to the tokenizer with the special tokens that it adds by itself, such as a BOS, unless the text begins with one.
- Spaces at the end of the context belong to the ending. The ending's tokens are those of context + ending behind as many as the
  context alone has; what is scored is the context's own tokens and then these.
- Context and ending that are longer than the model's context and one token are cut from the left.
- `acc` takes the highest sum of log-probabilities, `acc_norm` the highest sum divided by the characters of the ending without
  its space; the first of equal ones.

What is not the same: the prompt is encoded and read once for all endings (medschool.evaluate.choices), and of each cut item it is
said how much was cut. Compared with the harness itself, item by item, by bench/lm_eval_equal.py.

It asks a model without its chat template, so a tuned model may do worse here than under `letters`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medschool.errors import InputError
from medschool.evaluate.choices import Choice, choice_log_probs
from medschool.exams.harness import context, endings, shots_of
from medschool.rows import ExamItem

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Asked:
    """One item as token ids."""

    item: ExamItem
    choices: tuple[Choice, ...]
    """One of all endings where their contexts are the same, else one of each ending."""
    cut_tokens: int
    """Tokens that the left of the context lost to fit, at most over the endings."""


@dataclass(frozen=True)
class Scored:
    """One item under this protocol."""

    log_probs: tuple[float, ...]
    """Of each ending, in nats."""
    cut_tokens: int
    """Tokens that the left of the context lost to fit, at most over the endings."""
    chosen: int
    """`acc`: the highest log-probability."""
    chosen_norm: int
    """`acc_norm`: the highest log-probability a character."""


def harness_encoder(folder: Path) -> Encode:
    """Text to token ids as lm-evaluation-harness's `tok_encode`, by the tokenizer of a checkpoint folder."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    first_id = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    first = tokenizer.decode(first_id)

    def encode(text: str) -> list[int]:
        told = {"add_special_tokens": False} if text.startswith(first) else {}
        return [int(token) for token in tokenizer.encode(text, **told)]

    return encode


def score_items(
    model: Any, encode: Encode, items: Sequence[ExamItem], shots: Sequence[ExamItem] = (), shot_count: int = 0
) -> list[Scored]:
    """One score an item, in the order of `items`; shots: worked questions, of which each has the first `shot_count` of its own.

    Raises InputError with the id of an item that has no layout of the harness, or whose endings the tokenizer cannot tell apart.
    """
    rows = [asked(item, encode, shots_of(item, shots, shot_count), int(model.config.max_position_embeddings)) for item in items]
    scores = choice_log_probs(model, [choice for row in rows for choice in row.choices])
    found, at = [], 0
    for row in rows:
        found.append(scored(row, [score for part in scores[at : at + len(row.choices)] for score in part]))
        at += len(row.choices)
    return found


def asked(item: ExamItem, encode: Encode, shots: Sequence[ExamItem], most: int) -> Asked:
    """An item behind its worked questions, cut so that at most `most` tokens stand before the last. Raises InputError."""
    pairs = _pairs(item, encode, shots)
    cut = max(max(0, len(before) + len(ending) - (most + 1)) for before, ending in pairs)
    return Asked(item, tuple(_choices(pairs, most)), cut)


def scored(row: Asked, log_probs: Sequence[float]) -> Scored:
    """What the log-probabilities of its endings, in nats, say of an item."""
    by_character = [score / len(ending) for score, ending in zip(log_probs, endings(row.item), strict=True)]
    return Scored(tuple(log_probs), row.cut_tokens, _first_best(log_probs), _first_best(by_character))


def encode_pairs(encode: Encode, before: str, endings: Sequence[str]) -> list[tuple[list[int], list[int]]]:
    """Token ids of the context and of each ending, as lm-evaluation-harness's `_encode_pair`. `before` is not empty.

    The context, which worked questions make long, is encoded once and not for each ending.
    """
    first = encode(before.rstrip())
    return [(first, encode(before + ending)[len(first) :]) for ending in endings]


def _pairs(item: ExamItem, encode: Encode, shots: Sequence[ExamItem]) -> list[tuple[list[int], list[int]]]:
    where = f"{item.exam} {item.id}"
    if not item.asked:
        raise InputError("the item has no layout of lm-evaluation-harness", "set protocol: letters for this exam", where)
    pairs = encode_pairs(encode, context(item, shots), [f" {ending}" for ending in endings(item)])
    if not all(ending for _, ending in pairs) or len({(*before, -1, *ending) for before, ending in pairs}) < len(pairs):
        problem = f"the tokenizer cannot tell {len(pairs)} endings apart"
        raise InputError(problem, "use the tokenizer that belongs to the model", where)
    return pairs


def _choices(pairs: Sequence[tuple[list[int], list[int]]], most: int) -> list[Choice]:
    """One choice of all endings where their contexts are the same after the cut, else one of each ending alone."""
    rows = [(tuple((before + ending)[-(most + 1) : -len(ending)]), tuple(ending)) for before, ending in pairs]
    prompts = {prompt for prompt, _ in rows}
    if len(prompts) == 1:
        return [Choice(prompts.pop(), tuple(ending for _, ending in rows))]
    return [Choice(prompt, (ending,)) for prompt, ending in rows]


def _first_best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda index: scores[index])
