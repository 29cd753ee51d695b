"""One phase of training: a Ray Train worker group around medschool.train.worker.

    driver: Feed + Course --TorchTrainer--> workers: engine, loop, state in the store --rank 0--> export/ and metrics.jsonl

Knowledge injection and instruction tuning are the same thing here: rows, which of their tokens are trained, and an order.

The resume point is decided once at every start of the worker group (OrderedData) and given to data and model alike. Ray's own
snapshot of a run is not used: a new attempt gets a new run name and finds its place from the checkpoints in the store.
"""

import os
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import ray
import ray.train
from ray._private.state import state
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.tune.integration.ray_train import TuneReportCallback

from medschool import storage
from medschool.artifact import Artifact, ArtifactFile, Output
from medschool.board import Board
from medschool.cluster.fit import trial_needs
from medschool.errors import MedschoolError, PlanError, StageError, cause_of
from medschool.ledger import Ledger
from medschool.recipe import Recipe
from medschool.tokens.on_ray import OrderedData
from medschool.tokens.shards import Index
from medschool.tokens.stream import Feed, feed_of, rank_rows
from medschool.train.checkpoint import Position, newest_whole
from medschool.train.course import Course
from medschool.train.worker import work

WORKER_ENV = {
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "300",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the controller's poll; Ray's own 2 s are waited out at every end
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1200",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
PROCESS_GROUP_TIMEOUT_S = 1800


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
            scored = name == "CPU" and spec.score_workers > spec.most_workers * spec.cpus_per_worker
            key, count = ("score_workers", spec.score_workers) if scored else ("num_workers", spec.most_workers)
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
    course: Course = config["course"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    start: Position = ray.train.get_dataset_shard("resume")
    batches = _batches(rank_rows(course.order.batch_rows, world_size))
    say = config["board"].put
    return work(course, config["ledger"], start, batches, rank, world_size, say, ray.train.report)


def _batches(per_rank: int) -> Iterator[Any]:
    yield from ray.train.get_dataset_shard("train").iter_batches(batch_size=per_rank, batch_format="pyarrow", prefetch_batches=2)


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
