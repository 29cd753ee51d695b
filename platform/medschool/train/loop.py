"""The steps of training: rows in, one optimizer update a global batch, a measurement a step.

The loop knows neither Ray nor the store. It is given an engine and an iterator of batches, yields what each step measured, and
checks that every row it is fed is the row that the order puts there.

The loss of a step is the mean over all targets of the global batch. Each rank sums its own, DeepSpeed averages gradients over
ranks and accumulation steps, so a rank scales its sum by (ranks * accumulation steps / targets of the whole batch); equal weight
for each token, however documents and padding fall.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.distributed as dist

from medschool.errors import StageError
from medschool.recipe.training import Guard
from medschool.tokens.order import Order
from medschool.tokens.shards import tokens_of, trained_of
from medschool.tokens.stream import rank_slice
from medschool.train.guard import Measured, Skipped, Watch
from medschool.train.model import IGNORED, model_inputs, row_losses, targets_of, to_device
from medschool.train.neftune import draw_noise
from medschool.train.veto import step_unless


@dataclass(frozen=True)
class Step:
    """What one optimizer step measured."""

    step: int
    """Optimizer steps done, this one included."""
    batch: int
    """Index of the global batch that was trained on."""
    loss: float
    """Mean cross-entropy of the global batch before the update, in nats per target."""
    source_losses: dict[str, float]
    """The same for the rows of each source that the batch has targets of."""
    lr: float
    """Rate of this update."""
    grad_norm: float
    """Norm of the whole gradient before clipping."""
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
    stop_step: int | None = None,
    watch: Watch | None = None,
    skip: Callable[[Skipped], None] = lambda skipped: None,
) -> Iterator[Step]:
    """Train until `stop_step` is done, or on every batch; yields after each update.

    A batch whose update `watch` does not allow is skipped: weights and optimizer stay as they are, `skip` is called, and the next
    batch takes the step. Batches that `watch` knows as skipped are not among those fed.
    Raises StageError when a row is not the expected one.

    The time that whoever asks spends between two steps is nobody's: the next step's waiting begins when it is asked for.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    step, watch, waiting_since = start_step, watch or Watch(Guard()), time.perf_counter()
    numbers = itertools.filterfalse(watch.skipped.__contains__, itertools.count(start_batch))
    for batch, table in zip(numbers, batches, strict=False):
        began = time.perf_counter()
        _check_rows(table, order, batch, rank, world_size)
        lr = float(engine.get_lr()[0])
        watch = watch.before(batch, order.weights_from)
        losses, targets, measured = _update(engine, table, order.sources, world_size, watch)
        verdict = watch.judge(measured)
        if engine.was_step_applied() != verdict.applied:
            raise AssertionError(f"batch {batch}: {verdict}, but DeepSpeed's own answer is {engine.was_step_applied()}")
        watch = watch.after(batch, measured, verdict)
        if not verdict.applied:
            skip(Skipped(batch, step + 1, measured, verdict, watch))
            waiting_since = time.perf_counter()
            continue
        step += 1
        yield Step(
            step=step,
            batch=batch,
            loss=measured.loss,
            source_losses=means(order.sources, losses, targets),
            lr=lr,
            grad_norm=measured.grad_norm,
            tokens=order.batch_rows * tokens_of(table).shape[1],
            targets=int(targets.sum()),
            rows=rows_fed(table),
            data_wait_s=began - waiting_since,
            step_s=time.perf_counter() - began,
        )
        if step == stop_step:
            return
        waiting_since = time.perf_counter()


def _update(
    engine: Any, table: pa.Table, sources: Sequence[str], world_size: int, watch: Watch
) -> tuple[torch.Tensor, torch.Tensor, Measured]:
    """One optimizer step, where `watch` allows it; what it was judged by, and of each source in the global batch the summed loss
    and the number of targets, (S,) float64 each.

    The split by source costs no pass and no message more: both sums go round as S numbers instead of one.
    """
    tokens, lengths = tokens_of(table), table.column("doc_lengths").to_pylist()
    targets = targets_of(tokens, lengths, trained_of(table), table.column("weight").to_numpy())
    places = source_places(table.column("source").to_pylist(), sources).to(engine.device)
    counts = summed(places, (targets != IGNORED).sum(dim=1).to(engine.device))
    dist.all_reduce(counts)
    losses, numbers = torch.zeros_like(counts), table.column("global_index").to_pylist()
    micro, accumulation = engine.train_micro_batch_size_per_gpu(), engine.gradient_accumulation_steps()
    attention, scale = engine.module.config._attn_implementation, world_size * accumulation / float(counts.sum())
    for first in range(0, len(tokens), micro):
        rows = slice(first, first + micro)
        inputs = to_device(model_inputs(tokens[rows], lengths[rows], attention), engine.device)
        draw_noise(engine.module, numbers[rows], lengths[rows], engine.device)
        of_rows = row_losses(engine, inputs, targets[rows].to(engine.device))
        losses += summed(places[:, rows], of_rows.detach())
        engine.backward(of_rows.sum() * scale)
        if first + micro < len(tokens):
            engine.step()
    dist.all_reduce(losses)
    measured = step_unless(engine, losses.sum() / counts.sum(), lambda found: not watch.judge(found).applied)
    return losses, counts, measured


def source_places(row_sources: Sequence[str], sources: Sequence[str]) -> torch.Tensor:
    """(S, B) bool: whether a row is of a source. A row that fills up a slice is of none."""
    return torch.tensor([[row == name for row in row_sources] for name in sources])


def summed(places: torch.Tensor, of_rows: torch.Tensor) -> torch.Tensor:
    """(S,) float64 sums by source of (B,) numbers, always in one order; a row that is no number spoils its own source alone."""
    return torch.where(places, of_rows.double(), 0.0).sum(dim=1)


def means(sources: Sequence[str], losses: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Mean loss of each source that has targets, from sums and counts, (S,) each."""
    pairs = zip(sources, losses.tolist(), targets.tolist(), strict=True)
    return {name: loss / count for name, loss, count in pairs if count}


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
