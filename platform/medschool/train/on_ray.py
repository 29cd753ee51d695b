"""One phase of training: a Ray Train worker group around medschool.train.worker.

    driver: Feed + Course --TorchTrainer--> workers: engine, loop, state in the store --rank 0--> export/ and metrics.jsonl

Knowledge injection and instruction tuning are the same thing here: rows, which of their tokens are trained, and an order.

torch, DeepSpeed and Ray Tune are imported where they are used: this file is read by drivers too, which need none of them.

The resume point is decided once at every start of the worker group (OrderedData) and given to data and model alike. Ray's own
snapshot of a run is not used: a new attempt gets a new run name and finds its place from the checkpoints in the store.
"""

import os
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.v2.api.exceptions import TrainingFailedError

from medschool import storage
from medschool.artifact import Artifact, ArtifactFile, Output
from medschool.board import Board
from medschool.cluster.fit import trial_needs
from medschool.cluster.room import cluster_room
from medschool.errors import MedschoolError, PlanError, StageError, cause_of
from medschool.gauges import Gauges, Restarts
from medschool.ledger import Ledger
from medschool.recipe import Recipe
from medschool.recipe.cluster import Cluster
from medschool.tokens.on_ray import OrderedData
from medschool.tokens.shards import Index
from medschool.tokens.stream import Feed, feed_of, rank_rows
from medschool.track import read_journal
from medschool.train.checkpoint import newest_whole
from medschool.train.course import JOURNAL, Course
from medschool.train.failures import given_up, stopped_by_wish
from medschool.train.feed_room import kept_for_the_feed
from medschool.train.group_end import GroupEnds
from medschool.train.held import cost_of, read_groups
from medschool.train.memory import REMEDY, START, fitted, note_shortage, out_of_memory_told, shortages, told_by
from medschool.train.oversight import PLACEMENT_TRY_S, Oversight, reason_of, was_preempted
from medschool.train.start import Start, decide
from medschool.train.zero import check_batch

if TYPE_CHECKING:
    from medschool.train.handout import Measure

