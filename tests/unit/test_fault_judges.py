"""What the drills of node, head and store plan, and how they judge: every difference from what is promised is a FAIL."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from medschool.cluster import head_drill, node_drill, store_drill
from medschool.cluster.drill import Trained
from medschool.cluster.fault_outcome import FaultOutcome
from medschool.cluster.head_drill import Moments
from medschool.cluster.node_drill import Losing, Times, times
from medschool.cluster.slice import tiny_slice
from medschool.cluster.strike import Said, restarts
from medschool.cluster.traffic import Outcome
from medschool.commands.drill import app
from medschool.errors import PlanError
from medschool.recipe import load
from medschool.train.course import Course

RECIPE = load(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")
STEPS = 8
CALM = Trained({step: 3.0 - step / 10 for step in range(1, STEPS + 1)}, 4.0, "aa", b"{}", 5.0)


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    store = str(tmp_path_factory.mktemp("store"))
    return tiny_slice(node_drill.for_own_cluster(RECIPE, STEPS), store, f"{store}/drills/x", STEPS)[0]


def step(number: int, at_s: float) -> Said:
    return Said(f"step {number}/{STEPS}  loss 2.0", at_s)


# ---- what is heard


def test_a_restart_is_between_the_last_step_before_and_the_first_after() -> None:
    said = [step(1, 1.0), step(2, 2.0), step(3, 3.0), Said("resuming at step 2 from x", 8.0), step(3, 9.0), step(4, 10.0)]
    (found,) = restarts([*said[2:], *said[:2]])
    assert (found.step, found.resumed_step, found.lost_steps, found.said_s, found.stepped_s) == (3, 2, 1, 3.0, 9.0)


def test_a_group_that_starts_twice_before_its_first_step_is_one_restart_and_a_saved_one_loses_nothing() -> None:
    again = [Said("resuming at step 2 from x", 3.0), Said("resuming at step 2 from x", 5.0)]
    (found,) = restarts([step(1, 1.0), step(2, 2.0), *again, step(3, 6.0)])
    assert found.lost_steps == 0 and restarts([step(1, 1.0), *again]) == [] == restarts([])


def test_a_fresh_start_after_steps_is_a_restart_from_nothing() -> None:
    (found,) = restarts([step(1, 1.0), step(2, 2.0), step(1, 3.0)])
    assert (found.resumed_step, found.lost_steps) == (0, 2)


# ---- a node


@pytest.mark.parametrize("steps", [8, 9, 12, 16, 31, 32, 64, 1000])
def test_the_node_goes_and_another_comes_between_two_checkpoints(steps: int) -> None:
    found = times(steps)
    assert found.every <= found.lost_at < found.back_at < steps and found.lost_at // found.every < found.back_at // found.every
    assert found.lost_at % found.every and found.back_at % found.every


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(PlanError, match="7 steps are too few"):
        times(7)
    with pytest.raises(PlanError, match="5 steps are too few"):
        store_drill.every_of(5)


def judged(course: Course, loss: Any = "node", said: Any = None, **changed: Any) -> FaultOutcome:
    """A drill in which the node went at 3.1 s and training went on from the checkpoint of step 2."""
    heard = [
        *(step(number, float(number)) for number in (1, 2, 3)),
        Said("workers restart after a preempted node (1): node 1 with rank 1", 4.0),
        Said("resuming at step 2 from x", 5.0),
        *(step(number, 5.0 + number) for number in range(3, STEPS + 1)),
    ]
    losing: Losing = SimpleNamespace(times=Times(2, 3, 7), struck=changed.pop("struck", [3, 7]), lost_s=3.1)  # type: ignore[assignment]
    sizes = changed.pop("sizes", [2, 1, 2])
    drilled = dataclasses.replace(CALM, **changed)
    return node_drill.judge(loss, course, CALM, drilled, losing, said or heard, sizes, grows=True)


def test_a_lost_node_costs_the_steps_since_the_checkpoint_and_no_more(course: Course) -> None:
    found = judged(course)
    assert (found.result, found.reasons, found.lost_steps) == ("PASS", (), 1)
    assert found.recovery_s == pytest.approx(8.0 - 3.1) and found.lost_tokens == course.order.batch_rows * 64
    assert json.loads(json.dumps(found.as_json()))["workers"] == [2, 1, 2]
    assert found.lines()[0] == "PASS  node" and any(line.endswith("2 -> 1 -> 2") for line in found.lines())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"struck": [3]}, "none came back"),
        ({"sizes": [2, 1]}, "the groups had [2, 1] workers"),
        ({"ledger": b"{ }"}, "the ledgers differ"),
        ({"losses": CALM.losses | {1: 2.9 + 1e-9}}, "before the number of workers changed"),
        ({"losses": CALM.losses | {8: 2.3}}, "a loss differs by"),
        ({"losses": {1: 2.9}}, "a loss differs by inf"),
        ({"said": [step(1, 1.0), step(2, 2.0)]}, "training did not go on"),
        ({"said": [step(number, float(number)) for number in (1, 2, 3, 1, 2)]}, "3 steps were lost, allowed are 2"),
    ],
)
def test_every_difference_is_a_fail(course: Course, changed: dict[str, Any], reason: str) -> None:
    changed = (
        {"said": [Said(line.line, float(place)) for place, line in enumerate(changed["said"])]} if "said" in changed else changed
    )
    found = judged(course, **changed)
    assert found.result == "FAIL" and any(reason in told for told in found.reasons), found.reasons
    assert any(reason in line for line in found.lines()) and "NaN" not in json.dumps(found.as_json(), allow_nan=False)


def test_with_notice_no_step_may_be_lost_and_no_failure_counted(course: Course) -> None:
    saved = [step(1, 1.0), step(2, 2.0), step(3, 3.0), step(4, 3.2)]
    moved = Said("workers restart after a preempted node (1): node 1", 5.0)
    went_on = [Said("resuming at step 4 from x", 6.0), step(5, 7.0)]
    assert judged(course, "preempt", [*saved, moved, *went_on]).reasons == ()
    assert "1 steps were lost, allowed are 0" in judged(course, "preempt").reasons
    failed = Said("workers restart after a failure (1 of 3): rank 1", 5.0)
    assert any(
        "charged to cluster.max_failures" in told for told in judged(course, "preempt", [*saved, failed, *went_on]).reasons
    )
    late = Said(moved.line, 3.1 + node_drill.DEADLINE_S + 1)
    after = [Said(line.line, line.at_s + 40) for line in went_on]
    assert any("it had not moved" in told for told in judged(course, "preempt", [*saved, late, *after]).reasons)


# ---- the head

AT = Moments(lost_s=10.0, started_s=18.0, killed_s=40.0, answers_s=35.0, healed_s=45.0)
ANSWERED = [Outcome(float(second), 0.1, 200, "") for second in range(50)]
AT_HEAD = [Outcome(float(second), 0.1, 0 if 10 <= second < 35 else 200, "") for second in range(50)]


def test_answers_beside_a_lost_head_are_counted() -> None:
    found = head_drill.judge(AT, {1, 2}, {1, 2}, AT_HEAD, ANSWERED)
    assert (found.reasons, found.recovery_s, found.requests, found.requests_failed) == ((), 25.0, 40, 0)
    assert found.seen["requests_while_away"] == 7 and found.seen["requests_failed_at_the_head"] == 25
    assert found.seen["replica_replaced_s"] == 5.0 and "job drivers" in found.seen["ends"]


@pytest.mark.parametrize(
    ("at", "after", "at_head", "at_node", "reason"),
    [
        (AT, {1, 2}, AT_HEAD, [*ANSWERED, Outcome(20.0, 60.0, 0, "ReadTimeout: x")], "1 requests failed on a node that was not lost, first: 0 ReadTimeout"),
        (AT, {1, 3}, AT_HEAD, ANSWERED, "replicas ended with the head: [2]"),
        (AT, {1, 2}, ANSWERED, ANSWERED, "it was not away"),
        (AT, {1, 2}, AT_HEAD, ANSWERED[:10], "no request was asked while the head was away"),
        (dataclasses.replace(AT, answers_s=None), {1, 2}, AT_HEAD, ANSWERED, "the head's proxy did not answer"),
        (dataclasses.replace(AT, healed_s=None), {1, 2}, AT_HEAD, ANSWERED, "was not replaced"),
    ],
)  # fmt: skip
def test_what_the_head_takes_along_is_a_fail(at: Moments, after: set[int], at_head: Any, at_node: Any, reason: str) -> None:
    found = head_drill.judge(at, {1, 2}, after, at_head, at_node)
    assert found.result == "FAIL" and any(reason in told for told in found.reasons), found.reasons


def test_requests_after_the_replica_was_killed_on_purpose_are_not_the_head_s() -> None:
    assert head_drill.judge(AT, {1}, {1}, AT_HEAD, [*ANSWERED, Outcome(41.0, 0.1, 500, "replica_died")]).reasons == ()


# ---- the store


def stored(course: Course, damaged: list[str] | None = None, said: list[Said] | None = None, **changed: Any) -> FaultOutcome:
    """A drill in which the store was away from 3.5 to 9 s, and the checkpoint of step 4 fell due."""
    values = {"lost_s": 3.5, "back_s": 9.0, "written_s": 9.5, "struck": [3], "problem": "does not answer", "due": 4}
    away: store_drill.Silencing = SimpleNamespace(
        **values | {name: changed.pop(name) for name in list(changed) if name in values}
    )  # type: ignore[assignment]
    heard = [step(number, number + (6.0 if number > 6 else 0.0)) for number in range(1, STEPS + 1)]
    return store_drill.judge(course, CALM, dataclasses.replace(CALM, **changed), away, said or heard, damaged or [])


def test_a_store_that_was_away_costs_time_and_nothing_else(course: Course) -> None:
    found = stored(course)
    assert (found.reasons, found.recovery_s, found.lost_steps, found.lost_tokens) == ((), 0.5, 0, 0)
    assert (found.seen["steps_while_away"], found.seen["longest_pause_s"], found.seen["away_s"]) == (3, 7.0, 5.5)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"struck": []}, "the store was not lost"),
        ({"back_s": 0.0}, "did not come back"),
        ({"problem": ""}, "answered while it was away"),
        ({"due": 7}, "no checkpoint fell due while it was away: step 7"),
        ({"written_s": 0.0}, "was not written afterwards"),
        ({"damaged": ["the checkpoint of step 4: sha256"]}, "the checkpoint of step 4: sha256"),
        ({"sha256": "bb"}, "the weights differ"),
        ({"ledger": b"{ }"}, "the ledgers differ"),
        ({"losses": CALM.losses | {8: math.nextafter(CALM.losses[8], 9)}}, "a loss differs"),
        ({"said": [step(1, 1.0), step(4, 4.0), Said("checkpoint of step 4 not saved: x", 5.0)]}, "a checkpoint was given up"),
        ({"said": [step(1, 1.0), step(4, 4.0), step(3, 5.0)]}, "workers started again 1 times"),
    ],
)
def test_what_an_outage_costs_beyond_time_is_a_fail(course: Course, changed: dict[str, Any], reason: str) -> None:
    found = stored(course, **changed)
    assert found.result == "FAIL" and any(reason in told for told in found.reasons), found.reasons


# ---- the commands


@pytest.mark.parametrize("verb", ["preempt", "node", "head", "store"])
def test_every_drill_has_help_with_an_example(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, "--help"])
    assert shown.exit_code == 0 and f"Example: medschool drill {verb}" in " ".join(shown.output.split())


@pytest.mark.parametrize(("verb", "why"), [("node", "without notice"), ("head", "drivers"), ("store", "everybody")])
def test_what_would_harm_others_is_refused_on_a_running_cluster(verb: str, why: str) -> None:
    refused = CliRunner().invoke(app, [verb, "--cluster"]).exception
    assert isinstance(refused, PlanError) and why in refused.problem and "--cluster" in refused.remedy
