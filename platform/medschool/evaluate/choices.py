"""Log-probabilities of several endings of one prompt, in one forward pass.

A row is the prompt and behind it all endings, each without its last token, which predicts nothing. A tree mask lets every ending
see the prompt and itself, and its positions start where the prompt ends, so each ending is scored as if it alone stood behind the
prompt, and the prompt is read once. The endings aa, bbb and c:

    tokens     p p p p | a | b b         the last p predicts the first a, the first b and the c
    positions  0 1 2 3 | 4 | 4 5

Where all endings are one token long, as the letters of an exam are, a row is the prompt alone. What prompts begin with in common
is read once for all of them (medschool.evaluate.prefix), and their rows are what comes after it.

Rows of similar length go through the model together, padded on the left: endings stand at the end of every row, and logits are
taken for those last positions only. Padding sees padding alone and nothing else sees it. The mask is additive and
four-dimensional, which is right in `eager` and in `sdpa` (medschool.train.model says why).

Price: one forward pass over prompt + endings, instead of one over prompt + ending for each ending; for letters, over the prompt.
Of shared beginnings one pass for all rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from medschool.errors import InputError
from medschool.evaluate.perplexity import BATCH_TOKENS
from medschool.evaluate.prefix import CACHE_TOKENS, Kept, alike, for_rows, read

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
    for group in alike([choice.prompt for choice in choices]):
        shared = choices[group.members[0]].prompt[: group.tokens]
        rests = [Choice(choices[place].prompt[group.tokens :], choices[place].endings) for place in group.members]
        for place, found in zip(group.members, _after(model, shared, rests), strict=True):
            scores[place] = found
    return scores


def _after(model: Any, shared: Sequence[int], rests: Sequence[Choice]) -> list[list[float]]:
    """Scores of choices whose prompts all stand behind the tokens `shared`; in batches of similar length."""
    kept = read(model, shared) if shared else []
    scores: list[list[float]] = [[] for _ in rests]
    by_length = sorted(range(len(rests)), key=lambda index: -len(rests[index]))
    while by_length:
        longest = len(rests[by_length[0]])
        take = max(1, min(BATCH_TOKENS // longest, CACHE_TOKENS // (len(shared) + longest)))
        group, by_length = by_length[:take], by_length[take:]
        for index, found in zip(
            group, _group_log_probs(model, [rests[index] for index in group], kept, len(shared)), strict=True
        ):
            scores[index] = found
    return scores


def _check(choice: Choice, context: int) -> None:
    if not choice.prompt or not all(choice.endings):
        raise InputError("a choice has an empty prompt or an empty ending", "give each at least one token")
    if choice.longest > context:
        raise InputError(f"a choice has {choice.longest} tokens, the model's context is {context}", "leave out the longest items")


def _group_log_probs(model: Any, choices: list[Choice], before: Kept, tokens: int) -> list[list[float]]:
    """One forward pass, behind what was read `before`, which are so many `tokens`.

    K positions a row have logits: the last one of the prompt and all of the longest set of read endings.
    """
    inputs = tree_inputs(choices, model.dtype, tokens)
    kept = 1 + max(len(choice) - len(choice.prompt) for choice in choices)
    with torch.inference_mode():
        moved = {name: value.to(model.device) for name, value in inputs.items()}
        cache = {"past_key_values": for_rows(before, len(choices)), "use_cache": True} if before else {"use_cache": False}
        logits = model(**moved, **cache, logits_to_keep=kept).logits  # (B, K, V)
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


def tree_inputs(choices: Sequence[Choice], dtype: torch.dtype, before: int = 0) -> dict[str, torch.Tensor]:
    """input_ids (B, L), position_ids (B, L), additive attention_mask (B, 1, L, P + L) of rows padded on the left.

    P is `before`: tokens that stand before every row and that all of it sees, padding too.
    """
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
            positions[row, here] = torch.arange(before + start, before + start + len(tokens))
            parts[row, here] = part
            place += len(tokens)
    own, prompt = parts[:, :, None] == parts[:, None, :], parts[:, None, :] == 0
    seen = torch.nn.functional.pad((own | prompt).tril(), (before, 0), value=True)
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return {"input_ids": ids, "position_ids": positions, "attention_mask": mask[:, None]}
