"""Log-probabilities of several endings of one prompt, in one forward pass.

A row is the prompt and behind it all endings, each without its last token, which predicts nothing. A tree mask lets every ending
see the prompt and itself, and its positions start where the prompt ends, so each ending is scored as if it alone stood behind the
prompt, and the prompt is read once. The endings aa, bbb and c:

    tokens     p p p p | a | b b         the last p predicts the first a, the first b and the c
    positions  0 1 2 3 | 4 | 4 5

Where all endings are one token long, as the letters of an exam are, a row is the prompt alone.

Rows of similar length go through the model together, padded on the left: endings stand at the end of every row, and logits are
taken for those last positions only. Padding sees padding alone and nothing else sees it. The mask is additive and
four-dimensional, which is right in `eager` and in `sdpa` (medschool.train.model says why).

Price: one forward pass over prompt + endings, instead of one over prompt + ending for each ending; for letters, over the prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from medschool.errors import InputError
from medschool.evaluate.perplexity import BATCH_TOKENS

PADDING = -1


@dataclass(frozen=True)
class Choice:
    """A prompt and its endings, as token ids; the prompt and every ending have at least one."""

    prompt: tuple[int, ...]
    endings: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        """Tokens of the row: of the prompt, and of all endings but their last ones."""
        return len(self.prompt) + sum(map(len, self.read))

    @property
    def read(self) -> tuple[tuple[int, ...], ...]:
        """What is read of each ending: all but its last token."""
        return tuple(ending[:-1] for ending in self.endings)

    @property
    def longest(self) -> int:
        """Tokens of the prompt and one ending, without its last token, at most: what must fit into the model's context."""
        return len(self.prompt) + max(map(len, self.read), default=0)


def tokenized(encode: Callable[[str], Sequence[int]], prompt: str, endings: Sequence[str]) -> Choice:
    """The choice between `endings` that follow the text `prompt` directly.

    Prompt and ending are encoded as one string, because a tokenizer may merge across their border.

    Raises InputError when an ending has no token of its own, or two endings have the same tokens.
    """
    return forked(encode(prompt), [encode(prompt + ending) for ending in endings])


def forked(prompt: Sequence[int], whole: Sequence[Sequence[int]]) -> Choice:
    """The choice between rows of token ids that begin alike: what they share, and no more than `prompt` has, is the prompt.

    Raises InputError when a row ends there, or two rows are the same.
    """
    shared = _shared([prompt, *whole])
    rests = tuple(tuple(ids[shared:]) for ids in whole)
    if not all(rests) or len(set(rests)) < len(rests):
        raise InputError(f"the tokenizer cannot tell {len(rests)} endings apart", "use the tokenizer that belongs to the model")
    return Choice(tuple(prompt[:shared]), rests)


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """Length of what all rows begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


def choice_log_probs(model: Any, choices: Sequence[Choice]) -> list[list[float]]:
    """For each choice, the sum of the log-probabilities of each ending's tokens, in nats, from logits in fp32.

    Raises InputError for an empty prompt or ending, and for one that is longer than the model's context.
    """
    for choice in choices:
        _check(choice, model.config.max_position_embeddings)
    scores: list[list[float]] = [[] for _ in choices]
    by_length = sorted(range(len(choices)), key=lambda index: -len(choices[index]))
    while by_length:
        take = max(1, BATCH_TOKENS // len(choices[by_length[0]]))
        group, by_length = by_length[:take], by_length[take:]
        for index, found in zip(group, _group_log_probs(model, [choices[index] for index in group]), strict=True):
            scores[index] = found
    return scores


def _check(choice: Choice, context: int) -> None:
    if not choice.prompt or not all(choice.endings):
        raise InputError("a choice has an empty prompt or an empty ending", "give each at least one token")
    if choice.longest > context:
        raise InputError(f"a choice has {choice.longest} tokens, the model's context is {context}", "leave out the longest items")


def _group_log_probs(model: Any, choices: list[Choice]) -> list[list[float]]:
    """One forward pass; K positions a row have logits: the last one of the prompt and all of the longest set of read endings."""
    inputs = tree_inputs(choices, model.dtype)
    kept = 1 + max(len(choice) - len(choice.prompt) for choice in choices)
    with torch.inference_mode():
        moved = {name: value.to(model.device) for name, value in inputs.items()}
        logits = model(**moved, use_cache=False, logits_to_keep=kept).logits  # (B, K, V)
        return [_row_scores(logits[row], choice) for row, choice in enumerate(choices)]


def _row_scores(logits: torch.Tensor, choice: Choice) -> list[float]:
    """Score of each ending from the logits (K, V) of a row's last K positions."""
    first = len(logits) - (len(choice) - len(choice.prompt))  # the place of the first read ending
    sources: list[int] = []  # which position predicts...
    targets: list[int] = []  # ...and which token it should predict
    place = first
    for ending in choice.endings:
        sources += [first - 1, *range(place, place + len(ending) - 1)]
        targets += ending
        place += len(ending) - 1
    found = logits[sources].float().log_softmax(dim=-1)[range(len(targets)), targets].double()
    return [float(part.sum()) for part in found.split([len(ending) for ending in choice.endings])]


def tree_inputs(choices: Sequence[Choice], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """input_ids (B, L), position_ids (B, L), additive attention_mask (B, 1, L, L) of rows padded on the left."""
    longest = max(map(len, choices))
    ids = torch.zeros((len(choices), longest), dtype=torch.int64)
    positions = torch.zeros_like(ids)
    parts = torch.full_like(ids, PADDING)  # 0 is the prompt, 1 the first ending...
    for row, choice in enumerate(choices):
        place = longest - len(choice)
        for part, tokens in enumerate((choice.prompt, *choice.read)):
            here = slice(place, place + len(tokens))
            start = len(choice.prompt) if part else 0
            ids[row, here] = torch.tensor(tokens, dtype=torch.int64)
            positions[row, here] = torch.arange(start, start + len(tokens))
            parts[row, here] = part
            place += len(tokens)
    own, prompt = parts[:, :, None] == parts[:, None, :], parts[:, None, :] == 0
    seen = (own | prompt).tril()
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return {"input_ids": ids, "position_ids": positions, "attention_mask": mask[:, None]}
