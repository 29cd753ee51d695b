"""One phase of training: a Ray Train worker group around the loop, with checkpoints in the store.

    driver: Feed + Course --TorchTrainer--> workers: model, DeepSpeed engine, loop --rank 0--> export/ and metrics.jsonl

Knowledge injection and instruction tuning are the same thing here: rows, which of their tokens are trained, and an order.

The resume point is decided once at every start of the worker group (OrderedData) and given to data and model alike. Ray's own
snapshot of a run is not used: a new attempt gets a new run name and finds its place from the checkpoints in the store.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
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
from ray.tune.integration.ray_train import TuneReportCallback

from medschool import storage
from medschool.artifact import Artifact, ArtifactFile, Output, upload_folder, write_file
from medschool.board import Board
from medschool.cluster.fit import trial_needs
from medschool.errors import InputError, MedschoolError, PlanError, StageError, cause_of
from medschool.ledger import LEDGER, Ledger, go_on, ledger_bytes, parse_ledger
from medschool.procedure import Phase, row_tokens, training
from medschool.recipe import Recipe
from medschool.recipe.schema import Training
from medschool.tokens.mixture import Weights
from medschool.tokens.on_ray import OrderedData
from medschool.tokens.order import Order
from medschool.tokens.shards import Index
from medschool.tokens.stream import Feed, feed_of, rank_rows
from medschool.track import Journal, read_journal
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
class Course:
    """One phase of one trial, as the workers need it."""

    recipe: Recipe
    phase: Phase
    trial: str
    """Its name, for what users read; never for what is written."""
    model: Artifact
    order: Order
    steps: int
    run_uri: str
    """Where checkpoints of this run live, whatever attempt writes them."""
    prefix_uri: str
    """Where this attempt puts the finished model."""
    mlflow_run: str | None
    report_every_steps: int | None = None
    """Steps between two reports to the trial that this training is part of, where it may be stopped early."""

    @property
    def spec(self) -> Training:
        return training(self.recipe, self.phase)


def make_checkpoint(course: Course, rows: dict[str, tuple[Artifact, Index]], board: Board) -> Output:
    """Train one phase. `rows` holds the token rows of every source or set in the mixture.

    Raises PlanError when it cannot be placed, StageError when it fails, or consumes other tokens than planned.
    """
    order = course.order
    feed = feed_of(order, rows)
    ledger = Ledger(order, feed.row_tokens, {name: rows[name][0].digest for name in order.sources}, course.model.digest)
    result = _fit(course, feed, ledger, board)
    files = tuple(ArtifactFile(**file) for file in result.pop("files"))
    return Output(files, {"steps": course.steps, **result})


def cluster_room() -> dict[str, float]:
    """Logical CPUs and GPUs that the cluster has, or may grow to where an autoscaler runs."""
    alive = ray.cluster_resources()
    grown = state.get_max_resources_from_cluster_config() or {}  # None without an autoscaler
    return {name: max(alive.get(name, 0), grown.get(name, 0)) for name in ("CPU", "GPU")}


def check_cluster(recipe: Recipe) -> None:
    """Raise PlanError for what the cluster can never hold; Ray would wait for it for ever and say nothing.

    Workers must leave Ray Data logical CPUs to read with: without any, the feed hangs silently.
    """
    spec, room = recipe.cluster, cluster_room()
    for name, need in trial_needs(spec).items():
        if room[name] < need:
            scored = name == "CPU" and spec.score_workers > spec.num_workers * spec.cpus_per_worker
            key, count = ("score_workers", spec.score_workers) if scored else ("num_workers", spec.num_workers)
            spare = f" and {spec.data_cpus} CPUs for Ray Data" if name == "CPU" else ""
            raise PlanError(
                f"{count} {'scorers' if scored else 'workers'}{spare} need {need:g} logical {name}s, "
                f"the cluster has at most {room[name]:g}",
                f"lower cluster.{key}, or add nodes (on one machine: `medschool up --num-cpus {need:g}`)",
                f"cluster.{key}",
            )


def _fit(course: Course, feed: Feed, ledger: Ledger, board: Board) -> dict[str, Any]:
    spec = course.recipe.cluster
    os.environ.update(WORKER_ENV)
    resources = {"CPU": spec.cpus_per_worker, **({"GPU": spec.gpus_per_worker} if spec.gpus_per_worker else {})}
    trainer = TorchTrainer(
        _work,
        train_loop_config={"course": course, "ledger": ledger, "board": board},
        scaling_config=ScalingConfig(
            num_workers=spec.num_workers, use_gpu=spec.gpus_per_worker > 0, resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend=None if spec.gpus_per_worker else "gloo", timeout_s=PROCESS_GROUP_TIMEOUT_S),
        datasets={"train": _placeholder, "resume": _placeholder},
        dataset_config=OrderedData(feed, course.steps, partial(_decide, course.run_uri, board)),
        run_config=RunConfig(
            name=f"{course.phase}-{uuid.uuid4().hex[:8]}",
            storage_path=storage.join(course.run_uri, "ray_train"),
            callbacks=[TuneReportCallback()] if course.report_every_steps else None,
            failure_config=FailureConfig(max_failures=spec.max_failures, controller_failure_limit=spec.max_failures),
        ),
    )
    try:
        return dict(trainer.fit().return_value)
    except TrainingFailedError as error:
        raise _explained(error, spec.max_failures, course.trial) from error


def _placeholder() -> None:
    """Ray Train asks for a dataset by name; OrderedData makes the real one once the world size is known."""


def _decide(run_uri: str, board: Board) -> Position:
    return newest_whole(run_uri, board.put)


def _work(config: dict[str, Any]) -> dict[str, Any] | None:
    """What every training worker runs."""
    import deepspeed
    import torch

    course: Course = config["course"]
    ledger: Ledger = config["ledger"]
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a C++ build of half a minute that only inference uses
    torch.manual_seed(course.order.seed)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    start: Position = ray.train.get_dataset_shard("resume")
    scratch = Path(tempfile.mkdtemp(prefix="medschool-train-"))
    try:
        engine = _engine(deepspeed, course, world_size)
        if start.state_uri:
            _load_state(engine, start, scratch, config["board"])
            stored = parse_ledger((scratch / LEDGER).read_bytes(), start.state_uri)
            ledger = go_on(ledger, stored, start.batch_index, start.step, start.state_uri)
            ledger = ledger if rank == 0 else ledger.of_all([])  # what was counted before is counted once
        return _steps(engine, course, start, ledger, rank, world_size, scratch, config["board"])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _engine(deepspeed: Any, course: Course, world_size: int) -> Any:
    import torch

    spec = course.spec.optimizer
    model = load_model(model_copy(course.model), course.recipe.model.dtype)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=deepspeed_config(course.recipe, course.phase, world_size),
        lr_scheduler=lambda opt: torch.optim.lr_scheduler.LambdaLR(
            opt, lambda step: lr_factor(step, course.steps, spec.warmup_fraction, spec.final_lr_fraction)
        ),
        dist_init_required=False,
    )
    return engine


def _steps(
    engine: Any, course: Course, start: Position, ledger: Ledger, rank: int, world_size: int, scratch: Path, board: Board
) -> dict[str, Any] | None:
    """Train from `start` to the end, saving state on the way; rank 0 returns what the driver records."""
    every, told = course.recipe.cluster.checkpoint_every_steps, course.report_every_steps
    losses = _since_report(scratch, start.step, told) if told else []
    with Journal(scratch / JOURNAL, course.mlflow_run if rank == 0 else None, f"{course.phase}/") as journal:

        def after_step(step: Step) -> None:
            nonlocal ledger
            ledger = ledger.after(step.batch, step.rows)
            losses.append(step.loss)
            if rank == 0:
                told_elsewhere = ("step", "batch", "rows")
                journal.log(step.step, {key: value for key, value in asdict(step).items() if key not in told_elsewhere})
                board.put(
                    f"step {step.step}/{course.steps}  loss {step.loss:.4f}  lr {step.lr:.2e}  "
                    f"{step.tokens / step.step_s:.0f} tokens/s"
                )
            if step.step % every == 0 and step.step < course.steps:
                _save_state(engine, course, Position(step.batch + 1, step.step), ledger, rank, world_size, scratch)
            if told and step.step % told == 0 and step.step < course.steps:
                ray.train.report(
                    {"step": step.step, "loss": sum(losses) / len(losses)}
                )  # Ray takes one a poll: a step would wait
                losses.clear()

        per_rank = rank_rows(course.order.batch_rows, world_size)
        dtype = DTYPES[course.recipe.model.dtype]
        reached = train(engine, _batches(per_rank), course.order, start.batch_index, start.step, dtype, after_step)
    if reached != course.steps:
        raise StageError(
            f"{reached} of {course.steps} steps were trained", "the data feed ended early: see the log", course.trial
        )
    ledger = _of_all(ledger, world_size)
    ledger.check(course.steps, course.trial)
    return _export(engine, course, ledger, rank, scratch)


def _of_all(ledger: Ledger, world_size: int) -> Ledger:
    """The ledger with the counts of all ranks; every rank gets it."""
    import torch.distributed as dist

    counts: list[Any] = [None] * world_size
    dist.all_gather_object(counts, dict(ledger.rows))
    return ledger.of_all(counts)


def _since_report(scratch: Path, step: int, every: int) -> list[float]:
    """Losses of a resumed run's steps that no report has told yet."""
    journal = scratch / JOURNAL
    told = step // every * every
    return [point["loss"] for point in read_journal(journal.read_bytes()) if point["step"] > told] if journal.exists() else []


