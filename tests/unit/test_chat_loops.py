"""What the bench of tuning gives to other trainers: the conversations of the packed rows, each once, and nothing else trained."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medschool.tokens.pack import Rows, pack_whole
from medschool.tokens.shards import rows_table

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))  # benches find each other by name, as when they are run
import chat_loops


@pytest.fixture(scope="module")
def packed() -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], Rows]:
    draw, chats = np.random.default_rng(0), {}
    for number in range(24):
        length = int(draw.integers(2, 30))
        chats[f"c{number}"] = (draw.integers(1, 60000, length).astype(np.uint16), np.arange(length) >= draw.integers(1, length))
    return chats, pack_whole(list(chats), list(chats.values()), 32, 0, np.dtype(np.uint16))


def test_every_conversation_comes_out_of_its_row_once_with_the_answer_as_labels(packed: Any) -> None:
    chats, rows = packed
    found = list(chat_loops._chats(rows_table(rows, np.dtype(np.uint16))))
    wanted = [(ids.tolist(), np.where(trained, ids.astype(int), -100).tolist()) for ids, trained in chats.values()]
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize("ordered", [False, True])
def test_micro_batches_hold_the_conversations_of_their_step_filled_up_to_the_longest(packed: Any, ordered: bool) -> None:
    chats = list(chat_loops._chats(rows_table(packed[1], np.dtype(np.uint16))))
    parts = chat_loops._parts(chats, 6, ordered, 1)
    assert len(parts) == 6 and sorted(chat for part in parts for chat in part) == sorted(chats)
    for part in parts:
        batch = chat_loops.filled(part)
        assert batch["input_ids"].shape == (len(part), max(len(ids) for ids, _ in part))
        for row, (ids, labels) in enumerate(part):
            assert batch["attention_mask"][row].tolist() == [1] * len(ids) + [0] * (batch["input_ids"].shape[1] - len(ids))
            assert batch["input_ids"][row, : len(ids)].tolist() == ids
            assert batch["labels"][row].tolist() == labels + [-100] * (batch["input_ids"].shape[1] - len(ids))
    sizes = [chat_loops.filled(part)["input_ids"].numel() for part in parts]
    assert sum(sizes) < 1.25 * sum(len(ids) for ids, _ in chats) or not ordered
