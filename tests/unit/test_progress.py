"""How far a job is, read from its log: stages, trials, trainings, the time that is left; and what `status` makes of it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import RECIPE

from medschool.cluster import status
from medschool.cluster.bill import Node
from medschool.cluster.progress import plan_words, progress
from medschool.commands.status import lines
from medschool.gauges import counts_of
from medschool.recipe import load
from medschool.train.live import read_line, step_line

LOG = """\
Ray says something
[ 1/10] model                cached  parameters 60,000
[ 2/10] tokens/papers        run
[ 2/10] tokens/papers        done in 12.5 s  rows 3,000
study: 3 of 4 trials to run, 2 at once: control, knowledge, instructed
[ 3/10] evaluate/base        cached
[ 4/10] pretrain/control     run
[ 6/10] pretrain/knowledge   run
      control  step 24/24  loss 3.0000  lr 1.00e-04  900 tokens/s
[ 4/10] pretrain/control     done in 100.0 s  steps 24
[ 5/10] evaluate/control     run
      knowledge  step 11/24  loss 3.2000  lr 1.00e-03  1,000 tokens/s  59 s left
      knowledge  step 12/24  loss 3.1021  lr 1.00e-03  1,234 tokens/s  2 min left  waiting for data 31%  goodput 87%
"""
WORDS = (
    "model tokens/papers evaluate/base pretrain/control evaluate/control pretrain/knowledge evaluate/knowledge "
    "pretrain/instructed=pretrain/knowledge instruct/instructed evaluate/instructed"
)


def test_stages_and_trials_are_done_running_or_to_do() -> None:
    found = progress(LOG, WORDS)
    assert found.total == 10 and found.done == ("model", "tokens/papers", "evaluate/base", "pretrain/control")
    assert found.running == ("evaluate/control", "pretrain/knowledge")
    assert found.to_do == ("evaluate/knowledge", "pretrain/instructed", "instruct/instructed", "evaluate/instructed")
    assert found.trials == {"control": "running", "knowledge": "running", "instructed": "waiting", "base": "done"}
    assert found.seconds == {"tokens/papers": 12.5, "pretrain/control": 100.0}
    bare = progress(LOG)
    assert bare.total == 10 and set(bare.done) == set(found.done) and set(bare.running) == set(found.running) and bare.to_do == ()
    assert progress("no stage here\n", WORDS).total == 0


def test_a_training_says_how_it_goes() -> None:
    ((stage, shown),) = progress(LOG, WORDS).trainings.items()
    assert stage == "pretrain/knowledge" and (shown.step, shown.steps, shown.tokens_per_s) == (12, 24, 1234.0)
    assert (shown.left_s, shown.waiting, shown.goodput, shown.skipped) == (120.0, 0.31, 0.87, None)


def test_time_is_left_for_what_runs_and_what_will_run_and_never_guessed() -> None:
    assert progress(LOG, WORDS).left_s is None  # nobody knows how long an instruction tuning takes
    known = WORDS.replace("instruct/instructed", "instruct/base")
    assert progress(LOG + "[ 9/10] instruct/base  run\n[ 9/10] instruct/base  done in 50.0 s\n", known).left_s == 120.0
    more = f"{WORDS.replace('=pretrain/knowledge', '').replace(' instruct/instructed', '')}"
    assert progress(LOG.replace("/10]", "/9]"), more).left_s == 120.0 + 100.0  # not shared: as long as that of control
    assert progress(LOG).left_s is None


class Clock:
    """What `step_line` reads of a meter."""

    tokens_per_s, lap_s, waiting = 41260.4, 2.5, 0.31


@pytest.mark.parametrize("who", ["", "      knowledge-seed2  "])
@pytest.mark.parametrize(("step", "skipped", "goodput"), [(3, 0, None), (3, 2, 0.94), (63, 1, 1.0)])
def test_a_line_is_read_as_it_was_written(who: str, step: int, skipped: int, goodput: float | None) -> None:
    meter: Any = Clock()
    found = read_line(who + step_line(step, 63, 1.5, 1e-4, meter, skipped, goodput))
    assert found is not None and found.who == who.strip() and (found.step, found.steps, found.loss) == (step, 63, 1.5)
    assert (found.skipped or 0, found.goodput, found.waiting, found.tokens_per_s) == (skipped, goodput, 0.31, 41260)
    assert found.left_s == (120.0 if step == 3 else None)  # 150 s, said in minutes: half to even
    assert read_line("resuming at step 3/63") is None


def test_the_plan_of_a_recipe_names_what_is_trained_once(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    words = plan_words(load(tmp_path / "tiny.yaml")).split()
    assert "pretrain/instructed=pretrain/knowledge" in words and "pretrain/knowledge" in words and words[-1] == "verdict"
    assert len({word.partition("=")[0] for word in words}) == len(words)


def job(**more: Any) -> Any:
    told = {
        "submission_id": "tiny-1",
        "status": SimpleNamespace(value="RUNNING"),
        "start_time": 1000,
        "end_time": 7201_000,
        "metadata": {"stages": WORDS},
    }
    return SimpleNamespace(**told | more)


def test_status_adds_up_what_nodes_have_cost_and_will() -> None:
    nodes = [
        Node("gpu_train", True, 0.0, None, 30.0),
        Node("gpu_train", False, 0.0, 3601.0, 30.0),
        Node("head", True, 0.0, None, 0.5),
    ]
    found = status.of_job(job(), LOG, nodes)
    assert json.loads(json.dumps(found))["job"]["stages"]["done"][0] == "model"
    assert found["spend"]["so_far"] == pytest.approx(2 * 30 + 30 + 2 * 0.5) and found["spend"]["an_hour"] == 30.5
    text = "\n".join(lines(found))
    assert "4 of 10 done; running: evaluate/control, pretrain/knowledge; to do: evaluate/knowledge" in text
    assert "1 done (base), 2 running (control, knowledge), 1 waiting (instructed)" in text
    assert "step 12/24  loss 3.1021  1,234 tokens/s  2 min left  goodput 87%" in text
    assert "gpu_train: 1 there, 2 in all, 3.00 node-hours, 90.00 USD" in text and "91.00 USD since the job began" in text
    assert status.spend(found["nodes"], 7200.0)["projected"] == pytest.approx(91 + 2 * 30.5)
    assert status.spend(found["nodes"], None)["projected"] is None and status.spend([], 1.0)["so_far"] is None
    unpriced = status.of_job(job(), "", [Node("8 CPU", True, 0.0, None, None)])
    assert unpriced["spend"] == {"so_far": None, "an_hour": None, "projected": None} and "no price" in "\n".join(lines(unpriced))


def test_stages_count_whole_numbers_of_their_facts() -> None:
    facts = {
        "read": 9,
        "documents": 7,
        "dropped": {"licence": 2, "short": 0},
        "share": 0.5,
        "done": True,
        "fast_tokenizer": "yes",
    }
    assert counts_of(facts) == {"read": 9, "documents": 7, "dropped/licence": 2}


def test_a_trial_that_failed_runs_no_more() -> None:
    found = progress(LOG + "study: knowledge failed: rank 1: OutOfMemoryError (fix: less)\n", WORDS)
    assert found.failed == ("pretrain/knowledge",) and found.running == ("evaluate/control",) and found.trainings == {}
    assert found.trials["knowledge"] == "failed" and found.trials["control"] == "running"
    assert "1 failed (knowledge)" in "\n".join(lines(status.of_job(job(), LOG + "study: knowledge failed: x\n", [])))
