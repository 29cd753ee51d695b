"""Batches that would harm a model are left out: in every kind of engine with not one bit of it changed, and in whole runs."""

import dataclasses
import hashlib
import json
import math
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from ray import cloudpickle
from safetensors.torch import load_file

from medschool import storage
from medschool.board import printing
from medschool.cluster.invented import _drawn
from medschool.cluster.slice import tiny_slice
from medschool.errors import StageError
from medschool.ledger import LEDGER, parse_ledger
from medschool.recipe import load
from medschool.recipe.training import Guard
from medschool.tokens.order import Order
from medschool.tokens.pack import Rows
from medschool.tokens.shards import ipc_bytes, rows_table
from medschool.tokens.stream import Feed, feed_of, read_block
from medschool.track import read_journal
from medschool.train import loop, on_ray
from medschool.train.course import Course
from medschool.train.engine import build_engine
from medschool.train.guard import Skipped, Watch
from medschool.train.model import load_model, model_copy, model_inputs, summed_loss, targets_of
from medschool.train.saving import JOURNAL

ROW_TOKENS, ROWS, BATCH_ROWS = 16, 64, 8
WINDOW = 8
GUARD = Guard(window_steps=WINDOW)
NAN = float("nan")
Kind = tuple[int, str, str]
"""An engine: ZeRO stage, dtype, what is offloaded."""


@dataclass
class Faults:
    """Multiplies the loss of chosen batches, and with it their gradient; on one rank only where `rank` is given."""

    of_batch: dict[int, float]
    rank: int | None = None
    _batch: int = -1

    @contextmanager
    def fired(self) -> Iterator[None]:
        """In this process, around the loop of training."""
        check, losses = loop._check_rows, loop.row_losses
        loop._check_rows, loop.row_losses = partial(self._noted, check), partial(self._changed, losses)
        try:
            yield
        finally:
            loop._check_rows, loop.row_losses = check, losses

    def _noted(self, check: Callable[..., None], table: Any, order: Order, batch: int, *given: int) -> None:
        self._batch = batch
        check(table, order, batch, *given)

    def _changed(self, losses: Callable[..., torch.Tensor], *given: Any) -> torch.Tensor:
        here = self.rank is None or self.rank == dist.get_rank()
        return losses(*given) * (self.of_batch.get(self._batch, 1.0) if here else 1.0)


def feed_in(folder: Path) -> Feed:
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, 60, (ROWS, ROW_TOKENS)).astype(np.uint16)
    rows = Rows(tokens, np.ones(tokens.shape, bool), [["x"]] * ROWS, [[ROW_TOKENS]] * ROWS, 0)
    path = folder / "shard.arrow"
    path.write_bytes(ipc_bytes(rows_table(rows, tokens.dtype)))
    return Feed(Order({"x": 1}, BATCH_ROWS, {"x": (ROWS,)}, seed=1), {"x": (str(path),)}, ROW_TOKENS, "uint16")


def engine_of(store: Path, kind: Kind) -> Any:
    """As medschool.train.engine builds it, of a smaller model, with two micro-batches a step."""
    import deepspeed
    from transformers import LlamaConfig, LlamaForCausalLM

    from medschool.train.model import DTYPES
    from medschool.train.zero import deepspeed_config

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    stage, dtype, offload = kind
    settings = [
        f"model.dtype={dtype}",
        f"cluster.zero_stage={stage}",
        f"cluster.offload=[{offload}]",
        f"pretrain.batch_rows={BATCH_ROWS}",
        "cluster.micro_batch_tokens=128",
    ]
    recipe = load(store / "tiny.yaml", settings)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, vocab_size=60,
        max_position_embeddings=64, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(DTYPES[dtype]).train()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2),
        config=deepspeed_config(recipe, "pretrain", dist.get_world_size()),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
        dist_init_required=False,
    )
    assert engine.gradient_accumulation_steps() == 2
    return engine


def digest(engine: Any) -> str:
    """sha256 of every tensor that this rank trains with: weights, their masters, optimizer state; and of the schedule."""
    weights = [getattr(parameter, "ds_tensor", parameter).detach() for parameter in engine.module.parameters()]
    known = hashlib.sha256(repr(engine.lr_scheduler.state_dict()["last_epoch"]).encode())
    for tensor in tensors([weights, engine.optimizer.state_dict()]):
        known.update(tensor.detach().float().numpy().tobytes())
    return known.hexdigest()


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