def _batches(per_rank: int) -> Iterator[Any]:
    yield from ray.train.get_dataset_shard("train").iter_batches(batch_size=per_rank, batch_format="pyarrow", prefetch_batches=2)


def _save_state(
    engine: Any, course: Course, position: Position, ledger: Ledger, rank: int, world_size: int, scratch: Path
) -> None:
    """Every rank uploads its own files under one attempt prefix; rank 0 commits the manifest when all are there."""
    import torch.distributed as dist

    attempt: list[Any] = [uuid.uuid4().hex[:12]]
    dist.broadcast_object_list(attempt)
    folder = scratch / attempt[0]
    engine.save_checkpoint(str(folder), tag="state", save_latest=False)
    ledger = _of_all(ledger, world_size)
    if rank == 0:
        shutil.copyfile(scratch / JOURNAL, folder / JOURNAL)
        (folder / LEDGER).write_bytes(ledger_bytes(ledger.before(position.batch_index)))
    prefix = state_prefix(course.run_uri, position.step, attempt[0])
    files = upload_folder(prefix, folder)
    shutil.rmtree(folder)
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, files)
    if rank == 0:
        everything = tuple(file for part in gathered for file in part)
        commit_state(course.run_uri, State(position, world_size, course.recipe.cluster.zero_stage, prefix, everything))
        prune_states(course.run_uri)


