"""Training loops under torchrun that medschool's is measured against, on the same rows in the same order. Each yields its losses.

    deepspeed   medschool's own engine and loop, without Ray, tracking or checkpoints; with --save, DeepSpeed's own checkpoints
    plain       nanoGPT's loop: DDP, torch's AdamW, batches in memory; bf16 is autocast over fp32 weights
    packed      the Trainer of transformers on packed rows
    padded      the same on the same documents, each in a row of its own, filled up to the longest of its micro-batch
    fsdp        torch's fully_shard over every layer, bf16 weights with fp32 masters, batches in memory

`torchrun --standalone --nproc-per-node 2 bench/loops.py ARM STORE '{...}'`; the JSON says dtype, steps, batch_rows, cluster, out.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from small_run import batches_of, setting

IGNORED = -100


def deepspeed(course: Any, rows: Any, rank: int, world_size: int, save: Path | None) -> Iterator[float]:
    from medschool.train.engine import build_engine
    from medschool.train.loop import train

    engine = build_engine(course, world_size)
    done = 0
    if save is not None and (save / "latest").exists():
        _, state = engine.load_checkpoint(str(save))
        done = int(state["step"])
    batches = batches_of(course, rows, rank, world_size)[done:]
    for step in train(engine, batches, course.order, done, done):
        yield step.loss
        if save is not None and step.step % course.recipe.cluster.checkpoint_every_steps == 0:
            engine.save_checkpoint(str(save), tag=f"{step.step}", client_state={"step": step.step})


def plain(course: Any, rows: Any, rank: int, world_size: int, save: Path | None) -> Iterator[float]:
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from medschool.train.model import load_model, model_copy

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    model = load_model(model_copy(course.model), "fp32").to(device).train()
    whole = DistributedDataParallel(model)
    cast = torch.autocast(device.type, torch.bfloat16) if course.recipe.model.dtype == "bf16" else nullcontext()

    def last(is_last: bool) -> None:
        whole.require_backward_grad_sync = is_last

    yield from _steps(whole, device, last, cast, course, rows, rank, world_size)


def fsdp(course: Any, rows: Any, rank: int, world_size: int, save: Path | None) -> Iterator[float]:
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    from medschool.train.model import load_model, model_copy

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    model = load_model(model_copy(course.model), "fp32").to(device).train()
    if course.recipe.cluster.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    half = course.recipe.model.dtype == "bf16"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if half else MixedPrecisionPolicy()
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    yield from _steps(model, device, model.set_requires_gradient_sync, nullcontext(), course, rows, rank, world_size)


def _steps(
    model: Any,
    device: Any,
    last: Callable[[bool], None],
    cast: Any,
    course: Any,
    rows: Any,
    rank: int,
    world_size: int,
) -> Iterator[float]:
    """Updates with torch's AdamW; `last` is told whether a micro-batch is the last of its update."""
    import torch
    import torch.distributed as dist

    from medschool.tokens.shards import tokens_of, trained_of
    from medschool.train.model import model_inputs, summed_loss, targets_of, to_device
    from medschool.train.schedule import lr_factor
    from medschool.train.zero import micro_batch_rows

    spec, micro = course.spec.optimizer, micro_batch_rows(course.recipe, "pretrain", world_size)
    kernel = {"fused": True} if device.type == "cuda" else {}
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay, **kernel
    )
    for number, table in enumerate(batches_of(course, rows, rank, world_size)):
        tokens, lengths = tokens_of(table), table.column("doc_lengths").to_pylist()
        targets = targets_of(tokens, lengths, trained_of(table), table.column("weight").to_numpy())
        count = (targets != IGNORED).sum().double().to(device)
        dist.all_reduce(count)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for group in optimizer.param_groups:
            group["lr"] = spec.lr * lr_factor(number, course.steps, spec.warmup_fraction, spec.final_lr_fraction)
        for first in range(0, len(tokens), micro):
            part = slice(first, first + micro)
            last(first + micro >= len(tokens))
            with cast:
                loss = summed_loss(model, to_device(model_inputs(tokens[part], lengths[part]), device), targets[part].to(device))
            total += loss.detach().double()
            (loss * (world_size / float(count))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        dist.all_reduce(total)
        yield float(total / count)


def packed(course: Any, rows: Any, rank: int, world_size: int, save: Path | None) -> Iterator[float]:
    return _trainer(course, rows, world_size, _packed_rows)


def padded(course: Any, rows: Any, rank: int, world_size: int, save: Path | None) -> Iterator[float]:
    return _trainer(course, rows, world_size, _padded_rows)


def _packed_rows(tokens: Any, lengths: list[list[int]], labels: Any) -> dict[str, Any]:
    from medschool.train.model import model_inputs

    return {**model_inputs(tokens, lengths), "labels": labels}


def _padded_rows(tokens: Any, lengths: list[list[int]], labels: Any) -> dict[str, Any]:
    import numpy as np
    import torch

    longest = max(map(max, lengths))
    filled: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for row, pieces in enumerate(lengths):
        for start, length in zip(np.cumsum([0, *pieces[:-1]]), pieces, strict=True):
            fill = (0, longest - length)
            filled["input_ids"].append(np.pad(tokens[row, start : start + length].astype(np.int64), fill))
            filled["attention_mask"].append(np.pad(np.ones(length, np.int64), fill))
            filled["labels"].append(np.pad(labels[row, start : start + length].numpy(), fill, constant_values=IGNORED))
    return {name: torch.from_numpy(np.stack(values)) for name, values in filled.items()}


def _trainer(course: Any, rows: Any, world_size: int, form: Callable[..., dict[str, Any]]) -> Iterator[float]:
    """The Trainer of transformers; an item of its data set is a whole micro-batch, so that its steps are ours."""
    import torch
    from transformers import Trainer, TrainingArguments

    from medschool.tokens.shards import tokens_of, trained_of
    from medschool.train.model import targets_of
    from medschool.train.zero import micro_batch_rows

    micro = micro_batch_rows(course.recipe, "pretrain", world_size)
    items: list[dict[str, Any]] = []
    tables = [batches_of(course, rows, rank, world_size) for rank in range(world_size)]
    for batch in range(course.steps):
        for first in range(0, tables[0][batch].num_rows, micro):
            for part in (of_rank[batch].slice(first, micro) for of_rank in tables):
                tokens, lengths = tokens_of(part), part.column("doc_lengths").to_pylist()
                targets = targets_of(tokens, lengths, trained_of(part), part.column("weight").to_numpy())
                labels = torch.full_like(targets, IGNORED)
                labels[:, 1:] = targets[:, :-1]
                items.append(form(tokens, lengths, labels))
    train_in_order(Trainer, TrainingArguments, course, items, world_size, lambda batch: batch[0])
    return iter(())


def train_in_order(
    kind: Any, arguments: Callable[..., Any], course: Any, items: Any, world_size: int, collate: Callable[..., Any], **more: Any
) -> None:
    """One pass over `items`, each a whole micro-batch, in their order, with our optimizer and schedule; told step by step."""
    import torch
    from transformers import TrainerCallback

    from medschool.train.model import load_model, model_copy
    from medschool.train.schedule import lr_factor

    spec, model = course.spec.optimizer, load_model(model_copy(course.model), "fp32")
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, course.steps, spec.warmup_fraction, spec.final_lr_fraction)
    )
    losses: list[float] = []

    class Told(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in (logs or {}):
                losses.append(float(logs["loss"]))
                TOLD(len(losses), losses[-1])

    class InOrder(kind):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(items)

    settings = arguments(
        output_dir=str(Path(course.prefix_uri)), max_steps=course.steps, per_device_train_batch_size=1,
        gradient_accumulation_steps=len(items) // course.steps // world_size, max_grad_norm=spec.clip_norm,
        use_cpu=not torch.cuda.is_available(), bf16=course.recipe.model.dtype == "bf16", report_to=[], save_strategy="no",
        logging_steps=1, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    InOrder(
        model, settings, data_collator=collate, train_dataset=items, callbacks=[Told()], optimizers=(optimizer, schedule), **more
    ).train()


def TOLD(step: int, loss: float) -> None:
    """One line a step on rank 0: step, loss, when."""
    if os.environ["RANK"] == "0":
        print(json.dumps({"step": step, "loss": loss, "time_s": time.time()}), flush=True)


def main(arms: Mapping[str, Callable[..., Iterator[float]]]) -> None:
    import torch
    import torch.distributed as dist

    arm, store, spec = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    course, rows = setting(store, spec["name"], spec["dtype"], spec["steps"], spec["batch_rows"], spec["cluster"])
    if spec.get("pids"):
        Path(spec["pids"], str(rank)).write_text(str(os.getpid()))
    save = Path(spec["save"]) if spec.get("save") else None
    for step, loss in enumerate(arms[arm](course, rows, rank, world_size, save), 1):
        TOLD(step, loss)
    if rank == 0 and on_gpu:
        print(json.dumps({"peak_bytes": torch.cuda.max_memory_allocated()}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__" and "RANK" in os.environ:
    main(globals())