def trained(store: Path, feed: Feed, kind: Kind, batches: list[int], faults: Faults) -> tuple[Any, ...]:
    """Train on these batches; the digest after each, what was skipped, and the losses of the steps."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    engine = engine_of(store, kind)
    digests, skipped, losses = {}, [], {}

    def skip(found: Skipped) -> None:
        digests[found.batch] = digest(engine)
        skipped.append(found)

    tables = (read_block(feed, batch, rank, world_size) for batch in batches)
    watch = Watch(GUARD, skipped=frozenset(range(max(batches))) - {*batches})
    with faults.fired():
        for step in loop.train(engine, tables, feed.order, 0, 0, None, watch, skip):
            digests[step.batch], losses[step.step] = digest(engine), step.loss
            assert math.isfinite(step.grad_norm)
    engine.destroy()
    return digests, skipped, losses


def check_engines(rank: int, folder: str, store: str, kinds: list[Kind]) -> None:
    """In each of two processes: engines with a batch that is no number on one rank, and one with a spike."""
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    feed, last = feed_in(Path(folder, str(rank))), WINDOW + 4
    nan, spike = 1, WINDOW + 2
    good = [batch for batch in range(last) if batch not in (nan, spike)]
    for kind in kinds:
        where = f"rank {rank}, {kind}"
        clean, none, losses = trained(Path(store), feed, kind, good, Faults({}))
        assert not none and len(set(clean.values())) == len(good), where
        found, skipped, _ = trained(Path(store), feed, kind, [0, 1, 2, 3], Faults({nan: NAN}, rank=1))
        assert [one.verdict.kind for one in skipped] == ["not finite"], where
        assert found[1] == found[0], f"{where}: the skipped batch left a trace"
        assert {batch: found[batch] for batch in (0, 2, 3)} == {batch: clean[batch] for batch in (0, 2, 3)}, where
        batches = [batch for batch in range(last) if batch != nan]
        found, skipped, left = trained(Path(store), feed, kind, batches, Faults({spike: 50.0}))
        assert [(one.batch, one.verdict.kind, one.step) for one in skipped] == [(spike, "spike", spike)], where
        assert found[spike] == found[spike - 1], f"{where}: the spike left a trace"
        assert {batch: found[batch] for batch in good} == clean and left == losses, where
    dist.barrier()
    dist.destroy_process_group()


def in_two_processes(folder: Path, store: Path, kinds: list[Kind]) -> None:
    for rank in range(2):
        (folder / str(rank)).mkdir()
    torch.multiprocessing.spawn(check_engines, (str(folder), str(store), kinds), nprocs=2)


def test_a_skipped_batch_leaves_no_trace(tmp_path: Path, tiny_store: Path) -> None:
    in_two_processes(tmp_path, tiny_store, [(0, "fp32", ""), (1, "fp32", ""), (3, "bf16", "")])


@pytest.mark.long
def test_a_skipped_batch_leaves_no_trace_in_any_engine(tmp_path: Path, tiny_store: Path) -> None:
    plain = [(stage, dtype, "") for stage in (0, 1, 2, 3) for dtype in ("fp32", "bf16")]
    offloaded = [(stage, dtype, "optimizer") for stage in (1, 2, 3) for dtype in ("fp32", "bf16")]
    in_two_processes(tmp_path, tiny_store, [*plain, *offloaded, (3, "bf16", "optimizer,parameters")])


# ---- whole runs ---------------------------------------------------------------------------------------------------------------

STEPS, EVERY = 30, 5
BAD = {7: NAN, 12: NAN, 13: NAN, 14: NAN, 26: 50.0}
"""One batch that is no number, three in a row, and a spike."""
SETTINGS = (
    f"cluster.checkpoint_every_steps={EVERY}",
    "cluster.num_workers=1",
    "cluster.micro_batch_tokens=640",
    "cluster.halve_on_oom=true",
    "cluster.max_failures=1",
    "pretrain.batch_rows=20",
    f"pretrain.guard.window_steps={WINDOW}",
    "pretrain.optimizer.lr=3e-3",
)
MIB = 2**20
MIB_A_ROW, ROWS_THAT_FIT = 128, 7


def slice_of(folder: Path, *settings: str) -> tuple[Course, Any]:
    from tiny import RECIPE

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(RECIPE)
    return tiny_slice(load(folder / "tiny.yaml", [*SETTINGS, *settings]), str(folder), str(folder / "slice"), STEPS)


def with_little_memory(losses: Callable[..., torch.Tensor], *given: Any) -> torch.Tensor:
    """Each row of a micro-batch takes MIB_A_ROW for a moment, in an address space that holds ROWS_THAT_FIT of them."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        room = psutil.Process().memory_info().vms + (2 * ROWS_THAT_FIT + 1) * MIB_A_ROW * MIB // 2
        resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
    taken = torch.empty(len(given[-1]) * MIB_A_ROW * MIB, dtype=torch.uint8)
    del taken
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return losses(*given)


def worker_with(faults: Faults, little_memory: bool) -> Callable[[dict[str, Any]], Any]:
    """What every training worker runs, with faults in its own process."""

    def worker(config: dict[str, Any]) -> Any:
        with faults.fired():
            if little_memory:
                loop.row_losses = partial(with_little_memory, loop.row_losses)
            return on_ray._work(config)

    return worker


