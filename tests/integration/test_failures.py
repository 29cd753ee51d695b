"""Who is stalled, judged with a clock that the test turns; what a request for workers meets; how a stop is passed on and obeyed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
import torch.distributed as dist

from jobs import stopping
from medschool import track
from medschool.errors import PlanError, StageError, StoppedError
from medschool.train import stop, watchdog
from medschool.train.failures import Nodes, Request, placed_or_raise, restart_line, said_of, stopped_by_wish, workers_that_fit
from medschool.train.watchdog import Progress, Pulse

STALL_S, START_S = 20.0, 100.0
UPDATE, DATA = "computing an update", "waiting for data"


def group(ranks: int = 3) -> Progress:
    return Progress(ranks, STALL_S, START_S, began_s=1000.0)


def updated(progress: Progress, now_s: float) -> None:
    """Every rank has made its first update."""
    for rank in range(progress.world_size):
        progress.heard(rank, Pulse(4, 0.0, 1, DATA, updates=1), now_s)


def test_a_group_that_loads_has_the_time_of_its_start_and_after_an_update_that_of_a_stall() -> None:
    progress = group()
    progress.heard(0, Pulse(1, 0.0, 0, "loading"), 1001.0)
    assert progress.late_s(1000 + START_S) == 0 and progress.late_s(1000 + START_S + 1) > START_S
    updated(progress, 1050.0)
    assert progress.late_s(1050 + STALL_S) == 0 and progress.late_s(1050 + STALL_S + 1) == STALL_S + 1


def test_a_clock_of_another_machine_does_not_matter() -> None:
    progress = group()
    updated(progress, 1050.0)
    for rank in range(3):
        progress.heard(rank, Pulse(9, 15.0, 4, UPDATE, 1), 1100.0)  # 15 s ago by its own clock
    assert progress.late_s(1104.0) == 0 and progress.late_s(1106.0) == 21.0


def test_the_silent_rank_is_named_before_those_that_wait_for_it() -> None:
    progress = group()
    updated(progress, 1050.0)
    for now_s in (1060.0, 1070.0):
        for rank in (0, 2):
            progress.heard(rank, Pulse(9, now_s - 1052, 4, UPDATE, 1), now_s)
    assert progress.silent(1071.0) == [1] == progress.behind(1071.0)
    assert progress.described(1073.0) == "rank 1 of 3 does not answer (step 1, waiting for data)"


def test_without_a_silent_one_those_that_are_furthest_behind_are_named() -> None:
    progress = group()
    updated(progress, 1050.0)
    for rank, (beats, doing) in enumerate([(9, UPDATE), (8, DATA), (9, UPDATE)]):
        progress.heard(rank, Pulse(beats, 1.0, 4, doing, 1), 1070.0)
    assert progress.described(1070.0) == "rank 1 of 3 does not get on (step 4, waiting for data)"
    progress.heard(1, Pulse(9, 1.0, 4, UPDATE, 1), 1070.5)
    assert progress.described(1071.0) == "ranks 0, 1, 2 of 3 do not get on (step 4, computing an update)"


def test_a_stall_is_found_within_twice_the_time_allowed() -> None:
    for timeout_s in (1.0, 20.0, 600.0):
        progress = Progress(1, timeout_s, timeout_s, 0.0)
        assert timeout_s + 2 * progress.look_every_s <= 2 * timeout_s


def test_all_are_only_when_every_rank_is() -> None:
    progress = group(2)
    progress.heard(0, Pulse(9, 0.0, 4, stop.SAVED, 1), 1001.0)
    assert not progress.all_are(stop.SAVED)
    progress.heard(1, Pulse(9, 0.0, 4, stop.SAVED, 1), 1001.0)
    assert progress.all_are(stop.SAVED)


def test_batches_beat_before_and_after_they_are_waited_for() -> None:
    watchdog.beat("loading", 7)
    began, seen = watchdog.pulse().beats, []
    for batch in watchdog.fed(iter("ab")):
        seen.append((batch, watchdog.pulse().doing, watchdog.pulse().step))
    assert seen == [("a", UPDATE, 7), ("b", UPDATE, 7)]
    assert watchdog.pulse().doing == DATA and watchdog.pulse().beats == began + 5 and watchdog.pulse().updates == 0
    watchdog.updated(8)
    assert watchdog.pulse().step == 8 and watchdog.pulse().updates == 1


def test_stacks_name_the_threads_and_the_functions_they_are_in() -> None:
    found = watchdog.stacks()
    assert "MainThread" in found and "test_stacks_name_the_threads_and_the_functions_they_are_in" in found


@pytest.fixture
def stopped_child() -> Iterator[subprocess.Popen[str]]:
    code = "import time\ndef stuck_here():\n    print('in', flush=True)\n    time.sleep(60)\nstuck_here()"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "in\n"
    child.send_signal(signal.SIGSTOP)
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_the_stacks_of_a_stopped_process_are_read_from_outside(stopped_child: subprocess.Popen[str]) -> None:
    found = watchdog.stacks_from_outside(stopped_child.pid)
    assert "stuck_here" in found


def test_where_stacks_cannot_be_read_the_reason_is_said(stopped_child: subprocess.Popen[str]) -> None:
    stopped_child.kill()
    stopped_child.wait()
    assert f"could not read process {stopped_child.pid}" in watchdog.stacks_from_outside(stopped_child.pid)


# ---- a place for the group ----------------------------------------------------------------------------------------------------

SMALL, LARGE = Nodes({"CPU": 2.0, "memory": 1e9}, 1), Nodes({"CPU": 8.0, "GPU": 1.0}, 1)
TWO_GPUS = Request(2, {"CPU": 4.0, "GPU": 1.0})


def test_halves_on_two_nodes_do_not_hold_a_worker() -> None:
    assert workers_that_fit([SMALL, SMALL], {"CPU": 4.0, "GPU": 0.0}) == 0
    assert workers_that_fit([SMALL, LARGE, LARGE], {"CPU": 3.0, "GPU": 0.0}) == 4
    assert workers_that_fit([LARGE], {"CPU": 1.0, "GPU": 0.5}) == 2
    assert workers_that_fit([Nodes({"CPU": 8.0}, float("inf"))], {"CPU": 1.0}) == float("inf")


def test_what_can_never_be_placed_fails_within_a_minute_with_both_sides_named() -> None:
    assert "given up 30 s from now" in placed_or_raise(TWO_GPUS, [SMALL, LARGE], [], 0.0, 1200.0)
    with pytest.raises(PlanError) as failed:
        placed_or_raise(TWO_GPUS, [SMALL, LARGE], [], 45.0, 1200.0)
    assert "2 workers of 4 CPUs, 1 GPU each can never be placed" in failed.value.problem
    assert "1 x (2 CPUs), 1 x (8 CPUs, 1 GPU), and no autoscaler" in failed.value.problem
    with pytest.raises(PlanError, match=r"may grow to 1 x gpu_train \(8 CPUs, 1 GPU\)"):
        placed_or_raise(TWO_GPUS, [SMALL], [Nodes(LARGE.resources, 1, "gpu_train")], 45.0, 1200.0)


def test_what_can_come_is_waited_for_with_a_line_and_not_for_ever() -> None:
    grown = [Nodes(LARGE.resources, 4, "gpu_train")]
    assert placed_or_raise(TWO_GPUS, [SMALL], grown, 0.0, 1200.0) == ""
    line = placed_or_raise(TWO_GPUS, [SMALL], grown, 100.0, 1200.0)
    assert "4 x gpu_train (8 CPUs, 1 GPU)" in line and "room for 0 so far" in line and "1100 s left" in line
    assert "others hold them" in placed_or_raise(TWO_GPUS, [LARGE, LARGE], [], 100.0, 1200.0)
    with pytest.raises(PlanError, match="found no place within 1200 s") as failed:
        placed_or_raise(TWO_GPUS, [SMALL], grown, 1201.0, 1200.0)
    assert failed.value.where == "cluster.start_timeout_s"


def test_equal_nodes_are_counted_together_and_budgets_are_named() -> None:
    assert said_of([SMALL, LARGE, SMALL]) == "2 x (2 CPUs), 1 x (8 CPUs, 1 GPU)" and said_of([]) == "no node"
    assert restart_line(True, 1, None, "node ab") == "workers restart after a preempted node (1): node ab"
    assert restart_line(False, 2, 3, "died") == "workers restart after a failure (2 of 3): died"


# ---- stops --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "_asked", stop.NOTHING)


def _rank(rank: int, folder: str, asked_of: int, answers: "torch.multiprocessing.SimpleQueue") -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = [stop.agreed(torch.device("cpu"))]
    if rank == asked_of:
        stop.ask(stop.PREEMPTION)
    found.append(stop.agreed(torch.device("cpu")))
    if rank == asked_of:
        stop.ask(stop.STOP)
        stop.ask(stop.PREEMPTION)
    found.append(stop.agreed(torch.device("cpu")))
    answers.put((rank, found))
    dist.destroy_process_group()


def test_all_ranks_learn_at_the_same_step_what_one_was_told(tmp_path: object) -> None:
    context = torch.multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    answers = context.SimpleQueue()
    children = [context.Process(target=_rank, args=(rank, str(tmp_path), 0, answers)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    found = dict(answers.get() for _ in children)
    assert found[0] == found[1] == [stop.NOTHING, stop.PREEMPTION, stop.STOP]


def test_a_stop_raises_its_way_out_and_a_preemption_waits_to_be_ended(unasked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(stop.Stopped) as out:
        stop.leave(stop.STOP, 7)
    assert out.value.step == 7
    monkeypatch.setattr(stop, "MOVED_WITHIN_S", 0.01)
    with pytest.raises(TimeoutError, match="saved step 8"):
        stop.leave(stop.PREEMPTION, 8)
    assert watchdog.pulse().doing == stop.SAVED and watchdog.pulse().step == 8


def test_what_is_said_to_be_saved_is_what_lies_in_the_store() -> None:
    for saved, said in ((7, "of 9, which is saved"), (4, "of 9, of which step 4 is saved"), (0, "of 9, and nothing is saved")):
        assert stopped_by_wish(7, saved, 9, "drill").problem == f"stopped at step 7 {said}"


def test_a_run_that_was_stopped_is_killed_and_one_that_failed_has_failed() -> None:
    assert StoppedError.exit_code == 143
    assert track.status_of(StoppedError("stopped at step 4", "submit again", "drill")) == "KILLED"
    assert track.status_of(SystemExit(143)) == "KILLED"
    assert track.status_of(StageError("a", "b", "c")) == "FAILED" == track.status_of(ValueError("x"))
    wrapped = RuntimeError(f"ray.exceptions.RayTaskError\nmedschool.errors.StoppedError: {StoppedError('p', 'r', 'w')}")
    assert track.status_of(wrapped) == "KILLED"


@dataclass
class Busy:
    """A board for the driver's side: something saves until it has been asked `saves` times."""

    saves: int
    asked: int = 0
    lines: list[str] = field(default_factory=list)

    def ask_to_stop(self) -> None:
        self.asked += 1

    def saves_at_stop(self) -> bool:
        self.saves -= 1
        return self.saves >= 0

    def put(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize("saves", [0, 3])
def test_sigterm_waits_for_what_saves_and_then_ends_with_143(saves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "LINGER_S", 0.1)
    board, before = Busy(saves), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, stopping.stopping(board):  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
    assert ended.value.code == 143 and board.asked == 1 and board.saves < 0
    assert len(board.lines) == (saves > 0) and signal.getsignal(signal.SIGTERM) is before


def test_a_second_sigterm_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    board, began = Busy(10**6), time.monotonic()
    with pytest.raises(SystemExit), stopping.stopping(board):  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
    assert time.monotonic() - began < 10


def test_a_block_that_ends_by_itself_is_not_killed_afterwards() -> None:
    with stopping.stopping(Busy(3)):  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    time.sleep(3 * stopping.ASK_EVERY_S + 0.2)
