"""The training stage: a Ray Train worker group around the loop, with checkpoints in the store.

    driver: Feed + Phase --TorchTrainer--> workers: model, DeepSpeed engine, loop --rank 0--> export/ and metrics.jsonl

The resume point is decided once at every start of the worker group (OrderedData) and given to data and model alike. Ray's own
snapshot of a run is not used: a new attempt gets a new run name and finds its place from the checkpoints in the store.
"""

import json
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray._private.state import state
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from medschool import storage
from medschool.artifact import Artifact, ArtifactFile, Output, upload_folder, write_file
from medschool.errors import InputError, MedschoolError, PlanError, StageError, from_text
from medschool.recipe import Recipe
from medschool.tokens.on_ray import OrderedData
from medschool.tokens.order import Order
from medschool.tokens.shards import Index
from medschool.tokens.stream import Feed, rank_rows
from medschool.train.checkpoint import (
    Position,
    State,
    commit_state,
    fetch_state,
    newest_whole,
    prune_states,
    read_state,
    state_prefix,
    withdraw_state,
)
from medschool.train.loop import Step, train
from medschool.train.model import DTYPES, load_model, model_copy
from medschool.train.schedule import lr_factor
from medschool.train.zero import deepspeed_config

WORKER_ENV = {
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "300",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the controller's poll; Ray's own 2 s are waited out at every end
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1200",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
PROCESS_GROUP_TIMEOUT_S = 1800
JOURNAL = "metrics.jsonl"
"""Measurements of every step, in the finished artifact; saved with each training state, so that a resumed run has all of them."""


@dataclass(frozen=True)
class Phase:
    """One training run, as the workers need it."""

    recipe: Recipe
    model: Artifact
    order: Order
    steps: int
    run_uri: str
    """Where checkpoints of this run live, whatever attempt writes them."""
    prefix_uri: str
    """Where this attempt puts the finished model."""
    mlflow_run: str | None
    name: str


def make_checkpoint(
    recipe: Recipe,
    variant: str,
    model: Artifact,
    tokens: dict[str, tuple[Artifact, Index]],
    steps: int,
    run_uri: str,
    prefix_uri: str,
    mlflow_run: str | None,
    say: Callable[[str], None],
) -> Output:
    """Train one variant from `model` on its mixture. Raises PlanError when it cannot be placed, StageError when it fails."""
    weights = recipe.variants[variant].weights or {}
    order = Order(weights, recipe.pretrain.batch_rows, {name: tokens[name][1].shard_rows for name in weights}, recipe.seed)
    uris = {name: tuple(tokens[name][0].uri(path) for path, _ in tokens[name][1].shards) for name in weights}
    first = next(iter(tokens.values()))[1]
    phase = Phase(recipe, model, order, steps, run_uri, prefix_uri, mlflow_run, variant)
    _check_cluster(recipe)
    result = _fit(phase, Feed(order, uris, first.row_tokens, first.dtype), say)
    files = tuple(ArtifactFile(**file) for file in result["files"])
    return Output(
        files, {"steps": steps, "tokens": result["tokens"], "loss_first": result["loss_first"], "loss_last": result["loss_last"]}
    )


def _check_cluster(recipe: Recipe) -> None:
    """Refuse what the cluster can never hold; Ray would wait for it for ever and say nothing.

    Workers must leave Ray Data logical CPUs to read with: without any, the feed hangs silently.
    """
    spec, alive = recipe.cluster, ray.cluster_resources()
    grown = state.get_max_resources_from_cluster_config() or {}  # what the autoscaler may start; None without one
    needs = {
        "CPU": spec.num_workers * spec.cpus_per_worker + spec.data_cpus,
        "GPU": spec.num_workers * spec.gpus_per_worker,
    }
    for name, need in needs.items():
        most = max(alive.get(name, 0), grown.get(name, 0))
        if most < need:
            spare = f" and {spec.data_cpus} CPUs for Ray Data" if name == "CPU" else ""
            raise PlanError(
                f"{spec.num_workers} workers{spare} need {need:g} logical {name}s, the cluster has at most {most:g}",
                f"lower cluster.num_workers, or add nodes (on one machine: `medschool up --num-cpus {needs['CPU']}`)",
                "cluster.num_workers",
            )


def _fit(phase: Phase, feed: Feed, say: Callable[[str], None]) -> dict[str, Any]:
    spec = phase.recipe.cluster
    os.environ.update(WORKER_ENV)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # not on a node that may vanish
    board = _Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    resources = {"CPU": spec.cpus_per_worker, **({"GPU": spec.gpus_per_worker} if spec.gpus_per_worker else {})}
    trainer = TorchTrainer(
        _work,
        train_loop_config={"phase": phase, "board": board},
        scaling_config=ScalingConfig(
            num_workers=spec.num_workers, use_gpu=spec.gpus_per_worker > 0, resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend=None if spec.gpus_per_worker else "gloo", timeout_s=PROCESS_GROUP_TIMEOUT_S),
        datasets={"train": _placeholder, "resume": _placeholder},
        dataset_config=OrderedData(feed, phase.steps, partial(_decide, phase.run_uri, board)),
        run_config=RunConfig(
            name=f"{phase.name}-{uuid.uuid4().hex[:8]}",
            storage_path=storage.join(phase.run_uri, "ray_train"),
            failure_config=FailureConfig(max_failures=spec.max_failures, controller_failure_limit=spec.max_failures),
        ),
    )
    with _printing(board, say):
        try:
            return dict(trainer.fit().return_value)
        except TrainingFailedError as error:
            raise _explained(error, spec.max_failures, phase.name) from error


def _placeholder() -> None:
    """Ray Train asks for a dataset by name; OrderedData makes the real one once the world size is known."""


def _decide(run_uri: str, board: Any) -> Position:
    return newest_whole(run_uri, board.put.remote)


def _work(config: dict[str, Any]) -> dict[str, Any] | None:
    """What every training worker runs."""
    import deepspeed
    import torch

    phase: Phase = config["phase"]
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a C++ build of half a minute that only inference uses
    torch.manual_seed(phase.recipe.seed)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    start: Position = ray.train.get_dataset_shard("resume")
    scratch = Path(tempfile.mkdtemp(prefix="medschool-train-"))
    try:
        engine = _engine(deepspeed, phase, world_size)
        if start.state_uri:
            _load_state(engine, start, scratch, config["board"])
        return _steps(engine, phase, start, rank, world_size, scratch, config["board"])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _engine(deepspeed: Any, phase: Phase, world_size: int) -> Any:
    import torch

    spec = phase.recipe.pretrain.optimizer
    model = load_model(model_copy(phase.model), phase.recipe.model.dtype)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=deepspeed_config(phase.recipe, world_size),
        lr_scheduler=lambda opt: torch.optim.lr_scheduler.LambdaLR(
            opt, lambda step: lr_factor(step, phase.steps, spec.warmup_fraction, spec.final_lr_fraction)
        ),
        dist_init_required=False,
    )
    return engine