WORKER_ENV = {
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "300",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the controller's poll; Ray's own 2 s are waited out at every end
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{PLACEMENT_TRY_S:g}",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
PROCESS_GROUP_TIMEOUT_S = 1800
RESIZE_EVERY_S = 60.0
"""How often an elastic training looks for room for more workers; growing costs the steps since the last checkpoint."""


def make_checkpoint(
    course: Course, rows: dict[str, tuple[Artifact, Index]], board: Board, measure: "Measure | None" = None
) -> Output:
    """Train one phase. `rows` holds the token rows of every source or set in the mixture; `measure` gets weights on the way.

    Raises PlanError when it cannot be placed, StageError when it fails, or consumes other tokens than planned.
    """
    order = course.order
    feed = feed_of(order, rows)
    ledger = Ledger(order, feed.row_tokens, {name: rows[name][0].digest for name in order.sources}, course.model.digest)
    check_batch(course.recipe, course.phase, course.recipe.cluster.most_workers)
    result = _fit_until_done(course, feed, ledger, board, measure)
    files = tuple(ArtifactFile(**file) for file in result.pop("files"))
    journal = read_journal(storage.read_bytes(storage.join(course.prefix_uri, JOURNAL)))
    cost = cost_of(read_groups(course.run_uri), journal, course.recipe.cluster.gpus_per_worker)
    return Output(files, {"steps": course.steps, **result, "cost": cost})


def check_cluster(recipe: Recipe) -> None:
    """Raise PlanError for what the cluster can never hold; Ray would wait for it for ever and say nothing.

    An elastic training needs room for its fewest workers.
    Workers must leave Ray Data logical CPUs to read with: without any, the feed hangs silently.
    """
    spec, room = recipe.cluster, cluster_room()
    fewest = spec.fewest_workers
    for name, need in trial_needs(spec, recipe.evaluate.scorers_beside, fewest).items():
        if room[name] < need:
            scored = name == "CPU" and spec.score_workers > fewest * spec.cpus_per_worker
            key, count = ("score_workers", spec.score_workers) if scored else ("num_workers", fewest)
            spare = f" and {spec.data_cpus} CPUs for Ray Data" if name == "CPU" else ""
            raise PlanError(
                f"{count} {'scorers' if scored else 'workers'}{spare} need {need:g} logical {name}s, "
                f"the cluster has at most {room[name]:g}",
                f"lower cluster.{key}, or add nodes (on one machine: `medschool up --num-cpus {need:g}`)",
                f"cluster.{key}",
            )


def _fit_until_done(course: Course, feed: Feed, ledger: Ledger, board: Board, measure: "Measure | None") -> dict[str, Any]:
    """Fit once; again after a rollback, and as long as memory runs out and micro-batches can be halved."""
    began_s = time.time()
    while True:
        known = len(shortages(course))
        try:
            result = _fit(course, feed, ledger, board, measure, began_s)
        except StageError as error:
            if START not in error.problem or len(shortages(course)) == known:
                raise
            continue
        end = result.get("ends")
        if not isinstance(end, GroupEnds):
            return result
        if end.error:
            raise end.error
        board.put(end.reason)


def _fit(course: Course, feed: Feed, ledger: Ledger, board: Board, measure: "Measure | None", began_s: float) -> dict[str, Any]:
    from ray.train.torch import TorchTrainer

    from medschool.train.rendezvous import OnNetwork

    spec = course.recipe.cluster
    os.environ.update(WORKER_ENV)
    resources = {"CPU": spec.cpus_per_worker, **({"GPU": spec.gpus_per_worker} if spec.gpus_per_worker else {})}
    trainer = TorchTrainer(
        _work,
        train_loop_config={"course": course, "ledger": ledger, "board": board, "measure": measure, "began_s": began_s},
        scaling_config=ScalingConfig(
            num_workers=spec.num_workers,
            use_gpu=spec.gpus_per_worker > 0,
            resources_per_worker=resources,
            placement_strategy="PACK",  # on as few nodes as hold them: within a node the network is fastest
            label_selector=spec.node_labels or None,
            elastic_resize_monitor_interval_s=RESIZE_EVERY_S,
        ),
        torch_config=OnNetwork(backend=None if spec.gpus_per_worker else "gloo", timeout_s=PROCESS_GROUP_TIMEOUT_S),
        datasets={"train": _placeholder, "resume": _placeholder},
        dataset_config=OrderedData(feed, course.steps + course.spec.guard.max_skipped_batches, partial(_decide, course, board)),
        run_config=RunConfig(
            name=f"{course.phase}-{uuid.uuid4().hex[:8]}",
            storage_path=storage.join(course.run_uri, "ray_train"),
            callbacks=[
                OnOutOfMemory(course, board),
                Oversight(course.run_uri, course.trial, spec, board, Restarts(course.recipe.name, course.phase, course.trial)),
                *_reports(course),
            ],
            failure_config=FailureConfig(
                max_failures=spec.max_failures,
                max_preemption_failures=-1 if spec.max_preemptions is None else spec.max_preemptions,
                controller_failure_limit=-1,  # Oversight counts groups that do not start, and ends those that find no place
            ),
        ),
    )
    try:
        with kept_for_the_feed(spec), board.saving_at_stop():
            result = dict(trainer.fit().return_value)
    except TrainingFailedError as error:
        raise _explained(error, spec, course.trial) from error
    except ray.exceptions.OutOfMemoryError as error:  # Ray's monitor took the controller too, which so could not note it
        told = told_by(error) or f"{START}{error}"
        if spec.halve_on_oom:
            note_shortage(course, told)
        raise StageError(told, REMEDY, course.trial) from error
    if "stopped_at" in result:
        saved = newest_whole(course.run_uri, lambda _: None).step  # the last checkpoint may have failed
        stopped = stopped_by_wish(result["stopped_at"], saved, course.steps, course.trial)
        board.put(stopped.problem)  # the driver of a study may be gone before this error has come to it
        raise stopped
    return result


def _reports(course: Course) -> list[Any]:
    """What hands the reports of a search's trial to Ray Tune, which no other training needs."""
    if not course.report_every_steps:
        return []
    from ray.tune.integration.ray_train import TuneReportCallback

    return [TuneReportCallback()]


def _placeholder() -> None:
    """Ray Train asks for a dataset by name; OrderedData makes the real one once the world size is known."""


def _decide(course: Course, board: Board) -> Start:
    return decide(course, board.put)


class OnOutOfMemory(UserCallback):  # type: ignore[misc]
    """In Ray's controller: says when memory ran out, and keeps it in the store where the next group is to take less at once."""

    def __init__(self, course: Course, board: Board) -> None:
        self._course, self._board = course, board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        told = next((told for error in worker_exceptions.values() if (told := told_by(error))), None)
        if told:
            self._board.put(told)
            if self._course.recipe.cluster.halve_on_oom:
                note_shortage(self._course, told)


def _work(config: dict[str, Any]) -> dict[str, Any] | None:
    """What every training worker runs."""
    course: Course = config["course"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    start: Start = ray.train.get_dataset_shard("resume")
    batches = _batches(rank_rows(course.order.batch_rows, world_size))
    from medschool.train.worker import work  # seconds, in which the feed begins

    say = config["board"].put
    show = Gauges(course.recipe.name, course.phase, course.trial, course.steps)
    ledger, measure, began_s = config["ledger"], config["measure"], config["began_s"]
    try:
        course = fitted(course, start.shortages, world_size)
        with out_of_memory_told(course, rank, world_size):
            return work(course, ledger, start, batches, rank, world_size, say, ray.train.report, show, measure, began_s)
    except GroupEnds as end:
        return {"ends": end}


def _batches(per_rank: int) -> Iterator[Any]:
    """This rank's slices of the batches. The feed starts now, so that it has begun by the time that the engine is built."""
    shard = ray.train.get_dataset_shard("train")
    batches = iter(shard.iter_batches(batch_size=per_rank, batch_format="pyarrow", prefetch_batches=2))
    first: Future[Any] = Future()

    def ask() -> None:
        try:
            first.set_result(next(batches, None))
        except BaseException as error:  # raised where the batch is asked for
            first.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    return _from(first, batches)


def _from(first: "Future[Any]", rest: Iterator[Any]) -> Iterator[Any]:
    if (batch := first.result()) is not None:
        yield batch
        yield from rest


def _explained(error: TrainingFailedError, spec: Cluster, name: str) -> MedschoolError:
    """The workers' own error where it has a remedy, else a StageError with the last line of what they raised."""
    for failure in (*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)):
        if failure is not None and (told := told_by(failure)):
            return StageError(told, REMEDY, name)
        if failure is not None and (cause := cause_of(getattr(failure, "_base_exc", failure))):
            return cause
    if cause := cause_of(error):
        return cause
    preempted = was_preempted(error)
    return given_up(preempted, spec.max_preemptions if preempted else spec.max_failures, reason_of(error), name)
