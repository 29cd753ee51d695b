"""Tuning loops under torchrun that medschool's packed tuning is measured against: one conversation a row, filled up.

    padded   the Trainer of transformers; the conversations of a step come in random order
    sorted   the same, the conversations of a step put in order of length first, so that hardly anything is filled up
    trl      TRL's SFTTrainer with its own collator, in the order of `padded`

A step of every arm trains on exactly the conversations of the same step of ours, so their losses are equal. Conversations are
cut into micro-batches of about MICRO_CONVERSATIONS, as many as fit into the memory of one of ours if all were as long as a row.

`torchrun --standalone --nproc-per-node 2 bench/chat_loops.py ARM STORE '{...}'`; the JSON is that of loops.py.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import loops
import numpy as np
from small_run import batches_of

IGNORED = -100
MICRO_CONVERSATIONS = 4

Chat = tuple[list[int], list[int]]
"""Token ids and labels of one conversation."""


def micro_batches(course: Any, rows: Any, world_size: int, ordered: bool) -> list[list[list[Chat]]]:
    """For each step its micro-batches, one rank's after the other's, the same number in every step and on every rank."""
    steps = []
    for batch in zip(*(batches_of(course, rows, rank, world_size) for rank in range(world_size)), strict=True):
        steps.append([chat for table in batch for chat in _chats(table)])
    parts = world_size * round(np.mean([len(step) for step in steps]) / MICRO_CONVERSATIONS / world_size)
    return [_parts(step, max(world_size, parts), ordered, number) for number, step in enumerate(steps)]


def _parts(chats: list[Chat], parts: int, ordered: bool, seed: int) -> list[list[Chat]]:
    order = np.random.default_rng(seed).permutation(len(chats)).tolist()
    if ordered:
        order.sort(key=lambda index: len(chats[index][0]))
    return [[chats[index] for index in part] for part in np.array_split(order, parts)]


def _chats(table: Any) -> Iterator[Chat]:
    from medschool.tokens.pack import PADDING
    from medschool.tokens.shards import tokens_of, trained_of

    tokens, labels = tokens_of(table), np.where(trained_of(table), tokens_of(table).astype(np.int64), IGNORED)
    names, lengths = table.column("doc_ids").to_pylist(), table.column("doc_lengths").to_pylist()
    for row, (ids, sizes) in enumerate(zip(names, lengths, strict=True)):
        ends = np.cumsum(sizes)
        for name, start, end in zip(ids, ends - sizes, ends, strict=True):
            if name != PADDING:
                yield tokens[row, start:end].tolist(), labels[row, start:end].tolist()


def filled(chats: list[Chat]) -> dict[str, Any]:
    """A micro-batch filled up to its longest conversation, with the token 0: input_ids, attention_mask, labels."""
    import torch

    ids, labels = (
        torch.nn.utils.rnn.pad_sequence([torch.tensor(chat[part]) for chat in chats], batch_first=True, padding_value=fill)
        for part, fill in ((0, 0), (1, IGNORED))
    )
    lengths = torch.tensor([len(chat[0]) for chat in chats])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(), "labels": labels}


def hugging_face(ordered: bool, course: Any, rows: Any, rank: int, world_size: int, save: Path | None) -> Iterator[float]:
    from transformers import Trainer, TrainingArguments

    items = [filled(part) for step in micro_batches(course, rows, world_size, ordered) for part in step]
    loops.train_in_order(Trainer, TrainingArguments, course, items, world_size, lambda batch: batch[0])
    return iter(())


def trl(course: Any, rows: Any, rank: int, world_size: int, save: Path | None) -> Iterator[float]:
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collate = DataCollatorForLanguageModeling(pad_token_id=0)
    parts = [part for step in micro_batches(course, rows, world_size, ordered=False) for part in step]
    items = Dataset.from_list(
        [{"input_ids": [ids for ids, _ in part], "labels": [labels for _, labels in part]} for part in parts]
    )

    def collated(batch: list[dict[str, Any]]) -> Any:
        (part,) = batch
        return collate(
            [{"input_ids": ids, "labels": labels} for ids, labels in zip(part["input_ids"], part["labels"], strict=True)]
        )

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    options = {"dataset_kwargs": {"skip_prepare_dataset": True}, "gradient_checkpointing": False, "max_length": None}
    loops.train_in_order(
        SFTTrainer, partial(SFTConfig, **options), course, items, world_size, collated, processing_class=tokenizer
    )
    return iter(())


ARMS = {"padded": partial(hugging_face, False), "sorted": partial(hugging_face, True), "trl": trl}

if __name__ == "__main__" and "RANK" in os.environ:
    loops.main(ARMS)