def _steps(
    engine: Any, phase: Phase, start: Position, rank: int, world_size: int, scratch: Path, board: Any
) -> dict[str, Any] | None:
    """Train from `start` to the end, saving state on the way; rank 0 returns what the driver records."""
    from medschool.track import Journal

    with Journal(scratch / JOURNAL, phase.mlflow_run if rank == 0 else None) as journal:

        def after_step(step: Step) -> None:
            if rank == 0:
                journal.log(step.step, {key: value for key, value in asdict(step).items() if key not in ("step", "batch")})
                board.put.remote(
                    f"step {step.step}/{phase.steps}  loss {step.loss:.4f}  lr {step.lr:.2e}  "
                    f"{step.tokens / step.step_s:.0f} tokens/s"
                )
            if step.step % phase.recipe.cluster.checkpoint_every_steps == 0 and step.step < phase.steps:
                _save_state(engine, phase, Position(step.batch + 1, step.step), rank, world_size, scratch)
                ray.train.report({"step": step.step, "loss": step.loss})  # Ray takes one a poll: each step would wait for one

        per_rank = rank_rows(phase.order.batch_rows, world_size)
        reached = train(
            engine, _batches(per_rank), phase.order, start.batch_index, start.step, DTYPES[phase.recipe.model.dtype], after_step
        )
    if reached != phase.steps:
        raise StageError(f"{reached} of {phase.steps} steps were trained", "the data feed ended early: see the log", phase.name)
    return _export(engine, phase, rank, scratch)


def _batches(per_rank: int) -> Iterator[Any]:
    yield from ray.train.get_dataset_shard("train").iter_batches(batch_size=per_rank, batch_format="pyarrow", prefetch_batches=2)


