"""What Ray's controller does for a group of our workers, beside starting them again: with on_ray.py, the part that knows Ray.

    before a group is placed     is there a place for it, will there ever be?                         failures.placed_or_raise
    while it runs                how long it is held: to <run>/groups/                               held.Held
                                 does each rank get on? else all stacks to <run>/stalls/, and again   watchdog.Progress
                                 a wish to stop, or a node that is taken away: told to rank 0         stop.ask
                                 all ranks saved for a preemption: start elsewhere at once
    when it is started again     why, and what that is charged to                                     failures.restart_line

These are hooks of Ray Train 2.60 that it uses itself (its NCCL watchdog raises from the same one); they are not documented, so a
new version of Ray is tried with tests/faults/test_stop_faults.py first. What a hook raises goes to Ray's failure policy: a
WorkerGroupError is charged to max_failures, a PreemptionError to max_preemptions, everything else ends the training.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psutil
import ray
from ray._private.state import state
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import InitializingState, ReschedulingState, RestartingState
from ray.train.v2._internal.execution.failure_handling.default import _is_preemption_failure
from ray.train.v2.api.exceptions import PreemptionError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from medschool import storage
from medschool.board import Board
from medschool.cluster import growth
from medschool.errors import MedschoolError, StageError, StoppedError, cause_of
from medschool.gauges import Restarts
from medschool.recipe.cluster import Cluster
from medschool.train import stop, watchdog
from medschool.train.failures import SAY_EVERY_S, Nodes, Request, given_up, placed_or_raise, restart_line
from medschool.train.held import Held, node_type, worker_price

PLACEMENT_TRY_S = 15.0
"""Ray tries to place a group for so long before the hooks are asked again."""
ASK_AGAIN_S = 0.5
STACKS_S = 40.0
"""For the stacks of a worker that does not answer: a task on its node, which may have to start a process first."""


def alive_nodes(labels: Mapping[str, str]) -> list[Nodes]:
    """Nodes with these labels that are there and not about to be taken away."""
    leaving = state.get_draining_nodes()
    there = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    return [Nodes(node["Resources"], 1) for node in there if labels.items() <= node.get("Labels", {}).items()]


def grown_nodes() -> list[Nodes]:
    """What the autoscaler may bring, by node type, whatever their labels, which its head does not tell; empty without one."""
    return [Nodes(kind.resources, kind.most, kind.name) for kind in growth.may_come()]


class Oversight(WorkerGroupCallback, ControllerCallback):  # type: ignore[misc]
    """The hooks, for one training. Lives in the controller's process."""

    def __init__(self, run_uri: str, trial: str, spec: Cluster, board: Board, restarts: Restarts) -> None:
        self._run_uri, self._trial, self._spec, self._board, self._restarts = run_uri, trial, spec, board, restarts
        self._progress: watchdog.Progress | None = None
        self._workers: list[Any] = []
        self._looked_s = self._said_s = float("-inf")
        self._waiting_since_s: float | None = None
        self._answers: dict[Any, int] = {}
        self._wish: Any = None
        self._told = stop.NOTHING
        self._failures = self._preemptions = 0
        self._held = Held(run_uri)

    def after_controller_start(self, train_run_context: Any) -> None:
        os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5")  # read in this process; Ray does not pass it on

    # ---- before a group is placed ----

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        self._place(worker_group_context.num_workers)

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if not isinstance(current_state, InitializingState | RestartingState | ReschedulingState):
            return
        if previous_state is current_state:  # an elastic group without room: Ray asks again at once, and for ever
            self._place(self._spec.fewest_workers)
            time.sleep(ASK_AGAIN_S)
        elif error := getattr(current_state, "training_failed_error", None):
            self._charge(error)

    def _place(self, workers: int) -> None:
        """Raise StoppedError where a stop is wished for, PlanError where the group will not be placed."""
        if self._board.stop_asked():
            raise StoppedError("stopped before it was placed", "submit again: it goes on from its newest checkpoint", self._trial)
        now_s = time.monotonic()
        self._waiting_since_s = now_s if self._waiting_since_s is None else self._waiting_since_s
        per_worker = {"CPU": float(self._spec.cpus_per_worker), "GPU": float(self._spec.gpus_per_worker)}
        request = Request(min(workers, self._spec.fewest_workers), per_worker, self._spec.node_labels)
        waited_s = now_s - self._waiting_since_s
        alive = alive_nodes(self._spec.node_labels)
        line = placed_or_raise(request, alive, grown_nodes(), waited_s, self._spec.start_timeout_s)
        if line and now_s - self._said_s >= SAY_EVERY_S:
            self._board.put(line)
            self._said_s = now_s

    # ---- when a group is started again ----

    def _charge(self, error: Any) -> None:
        """Say why a group is started again. A group that failed to start counts as a failure, one without a place waits on."""
        not_started = isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupFailedError)
        if was_preempted(error):
            self._preemptions += 1
            self._held.preempted()
            self._board.put(restart_line(True, self._preemptions, self._spec.max_preemptions, reason_of(error)))
        elif isinstance(error, WorkerGroupError) or not_started:
            self._failures += 1
            reason = f"{'the workers did not start: ' if not_started else ''}{reason_of(error)}"
            if self._failures > self._spec.max_failures:  # Ray counts the two kinds apart
                raise given_up(False, self._spec.max_failures, reason, self._trial)
            self._board.put(restart_line(False, self._failures, self._spec.max_failures, reason))

    # ---- while a group runs ----

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._workers = worker_group.get_workers()
        self._progress = watchdog.Progress(
            len(self._workers), self._spec.stall_timeout_s, self._spec.start_timeout_s, time.monotonic()
        )
        self._waiting_since_s, self._answers, self._told, self._looked_s = None, {}, stop.NOTHING, float("-inf")
        self._said_s = float("-inf")
        self._held.begin(*_nodes_of(self._workers, self._spec))

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        self._held.end()
        self._progress, self._workers, self._answers = None, [], {}

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """After every poll, twice a second: look after the ranks, and pass on what is wished for."""
        self._held.beat()
        self._restarts.show(self._failures, self._preemptions)
        if self._progress is None or worker_group_status.finished or worker_group_status.errors:
            return
        now_s = time.monotonic()
        preempted = worker_group_status.get_preemption_info()
        self._tell(stop.STOP if self._stop_asked() else stop.PREEMPTION if preempted else stop.NOTHING)
        self._hear(now_s)
        if preempted and self._progress.all_are(stop.SAVED):
            raise PreemptionError(preempted)
        late_s = self._progress.late_s(now_s)
        if late_s:
            self._give_up(late_s, now_s)

    def _stop_asked(self) -> bool:
        """Whether the board knew of a stop when last asked; never waits for the answer."""
        if self._board.stop is None:
            return False
        if self._wish is None:
            self._wish = self._board.stop.stop_asked.remote()
        elif ray.wait([self._wish], timeout=0)[0]:
            asked, self._wish = ray.get(self._wish), None
            return bool(asked)
        return self._told == stop.STOP

    def _tell(self, wish: int) -> None:
        if wish > self._told:
            self._told = wish
            self._workers[0].execute_async(stop.ask, wish)
            if wish == stop.PREEMPTION:
                self._board.put("a node is about to be taken away: the training is saved at the next step and moved")

    def _hear(self, now_s: float) -> None:
        """Take the answers that have come, and ask those who have answered again."""
        assert self._progress is not None
        if self._answers:
            for answer in ray.wait(list(self._answers), num_returns=len(self._answers), timeout=0)[0]:
                rank = self._answers.pop(answer)
                with suppress(ray.exceptions.RayError):  # a worker that died is Ray's to tell
                    self._progress.heard(rank, ray.get(answer), now_s)
        soon = self._told != stop.NOTHING
        if now_s - self._looked_s >= (0 if soon else self._progress.look_every_s):
            self._looked_s = now_s
            waited_for = set(self._answers.values())
            for rank, worker in enumerate(self._workers):
                if rank not in waited_for:
                    self._answers[worker.execute_async(watchdog.pulse)] = rank

    def _give_up(self, late_s: float, now_s: float) -> None:
        """Save all stacks, and raise what starts the group again."""
        assert self._progress is not None
        which, silent = self._progress.described(now_s), self._progress.silent(now_s)
        folder = storage.join(self._run_uri, "stalls", time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
        self._board.put(f"stalled: {which} for {late_s:.0f} s; stacks of {len(self._workers)} workers: {folder}")
        texts = _stacks(self._workers, silent)
        for rank in silent:  # Ray would ask them to end, and wait for the answer
            ray.kill(self._workers[rank].actor)
        for rank, text in texts.items():
            with suppress(MedschoolError, OSError):  # a store that is down must not keep the group from starting again
                storage.write_bytes(storage.join(folder, f"rank-{rank}.txt"), text.encode())
        error = StageError(
            f"stalled: {which} for {late_s:.0f} s",
            f"see the stacks in {folder}; if it only takes long, raise cluster.stall_timeout_s",
            self._trial,
        )
        raise WorkerGroupError(str(error), dict.fromkeys(self._progress.behind(now_s), error))


def _nodes_of(workers: list[Any], spec: Cluster) -> tuple[Counter[str], dict[str, float]]:
    """Workers by the type of their node, and USD an hour of one of them, where the type has a price."""
    known = {node["NodeID"]: node for node in ray.nodes()}
    nodes = [known.get(worker.metadata.node_id, {}) for worker in workers]
    needs = {"CPU": spec.cpus_per_worker, "GPU": spec.gpus_per_worker}
    prices = {node_type(node): price for node in nodes if (price := worker_price(node, needs)) is not None}
    return Counter(node_type(node) for node in nodes), prices


def was_preempted(error: Any) -> bool:
    """Whether Ray charges an error to preemptions: nodes that were taken away, with notice or without."""
    return bool(_is_preemption_failure(error))


def reason_of(error: Any) -> str:
    """What happened, in one line."""
    if isinstance(error, PreemptionError):
        nodes = ", ".join(node[:8] for node in error.preemption_info.preempted_node_ids)
        return f"node {nodes} with rank {', '.join(map(str, error.preemption_info.preempted_ranks))}"
    failures = getattr(error, "worker_failures", None) or {}
    for rank, failure in failures.items():
        known = cause_of(failure)
        last = next((line for line in reversed(str(failure).splitlines()) if line.strip()), type(failure).__name__)
        return known.problem if known else f"rank {rank}: {type(failure).__name__}: {last.strip()}"
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def _stacks(workers: list[Any], silent: list[int]) -> dict[int, str]:
    """Stacks of all ranks. One that is silent is read from outside, by a task on its node, and killed: Ray asks it to end, and
    a stopped process would keep its memory and its GPU."""
    answers = {}
    for rank, worker in enumerate(workers):
        node, pid = worker.metadata.node_id, worker.metadata.pid
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        outside = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_read_and_kill)
        answers[rank] = outside.remote(pid) if rank in silent else worker.execute_async(watchdog.stacks)
    ray.wait(list(answers.values()), num_returns=len(answers), timeout=STACKS_S)
    return {rank: _answer(answer) for rank, answer in answers.items()}


def _answer(answer: Any) -> str:
    try:
        return str(ray.get(answer, timeout=0))
    except (ray.exceptions.RayError, TimeoutError) as error:
        return f"no stacks: {type(error).__name__} within {STACKS_S:g} s\n{error}"


def _read_and_kill(pid: int) -> str:
    found = watchdog.stacks_from_outside(pid)
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        if "RayTrainWorker" in " ".join(psutil.Process(pid).cmdline()):  # its id could be another process's by now
            os.kill(pid, signal.SIGKILL)
    return found
