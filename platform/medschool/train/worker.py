"""What one training worker does from start to end: engine, state, steps, export. It knows torch.distributed, and no Ray."""

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa

from medschool.errors import StageError
from medschool.ledger import Ledger
from medschool.track import read_journal
from medschool.train import stop
from medschool.train.capability import untried
from medschool.train.checkpoint import Position
from medschool.train.course import JOURNAL, Course
from medschool.train.engine import build_engine
from medschool.train.export import export
from medschool.train.guard import Skipped, watch_of
from medschool.train.handout import HandOut, Measure
from medschool.train.identity import check_resumable
from medschool.train.layout import layout_of_group
from medschool.train.loop import train
from medschool.train.preflight import preflight
from medschool.train.proof import Remembered
from medschool.train.record import Record, Show
from medschool.train.resume import load_state
from medschool.train.saving import Saver, of_all_ranks
from medschool.train.skips import on_skip
from medschool.train.staging import staging_folder
from medschool.train.start import Start
from medschool.train.throughput import Meter
from medschool.train.watchdog import beat, updated
from medschool.train.watchdog import fed as watched


def work(
    course: Course,
    ledger: Ledger,
    start: Start,
    batches: Iterable[pa.Table],
    rank: int,
    world_size: int,
    say: Callable[[str], None],
    report: Callable[[dict[str, float]], None],
    show: Show | None = None,
    measure: Measure | None = None,
    began_s: float | None = None,
) -> dict[str, Any] | None:
    """Train from `start` to the end; rank 0 returns what the driver records. `batches` gives this rank's slices from there on.

    `show` is given the numbers of each step on rank 0, `measure` copies of the weights (give it to every rank); `began_s` is when
    the first of all attempts began (time.time).
    Raises StageError when the feed ends early, or what was consumed is not what was planned.
    """
    began_s = began_s or time.time()
    staged = ExitStack()
    meter, scratch = Meter(began_s), staged.enter_context(staging_folder())
    try:
        beat("loading", start.step)
        check_resumable(start, course, ledger)
        with meter.part("start"):
            checked = preflight(layout_of_group(), rank)
            for line in checked.lines() if checked and rank == 0 else []:
                say(line)
            engine = build_engine(course, world_size)
            for line in untried(course.recipe, course.spec) if rank == 0 else []:
                say(line)
            if start.state_uri:
                ledger = load_state(engine, start, ledger, rank, scratch, say)
        fed = Remembered(watched(batches))
        saver = Saver(engine, course, rank, world_size, scratch, say)
        hand_out = HandOut(engine, course, rank, scratch, measure, say)
        with Record(course, meter, scratch / JOURNAL, rank, say, show) as record, saver, hand_out:
            record.begin(engine, world_size, began_s)
            skip = on_skip(course, rank, say)
            ledger = _steps(engine, course, start, ledger, fed, world_size, scratch, record, saver, hand_out, report, skip)
        beat("exporting")
        return export(engine, course, ledger, fed.last, rank, scratch)
    except stop.Stopped as stopped:
        return {"stopped_at": stopped.step}
    finally:
        staged.close()


def _steps(
    engine: Any,
    course: Course,
    start: Start,
    ledger: Ledger,
    batches: Iterable[pa.Table],
    world_size: int,
    scratch: Path,
    record: Record,
    saver: Saver,
    hand_out: HandOut,
    report: Callable[[dict[str, float]], None],
    skip: Callable[[Skipped], None],
) -> Ledger:
    """All steps, saving state on the way; the ledger of all ranks."""
    every, told = course.recipe.cluster.checkpoint_every_steps, course.report_every_steps
    losses = _since_report(scratch, start.step, told) if told else []
    done = start.step
    watch = watch_of(course.spec.guard, ledger, read_journal((scratch / JOURNAL).read_bytes()), start.passed_over)
    for step in train(engine, batches, course.order, start.batch_index, start.step, course.steps, watch, skip):
        done, ledger = step.step, ledger.after(step.batch, step.rows)
        losses.append(step.loss)
        record.step(step, len(ledger.skipped), saver.failures)
        updated(step.step)
        wish = stop.agreed(engine.device) if step.step < course.steps else stop.NOTHING
        if (wish or step.step % every == 0) and step.step < course.steps:
            with record.part("checkpoint"):
                saver.save(Position(step.batch + 1, step.step), ledger)
        if wish:
            saver.wait()
            stop.leave(wish, step.step)
        if hand_out.due(step.step):
            with record.part("handout"):
                hand_out.give(step.step)
        if told and step.step % told == 0 and step.step < course.steps:
            with record.part("report"):
                report({"step": step.step, "loss": sum(losses) / len(losses)})  # Ray takes one a poll: a step would wait
            losses.clear()
    if done != course.steps:
        raise StageError(f"{done} of {course.steps} steps were trained", "the data feed ended early: see the log", course.trial)
    ledger = of_all_ranks(ledger, world_size)
    ledger.check(course.steps, course.trial)
    return ledger


def _since_report(scratch: Path, step: int, every: int) -> list[float]:
    """Losses of a resumed run's steps that no report has told yet."""
    journal = scratch / JOURNAL
    told = step // every * every
    return [point["loss"] for point in read_journal(journal.read_bytes()) if point["step"] > told] if journal.exists() else []