def _load_state(engine: Any, start: Position, scratch: Path, board: Board) -> None:
    """Load what `start` names. A damaged state is withdrawn: this start fails, the next one uses the state before it."""
    import torch.distributed as dist

    state = read_state(start.state_uri)
    dist.barrier()  # every rank has read the manifest before one of them can withdraw it
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
            board.put(f"checkpoint passed over: {passed_over}")
        raise passed_over from error
    engine.load_checkpoint(str(folder), tag="state")
    for name in (JOURNAL, LEDGER):
        shutil.copyfile(folder / name, scratch / name)
    shutil.rmtree(folder)


def _export(engine: Any, course: Course, ledger: Ledger, rank: int, scratch: Path) -> dict[str, Any] | None:
    """Rank 0 writes the model as plain safetensors with its tokenizer, template and card, and uploads it."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(
        list(engine.module.parameters()), modifier_rank=0, enabled=course.recipe.cluster.zero_stage == 3
    ):
        if rank != 0:
            return None
        folder = scratch / "export"
        folder.mkdir()
        for path in model_copy(course.model).iterdir():
            if path.suffix in (".json", ".jinja", ".model") and not path.name.endswith(".index.json"):
                shutil.copyfile(path, folder / path.name)
        engine.module.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").write_text(_card(course), encoding="utf-8")
    files = upload_folder(course.prefix_uri, folder, "export")
    files += (write_file(course.prefix_uri, JOURNAL, (scratch / JOURNAL).read_bytes()),)
    files += (write_file(course.prefix_uri, LEDGER, ledger_bytes(ledger)),)
    steps = read_journal((scratch / JOURNAL).read_bytes())
    return {
        "files": [asdict(file) for file in files],
        "rows": dict(ledger.rows),
        **({"skipped_batches": len(ledger.skipped)} if ledger.skipped else {}),
        "tokens": sum(int(step["tokens"]) for step in steps),
        "targets": sum(int(step["targets"]) for step in steps),
        "loss_first": steps[0]["loss"],
        "loss_last": steps[-1]["loss"],
    }


def _card(course: Course) -> str:
    parts = _parts(course.order.weights)
    for step, weights in course.order.weights_from.items():
        parts += f"; after step {step}: {_parts(weights)}"
    what = {"pretrain": "continued pretraining", "instruct": "instruction tuning"}[course.phase]
    before = ""
    if course.model.stage == "pretrain":
        steps = course.model.facts["steps"]
        rows = ", ".join(f"{name} {number}" for name, number in course.model.facts["rows"].items())
        before = f"\nBefore: {steps} steps of continued pretraining; rows read: {rows}.\n"
    return (
        f"---\ntags: [medical, {what.replace(' ', '-')}]\npipeline_tag: text-generation\n---\n\n"
        f"# {what.capitalize()} from {course.recipe.model.uri}\n\n"
        "**Not for clinical use.** Its answers can be wrong in ways that harm.\n\n"
        f"{course.steps} steps of {course.spec.batch_rows} rows of {row_tokens(course.recipe, course.phase)} tokens; "
        f"parts of the mixture: {parts}; seed {course.order.seed}.\n" + before
    )


def _parts(weights: Weights) -> str:
    return ", ".join(f"{name} {weight}" for name, weight in weights.items())


def _explained(error: TrainingFailedError, max_failures: int, name: str) -> MedschoolError:
    """The workers' own error where it has a remedy, else a StageError with the last line of what they raised."""
    for failure in getattr(error, "worker_failures", {}).values():
        if cause := cause_of(getattr(failure, "_base_exc", failure)):
            return cause
    if cause := cause_of(error):
        return cause
    last = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
    return StageError(
        f"training failed after {max_failures} restarts: {last.strip()}",
        "the workers' logs in Ray's dashboard have the stack",
        name,
    )