def run_with(faults: Faults, course: Course, rows: Any, monkeypatch: pytest.MonkeyPatch, little_memory: bool = False) -> Any:
    """The facts of a run with faults and its lines; the error in place of the facts where it failed."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker cannot import the tests
    lines: list[str] = []
    with monkeypatch.context() as patch, printing(lines.append) as board:
        patch.setattr(on_ray, "_work", worker_with(faults, little_memory))
        try:
            return on_ray.make_checkpoint(course, rows, board), lines
        except StageError as error:
            return error, lines


def trained_alone(course: Course, rows: Any, skipped: frozenset[int]) -> tuple[dict[str, torch.Tensor], dict[int, float]]:
    """Weights and losses of the same course in this process, without Ray, faults or restarts; these batches are not among it."""
    feed, start = feed_of(course.order, rows), Watch(GUARD.model_copy(update={"spike_sigmas": None}), skipped=skipped)
    engine = build_engine(course, 1)
    batches = (read_block(feed, batch, 0, 1) for batch in range(STEPS + len(skipped)) if batch not in skipped)
    losses = {step.step: step.loss for step in loop.train(engine, batches, course.order, 0, 0, STEPS, start)}
    return {name: tensor.detach().clone() for name, tensor in engine.module.state_dict().items()}, losses


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster", "lone_group")
def test_a_run_goes_past_what_would_harm_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for 7 of 10 rows, a batch that is no number, three in a row, and a spike: as if those batches had never been."""
    course, rows = slice_of(tmp_path)
    made, lines = run_with(Faults(BAD), course, rows, monkeypatch, little_memory=True)
    assert not isinstance(made, StageError), made
    monkeypatch.setenv("LOCAL_RANK", "0")
    check_run(course, rows, made, lines)


def check_run(course: Course, rows: Any, made: Any, lines: list[str]) -> None:
    assert (made.facts["steps"], made.facts["skipped_batches"]) == (STEPS, len(BAD))
    told = parse_ledger(storage.read_bytes(storage.join(course.prefix_uri, LEDGER)), "")
    assert told.skipped == tuple(BAD) and told.batches == STEPS + len(BAD)
    for start in ("out of memory: rank 0", "rolling back", "resuming at step 10"):
        assert len([line for line in lines if line.startswith(start)]) == 1, (start, lines)
    assert "asked for 1.25 GiB with a micro-batch of 10 rows" in next(line for line in lines if "out of memory" in line)
    records = {
        int(info.uri[-13:-5]): json.loads(storage.read_bytes(info.uri))
        for info in storage.list_files(f"{course.run_uri}/skipped")
    }
    assert {batch: record["kind"] for batch, record in records.items()} == {
        batch: "spike" if factor == 50.0 else "not finite" for batch, factor in BAD.items()
    }
    for batch, record in records.items():
        assert record["rows"] == [[ref.source, ref.shard, ref.row] for ref in course.order.batch(batch)]

    halved = dataclasses.replace(
        course,
        recipe=course.recipe.model_copy(
            update={"cluster": course.recipe.cluster.model_copy(update={"micro_batch_tokens": 5 * 64})}
        ),
    )
    weights, losses = trained_alone(halved, rows, frozenset(BAD))
    exported = load_file(Path(course.prefix_uri, "export", "model.safetensors"))
    assert all(torch.isfinite(tensor).all() for tensor in exported.values())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in exported.items())
    journal = read_journal(storage.read_bytes(storage.join(course.prefix_uri, JOURNAL)))
    assert {line["step"]: line["loss"] for line in journal} == losses
    clean, _ = trained_alone(halved, rows, frozenset())
    assert heldout(course, weights) == pytest.approx(heldout(course, clean), rel=0.01)


def heldout(course: Course, weights: dict[str, torch.Tensor]) -> float:
    """Mean loss over rows of the last source that were not drawn for training."""
    model = load_model(model_copy(course.model), "fp32")
    model.load_state_dict(weights)
    drawn = _drawn(course.recipe.seed + 1, course.order.sources[-1], 64)
    targets = targets_of(drawn.tokens, drawn.doc_lengths, np.ones(drawn.tokens.shape, bool), np.ones(64))
    with torch.no_grad():
        total = summed_loss(model.eval(), model_inputs(drawn.tokens, drawn.doc_lengths), targets)
    return float(total) / int((targets >= 0).sum())


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_that_must_skip_too_much_fails_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch from 6 on is no number: one rollback, then the end, with no restart in vain."""
    course, rows = slice_of(tmp_path, "pretrain.guard.max_skipped_batches=4")
    failed, lines = run_with(Faults(dict.fromkeys(range(6, 60), NAN)), course, rows, monkeypatch)
    assert isinstance(failed, StageError) and "5 batches were skipped, 4 may be: 6, 7, 8, 9, 10;" in failed.problem
    assert [line.split()[3] for line in lines if line.startswith("resuming at step")] == ["5"]
    assert len([line for line in lines if line.startswith("skipped batch")]) == 5
