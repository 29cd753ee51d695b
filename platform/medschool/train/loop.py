"""The steps of training: rows in, one optimizer update a global batch, a measurement a step.

The loop knows neither Ray nor the store. It is given an engine and an iterator of batches, yields what each step measured, and
checks that every row it is fed is the row that the order puts there.

The loss of a step is the mean over all targets of the global batch. Each rank sums its own, DeepSpeed averages gradients over
ranks and accumulation steps, so a rank scales its sum by (ranks * accumulation steps / targets of the whole batch); equal weight
for each token, however documents and padding fall.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.distributed as dist

from medschool.errors import StageError
from medschool.tokens.order import Order
from medschool.tokens.shards import tokens_of, trained_of
from medschool.tokens.stream import rank_slice
from medschool.train.model import IGNORED, model_inputs, summed_loss, targets_of


@dataclass(frozen=True)
class Step:
    """What one optimizer step measured."""

    step: int
    """Optimizer steps done, this one included."""
    batch: int
    """Index of the global batch that was trained on."""
    loss: float
    """Mean cross-entropy of the global batch before the update, in nats per target."""
    lr: float
    """Rate of this update."""
    grad_norm: float
    """Norm of the whole gradient before clipping; NaN where DeepSpeed gives none (ZeRO 0)."""
    tokens: int
    """Tokens of the global batch, whole rows."""
    targets: int
    """Of those, tokens that were predicted and trained."""
    rows: dict[str, int]
    """Rows of each source that this rank was fed, without padding."""
    data_wait_s: float
    step_s: float


def train(
    engine: Any,
    batches: Iterable[pa.Table],
    order: Order,
    start_batch: int,
    start_step: int,
    dtype: torch.dtype,
) -> Iterator[Step]:
    """Train on every batch; yields after each update. Raises StageError when a row is not the expected one.

    The time that whoever asks spends between two steps is nobody's: the next step's waiting begins when it is asked for.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    step, waiting_since = start_step, time.perf_counter()
    for batch, table in enumerate(batches, start_batch):
        began = time.perf_counter()
        _check_rows(table, order, batch, rank, world_size)
        lr = float(engine.get_lr()[0])
        loss, targets = _update(engine, table, dtype, world_size)
        step += 1
        norm = engine.get_global_grad_norm()
        yield Step(
            step=step,
            batch=batch,
            loss=loss,
            lr=lr,
            grad_norm=float("nan") if norm is None else float(norm),
            tokens=order.batch_rows * tokens_of(table).shape[1],
            targets=targets,
            rows=rows_fed(table),
            data_wait_s=began - waiting_since,
            step_s=time.perf_counter() - began,
        )
        waiting_since = time.perf_counter()


def _update(engine: Any, table: pa.Table, dtype: torch.dtype, world_size: int) -> tuple[float, int]:
    """One optimizer step; the mean loss and the number of targets of the global batch."""
    tokens, lengths = tokens_of(table), table.column("doc_lengths").to_pylist()
    targets = targets_of(tokens, lengths, trained_of(table), table.column("weight").to_numpy())
    totals = torch.tensor([float((targets != IGNORED).sum()), 0.0], dtype=torch.float64, device=engine.device)
    dist.all_reduce(totals[:1])
    micro, accumulation = engine.train_micro_batch_size_per_gpu(), engine.gradient_accumulation_steps()
    for first in range(0, len(tokens), micro):
        rows = slice(first, first + micro)
        inputs = {name: tensor.to(engine.device) for name, tensor in model_inputs(tokens[rows], lengths[rows], dtype).items()}
        loss = summed_loss(engine, inputs, targets[rows].to(engine.device))
        totals[1] += loss.detach().double()
        engine.backward(loss * (world_size * accumulation / float(totals[0])))
        engine.step()
    dist.all_reduce(totals[1:])
    return float(totals[1] / totals[0]), int(totals[0])


def rows_fed(table: pa.Table) -> dict[str, int]:
    """Rows of each source in a rank's slice of a batch."""
    real = table.column("source").filter(pc.greater(table.column("weight"), 0))
    return {count["values"]: count["counts"] for count in pc.value_counts(real).to_pylist()}


def _check_rows(table: pa.Table, order: Order, batch: int, rank: int, world_size: int) -> None:
    """Compare the global indices that arrived with the ones the order gives this rank."""
    found = table.column("global_index").to_numpy()
    expected = np.array([ref.global_index for ref in rank_slice(order, batch, rank, world_size)])
    if not np.array_equal(found[found >= 0], expected):
        raise StageError(
            f"rank {rank} of {world_size} received rows {found.tolist()} for batch {batch}, the order gives {expected.tolist()}",
            "this is a fault of the data feed, not of your data: please report it with the job's log",
            f"batch {batch}",
        )
