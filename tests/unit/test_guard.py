"""Which updates are made, and what is kept of those that are not, against plain sums; memory that runs out, for real."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import RECIPE

from medschool import storage
from medschool.errors import StageError
from medschool.ledger import Ledger
from medschool.recipe import load
from medschool.recipe.training import Guard
from medschool.tokens.order import Order
from medschool.train.course import Course
from medschool.train.group_end import GroupEnds
from medschool.train.guard import Measured, Skipped, Verdict, Watch, watch_of
from medschool.train.memory import START, Shortage, fitted, note_shortage, out_of_memory_told, rows_after, shortages, told_by
from medschool.train.skips import on_skip, passed_over
from medschool.train.zero import micro_batch_rows

SPEC = Guard(spike_sigmas=3.0, window_steps=8, rollback_after=3, max_skipped_batches=5)
CHANGES = {20: {"x": 1}, 33: {"x": 2}}
ORDER = Order({"x": 1}, 20, {"x": (64,)}, 1, {}, CHANGES)
numbers = st.one_of(st.floats(1.0, 3.0), st.sampled_from([3.5, 5.0, 50.0, math.inf, -math.inf, math.nan]))
batches = st.lists(st.tuples(numbers, numbers).map(lambda pair: Measured(*pair)), min_size=20, max_size=60)


def judged(found: list[Measured], watch: Watch) -> list[tuple[Verdict, Watch]]:
    """The verdicts on batches 0, 1, ..., with the guard after each."""
    steps = []
    for batch, measured in enumerate(found):
        watch = watch.before(batch, CHANGES)
        verdict = watch.judge(measured)
        watch = watch.after(batch, measured, verdict)
        steps.append((verdict, watch))
    return steps


def oracle(found: list[Measured]) -> list[str]:
    """The kinds of the verdicts, each from all that came before, with numpy."""
    kinds: list[str] = []
    for batch, measured in enumerate(found):
        since = max((change for change in CHANGES if change <= batch), default=0)
        applied = [found[seen] for seen in range(since, batch) if kinds[seen] == "applied"][-SPEC.window_steps :]
        spike = False
        for name in ("loss", "grad_norm"):
            seen = np.array([getattr(one, name) for one in applied])
            if len(seen) == SPEC.window_steps and math.isfinite(getattr(measured, name)):
                spike |= bool(getattr(measured, name) > seen.mean() + 3.0 * seen.std(ddof=1) * (1 + 1e-12))
        finite = bool(np.isfinite([measured.loss, measured.grad_norm]).all())
        kinds.append("not finite" if not finite else "spike" if spike else "applied")
    return kinds


@settings(deadline=None, max_examples=60)
@given(batches)
def test_verdicts_are_those_of_plain_statistics(found: list[Measured]) -> None:
    steps = judged(found, Watch(SPEC))
    assert [verdict.kind for verdict, _ in steps] == oracle(found)
    assert steps[-1][1].skipped == {batch for batch, (verdict, _) in enumerate(steps) if not verdict.applied}
    assert all(verdict.reason for verdict, _ in steps if not verdict.applied)


def test_one_spike_is_one_and_does_not_hide_the_next() -> None:
    calm = [Measured(2.0 + 0.01 * (step % 5), 1.0 + 0.01 * (step % 3)) for step in range(19)]
    found = [*calm[:12], Measured(100.0, 1.0), Measured(2.0, 40.0), Measured(90.0, 1.0), *calm[12:15]]
    steps = judged(found, Watch(SPEC))
    assert [batch for batch, (verdict, _) in enumerate(steps) if verdict.kind == "spike"] == [12, 13, 14]
    assert "loss 100 is over" in steps[12][0].reason and "gradient norm 40 is over" in steps[13][0].reason
    assert all(verdict.applied for verdict, _ in judged(found, Watch(SPEC.model_copy(update={"spike_sigmas": None}))))
    assert all(verdict.applied for verdict, _ in judged(found[5:], Watch(SPEC.model_copy(update={"window_steps": 9}))))


@settings(deadline=None, max_examples=40)
@given(batches, st.integers(1, 59))
def test_a_resumed_run_decides_as_one_that_was_not_stopped(found: list[Measured], cut: int) -> None:
    """The guard made from the ledger and the journal of any update is the one that had gone on, up to what follows no update."""
    steps = judged(found, Watch(SPEC))
    updates = [batch for batch, (verdict, _) in enumerate(steps) if verdict.applied and batch < cut]
    ledger, lines = Ledger(ORDER, 4, {"x": "d"}, "m"), []
    for batch in updates:
        ledger = ledger.after(batch, {"x": 20})
        lines.append({"step": len(lines) + 1, "loss": found[batch].loss, "grad_norm": found[batch].grad_norm})
    resumed = watch_of(SPEC, ledger, json.loads(json.dumps(lines)), [])
    assert resumed.before(ledger.batches, CHANGES) == (steps[updates[-1]][1] if updates else Watch(SPEC)).before(
        ledger.batches, CHANGES
    )


def test_only_numbers_that_are_not_finite_and_follow_each_other_roll_back() -> None:
    nan, good = Measured(math.nan, 1.0), Measured(2.0, 1.0)
    assert [watch.must_roll_back for _, watch in judged([nan, nan, good, nan, nan, nan], Watch(SPEC))] == [False] * 5 + [True]
    assert [watch.too_many for _, watch in judged([nan] * 6, Watch(SPEC))] == [False] * 5 + [True]


@pytest.fixture
def course(tmp_path: Path) -> Course:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE)
    settings = ["pretrain.guard.max_skipped_batches=5", "pretrain.batch_rows=20", "cluster.micro_batch_tokens=640"]
    run = str(tmp_path / "run")
    return Course(load(recipe, settings), "pretrain", "x", None, ORDER, 9, run, f"{run}/attempt-1", None)  # type: ignore[arg-type]


def skipped(found: list[Measured], passed: tuple[int, ...] = ()) -> Skipped:
    watch = judged(found, Watch(SPEC, skipped=frozenset(passed)))[-1]
    return Skipped(len(found) - 1, 1, found[-1], watch[0], watch[1])


def test_a_skipped_batch_is_kept_with_the_place_of_every_row(course: Course) -> None:
    said: list[str] = []
    on_skip(course, 0, said.append)(skipped([Measured(2.0, 1.0), Measured(math.nan, 3.0)]))
    on_skip(course, 1, said.append)(skipped([Measured(math.nan, 3.0)]))
    (line,) = said
    (kept,) = storage.list_files(f"{course.run_uri}/skipped")
    record = json.loads(storage.read_bytes(kept.uri))
    assert kept.uri in line and "batch 1" in line and "loss nan" in line
    assert record["rows"] == [[ref.source, ref.shard, ref.row] for ref in ORDER.batch(1)] and len(record["rows"]) == 20
    assert (record["batch"], record["kind"], record["loss"], record["grad_norm"]) == (1, "not finite", None, 3.0)


def test_three_in_a_row_end_the_group_and_are_passed_over_on_every_rank_alike(course: Course) -> None:
    for rank in (1, 0):
        with pytest.raises(GroupEnds) as end:
            on_skip(course, rank, lambda line: None)(skipped([Measured(2.0, 1.0)] + [Measured(2.0, math.inf)] * 3))
        assert end.value.error is None and "batches 1, 2, 3" in end.value.reason
        assert passed_over(course.run_uri) == ((1, 2, 3) if rank == 0 else ())


def test_too_many_end_the_run_and_are_named(course: Course) -> None:
    with pytest.raises(GroupEnds) as end:
        on_skip(course, 0, lambda line: None)(skipped([Measured(2.0, math.inf)], (3, 4, 5, 6, 7)))
    error = end.value.error
    assert isinstance(error, StageError) and "0, 3, 4, 5, 6, 7" in error.problem and "max_skipped_batches" in error.remedy


@given(st.integers(1, 64), st.integers(0, 8))
def test_a_micro_batch_is_halved_to_a_divisor_until_one_row_is_left(share: int, halvings: int) -> None:
    rows: int | None = share
    for _ in range(halvings):
        rows = None if rows in (None, 1) else next(r for r in range(rows // 2, 0, -1) if share % r == 0)
    assert rows_after(share, share, halvings) == rows


def test_every_shortage_halves_the_micro_batch_of_this_attempt_alone(course: Course) -> None:
    sizes = []
    while True:
        try:
            sizes.append(micro_batch_rows(fitted(course, shortages(course), 2).recipe, "pretrain", 2))
        except GroupEnds as end:
            assert end.error is not None and "one row" in end.error.problem and "5 GiB" in end.error.problem
            break
        note_shortage(course, START + "asked for 5 GiB")
    assert sizes == [10, 5, 2, 1]
    again = dataclasses.replace(course, prefix_uri=course.prefix_uri + "b")
    assert shortages(again) == () and shortages(course)[0] == Shortage(START + "asked for 5 GiB")


def test_memory_that_torch_does_not_get_is_told_with_its_numbers(course: Course) -> None:
    with pytest.raises(StageError) as told, out_of_memory_told(course, 1, 2):
        torch.empty(2**50, dtype=torch.uint8)
    problem = told.value.problem
    assert problem.startswith("out of memory: rank 1 asked for 1048576.00 GiB with a micro-batch of 10 rows of 64 tokens; host: ")
    assert "free, this worker held" in problem and "halve_on_oom" in told.value.remedy
    assert told_by(told.value) == problem
    with pytest.raises(RuntimeError, match="inconsistent"), out_of_memory_told(course, 1, 2):
        torch.ones(2) @ torch.ones(3)


class Died(Exception):
    """As Ray gives the death of a worker: the words, and another exception inside."""

    def __init__(self, inner: str) -> None:
        super().__init__("A worker health check failed.")
        self.health_check_failure: Any = RuntimeError(inner)


def test_a_worker_that_ray_killed_for_memory_is_told_from_one_that_died() -> None:
    words = (
        "The actor died.\n2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.2, ID: b7) was "
        "12.59GB used / 23.54GB limit (0.53)\nSelected to kill: (Actor(ca): task name=RayTrainWorker.__init__, pid=7, "
        "actual memory used=2.53GB, worker ID=15)\nRefer to the documentation on how to address the out of memory issue."
    )
    told = told_by(Died(words))
    assert told is not None and told.startswith("out of memory: 2 worker(s) were killed due to the node running low on memory.")
    assert "12.59GB used / 23.54GB limit" in told and told.endswith("; this worker held 2.53GB")
    assert told_by(Died("The actor died unexpectedly: SIGKILL")) is None
    assert told_by(StageError("the loss is no number", "x", "y")) is None