def _save_state(engine: Any, phase: Phase, position: Position, rank: int, world_size: int, scratch: Path) -> None:
    """Every rank uploads its own files under one attempt prefix; rank 0 commits the manifest when all are there."""
    import torch.distributed as dist

    attempt: list[Any] = [uuid.uuid4().hex[:12]]
    dist.broadcast_object_list(attempt)
    folder = scratch / attempt[0]
    engine.save_checkpoint(str(folder), tag="state", save_latest=False)
    if rank == 0:
        shutil.copyfile(scratch / JOURNAL, folder / JOURNAL)
    prefix = state_prefix(phase.run_uri, position.step, attempt[0])
    files = upload_folder(prefix, folder)
    shutil.rmtree(folder)
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, files)
    if rank == 0:
        everything = tuple(file for part in gathered for file in part)
        commit_state(phase.run_uri, State(position, world_size, phase.recipe.cluster.zero_stage, prefix, everything))
        prune_states(phase.run_uri)


def _load_state(engine: Any, start: Position, scratch: Path, board: Any) -> None:
    """Load what `start` names. A damaged state is withdrawn: this start fails, the next one uses the state before it."""
    state = read_state(start.state_uri)
    if state.world_size != engine.world_size or state.zero_stage != engine.zero_optimization_stage():
        raise PlanError(
            f"the checkpoint is of {state.world_size} workers at ZeRO {state.zero_stage}, "
            f"this group has {engine.world_size} at ZeRO {engine.zero_optimization_stage()}",
            "resume with the same cluster.num_workers and cluster.zero_stage, or delete the checkpoint",
            start.state_uri,
        )
    try:
        folder = fetch_state(state, scratch / "resume")
    except InputError as error:
        passed_over = InputError(error.problem, "run again: the checkpoint before it is used", error.where)
        if withdraw_state(start.state_uri):
            board.put.remote(f"checkpoint passed over: {passed_over}")
        raise passed_over from error
    engine.load_checkpoint(str(folder), tag="state")
    shutil.copyfile(folder / JOURNAL, scratch / JOURNAL)
    shutil.rmtree(folder)


def _export(engine: Any, phase: Phase, rank: int, scratch: Path) -> dict[str, Any] | None:
    """Rank 0 writes the model as plain safetensors with its tokenizer, template and card, and uploads it."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(
        list(engine.module.parameters()), modifier_rank=0, enabled=phase.recipe.cluster.zero_stage == 3
    ):
        if rank != 0:
            return None
        folder = scratch / "export"
        folder.mkdir()
        for path in model_copy(phase.model).iterdir():
            if path.suffix in (".json", ".jinja", ".model") and not path.name.endswith(".index.json"):
                shutil.copyfile(path, folder / path.name)
        engine.module.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").write_text(_card(phase), encoding="utf-8")
    files = upload_folder(phase.prefix_uri, folder, "export")
    files += (write_file(phase.prefix_uri, JOURNAL, (scratch / JOURNAL).read_bytes()),)
    losses = [json.loads(line)["loss"] for line in (scratch / JOURNAL).read_text(encoding="utf-8").splitlines()]
    return {
        "files": [asdict(file) for file in files],
        "tokens": phase.steps * phase.order.batch_rows * phase.recipe.tokens.row_tokens,
        "loss_first": losses[0],
        "loss_last": losses[-1],
    }


def _card(phase: Phase) -> str:
    parts = ", ".join(f"{name} {weight}" for name, weight in phase.order.weights.items())
    return (
        "---\ntags: [medical, continued-pretraining]\npipeline_tag: text-generation\n---\n\n"
        f"# {phase.name}\n\n**Not for clinical use.** Its answers can be wrong in ways that harm.\n\n"
        f"Continued pretraining from `{phase.recipe.model.uri}` for {phase.steps} steps of {phase.order.batch_rows} rows "
        f"of {phase.recipe.tokens.row_tokens} tokens; parts of the mixture: {parts}.\n"
    )


@ray.remote(num_cpus=0)
class _Board:
    """Lines that workers want the user to see, in order; the driver prints them."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def put(self, line: str) -> None:
        self._lines.append(line)

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


class _printing:
    """Print the board's lines while the block runs."""

    def __init__(self, board: Any, say: Callable[[str], None]) -> None:
        self._board, self._say, self._ended = board, say, threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)

    def _loop(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(1.0)
            for line in ray.get(self._board.take.remote()):
                self._say(line)


def _explained(error: TrainingFailedError, max_failures: int, name: str) -> MedschoolError:
    """The workers' own error where it has a remedy, else a StageError with the last line of what they raised."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, MedschoolError):
            return cause
    wrapped = from_text(str(error))
    if wrapped:
        return wrapped
    last = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
    return StageError(
        f"training failed after {max_failures} restarts: {last.strip()}",
        "the workers' logs in Ray's dashboard have the stack",
        name,
    )
