"""What one training worker does from start to end: engine, state, steps, export. It knows torch.distributed, and no Ray."""

import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from medschool.errors import StageError
from medschool.ledger import Ledger
from medschool.track import Journal, read_journal
from medschool.train.checkpoint import Position
from medschool.train.course import Course
from medschool.train.engine import build_engine
from medschool.train.export import export
from medschool.train.loop import train
from medschool.train.model import DTYPES
from medschool.train.resume import load_state
from medschool.train.saving import JOURNAL, of_all_ranks, save_state


def work(
    course: Course,
    ledger: Ledger,
    start: Position,
    batches: Iterable[pa.Table],
    rank: int,
    world_size: int,
    say: Callable[[str], None],
    report: Callable[[dict[str, float]], None],
) -> dict[str, Any] | None:
    """Train from `start` to the end; rank 0 returns what the driver records. `batches` gives this rank's slices from there on.

    Raises StageError when the feed ends early, or what was consumed is not what was planned.
    """
    scratch = Path(tempfile.mkdtemp(prefix="medschool-train-"))
    try:
        engine = build_engine(course, world_size)
        if start.state_uri:
            ledger = load_state(engine, start, ledger, rank, scratch, say)
        ledger = _steps(engine, course, start, ledger, batches, rank, world_size, scratch, say, report)
        return export(engine, course, ledger, rank, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _steps(
    engine: Any,
    course: Course,
    start: Position,
    ledger: Ledger,
    batches: Iterable[pa.Table],
    rank: int,
    world_size: int,
    scratch: Path,
    say: Callable[[str], None],
    report: Callable[[dict[str, float]], None],
) -> Ledger:
    """All steps, saving state on the way; the ledger of all ranks."""
    every, told = course.recipe.cluster.checkpoint_every_steps, course.report_every_steps
    losses = _since_report(scratch, start.step, told) if told else []
    done, dtype = start.step, DTYPES[course.recipe.model.dtype]
    with Journal(scratch / JOURNAL, course.mlflow_run if rank == 0 else None, f"{course.phase}/") as journal:
        for step in train(engine, batches, course.order, start.batch_index, start.step, dtype):
            done, ledger = step.step, ledger.after(step.batch, step.rows)
            losses.append(step.loss)
            if rank == 0:
                told_elsewhere = ("step", "batch", "rows")
                journal.log(step.step, {key: value for key, value in asdict(step).items() if key not in told_elsewhere})
                say(
                    f"step {step.step}/{course.steps}  loss {step.loss:.4f}  lr {step.lr:.2e}  "
                    f"{step.tokens / step.step_s:.0f} tokens/s"
                )
            if step.step % every == 0 and step.step < course.steps:
                save_state(engine, course, Position(step.batch + 1, step.step), ledger, rank, world_size, scratch)
            if told and step.step % told == 0 and step.step < course.steps:
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
