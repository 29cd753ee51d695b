"""What is kept of a skipped batch, and how a run goes past batches that it cannot train on.

    <run>/skipped/00000007.json     why batch 7 was skipped, the numbers, and where each of its rows lies: (source, shard, row)
    <run>/rollback/00000007.json    batches up to 7 that no worker group is fed any more

One skipped batch is only noted. Where `rollback_after` in a row gave no finite number, the weights themselves may be what is
broken: all ranks leave, the newest state is loaded, and those batches are not fed again. Both files are put only if absent, and a
run that is resumed reads the second kind, so it goes the same way however often it is stopped.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict

from medschool import storage
from medschool.errors import StageError
from medschool.tokens.order import Order
from medschool.train.course import Course
from medschool.train.group_end import GroupEnds
from medschool.train.guard import Skipped


def on_skip(course: Course, rank: int, say: Callable[[str], None]) -> Callable[[Skipped], None]:
    """What a worker does with a skipped batch: rank 0 notes it; all raise GroupEnds at a rollback, or when they are too many."""

    def skip(skipped: Skipped) -> None:
        spec, watch = course.spec.guard, skipped.watch
        if rank == 0:
            uri = note(course.run_uri, skipped, course.order)
            kept = f"{len(watch.skipped)} of {spec.max_skipped_batches} that may be"
            say(f"skipped batch {skipped.batch} before step {skipped.step}: {skipped.verdict.reason} ({kept}; its rows: {uri})")
        if watch.too_many:
            raise GroupEnds("too many batches were skipped", _too_many(course, skipped))
        if watch.must_roll_back:
            if rank == 0:
                pass_over(course.run_uri, watch.in_a_row)
            named = ", ".join(map(str, watch.in_a_row))
            raise GroupEnds(f"rolling back: batches {named} gave no finite loss or gradient, and are passed over from now on")

    return skip


def _too_many(course: Course, skipped: Skipped) -> StageError:
    batches = sorted(skipped.watch.skipped)
    return StageError(
        f"{len(batches)} batches were skipped, {course.spec.guard.max_skipped_batches} may be: {', '.join(map(str, batches))}; "
        f"the last one: {skipped.verdict.reason}",
        f"look at their rows in {storage.join(course.run_uri, 'skipped')}; lower {course.phase}.optimizer.lr, clean those "
        f"documents, or allow more with {course.phase}.guard.max_skipped_batches",
        course.trial,
    )


def note(run_uri: str, skipped: Skipped, order: Order) -> str:
    """Put the record of a skipped batch; its URI. A run that comes to the same batch again leaves it as it is."""
    uri = storage.join(run_uri, "skipped", f"{skipped.batch:08}.json")
    value = {
        "batch": skipped.batch,
        "before_step": skipped.step,
        "kind": skipped.verdict.kind,
        "reason": skipped.verdict.reason,
        **{name: value if math.isfinite(value) else None for name, value in asdict(skipped.measured).items()},
        "rows": [[ref.source, ref.shard, ref.row] for ref in order.batch(skipped.batch)],
    }
    storage.put_if_absent(uri, json.dumps(value).encode())
    return uri


def pass_over(run_uri: str, batches: tuple[int, ...]) -> None:
    """Name batches that are not fed from the next start of a worker group on."""
    uri = storage.join(run_uri, "rollback", f"{batches[-1]:08}.json")
    storage.put_if_absent(uri, json.dumps({"batches": batches}).encode())


def passed_over(run_uri: str) -> tuple[int, ...]:
    """All batches of a run that are not fed, ascending."""
    found = (json.loads(storage.read_bytes(info.uri)) for info in storage.list_files(storage.join(run_uri, "rollback")))
    return tuple(sorted({batch for value in found for batch in value["batches"]}))
