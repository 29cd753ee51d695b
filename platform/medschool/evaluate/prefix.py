"""Prompts that begin alike: what they share goes through the model once.

    five worked questions | question 1        keys and values of what is shared --read--> kept for a group of rows
    five worked questions | question 2        the rest of each row              --------> sees them as if it stood behind them
    five worked questions | question 3

With five worked questions most of every prompt is the same. Positions go on where the shared part ends, so a row is scored as if
it had been read whole; sums are taken in another order, which in fp32 moves a log-probability by some 1e-6.

Price: keys and values of the shared part, once for itself and once for each row of a batch (CACHE_TOKENS bounds them). What it
does not see: prompts that share a beginning only with some of those that share their first LEAST_SHARED tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

LEAST_SHARED = 32
"""Tokens that prompts must share before it is worth a pass of its own."""
CACHE_TOKENS = 8192
"""Tokens whose keys and values are held for a batch, the shared ones of each row included: 4 GB for 7B in bf16."""

Kept = list[tuple[torch.Tensor, torch.Tensor]]
"""For each layer the keys and the values of a shared part, (1, heads, tokens, size) both."""


@dataclass(frozen=True)
class Alike:
    """Prompts that begin with the same tokens."""

    tokens: int
    """How many they share; 0 where it is not worth a pass. Every prompt has one more at least."""
    members: tuple[int, ...]
    """Their places in the list that was given."""


def alike(prompts: Sequence[tuple[int, ...]]) -> list[Alike]:
    """The prompts in groups, each in exactly one: by their first LEAST_SHARED tokens, and all that share nothing together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault(prompt[:LEAST_SHARED] if len(prompt) > LEAST_SHARED else (), []).append(place)
    found, alone = [], groups.pop((), [])
    for members in groups.values():
        if len(members) == 1:
            alone += members
        else:
            found.append(Alike(_shared([prompts[place] for place in members]), tuple(members)))
    return [*found, *([Alike(0, tuple(alone))] if alone else [])]


def _shared(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all begin with, so that each has one more: what the first and the last in alphabetical order share."""
    first, last = min(prompts), max(prompts)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    return min(same, min(map(len, prompts)) - 1)


def read(model: Any, tokens: Sequence[int]) -> Kept:
    """Keys and values of the shared tokens, at positions from 0 on."""
    from transformers import DynamicCache

    cache = DynamicCache()  # without a configuration it keeps every position, also of a model with a sliding window
    ids = torch.tensor([tokens], dtype=torch.int64, device=model.device)
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return [(layer.keys, layer.values) for layer in cache.layers]


def for_rows(kept: Kept, rows: int) -> Any:
    """A cache of its own for a batch of so many rows."""
    from transformers import DynamicCache

    return DynamicCache([(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in kept])
