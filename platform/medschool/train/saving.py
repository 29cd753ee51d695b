"""Training state from the engine to the store: every rank puts its own files, rank 0 the manifest when all are there."""

import shutil
import uuid
from pathlib import Path
from typing import Any

from medschool.artifact import upload_folder
from medschool.ledger import LEDGER, Ledger, ledger_bytes
from medschool.train.checkpoint import Position, State, commit_state, prune_states, state_prefix
from medschool.train.course import Course

JOURNAL = "metrics.jsonl"
"""Measurements of every step, in the finished artifact; saved with each training state, so that a resumed run has all of them."""


def save_state(
    engine: Any, course: Course, position: Position, ledger: Ledger, rank: int, world_size: int, scratch: Path
) -> None:
    """Every rank uploads its own files under one attempt prefix; rank 0 commits the manifest when all are there."""
    import torch.distributed as dist

    attempt: list[Any] = [uuid.uuid4().hex[:12]]
    dist.broadcast_object_list(attempt)
    folder = scratch / attempt[0]
    engine.save_checkpoint(str(folder), tag="state", save_latest=False)
    ledger = of_all_ranks(ledger, world_size)
    if rank == 0:
        shutil.copyfile(scratch / JOURNAL, folder / JOURNAL)
        (folder / LEDGER).write_bytes(ledger_bytes(ledger.before(position.batch_index)))
    prefix = state_prefix(course.run_uri, position.step, attempt[0])
    files = upload_folder(prefix, folder)
    shutil.rmtree(folder)
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, files)
    if rank == 0:
        everything = tuple(file for part in gathered for file in part)
        commit_state(course.run_uri, State(position, world_size, course.recipe.cluster.zero_stage, prefix, everything))
        prune_states(course.run_uri)


def of_all_ranks(ledger: Ledger, world_size: int) -> Ledger:
    """The ledger with the counts of all ranks; every rank gets it."""
    import torch.distributed as dist

    counts: list[Any] = [None] * world_size
    dist.all_gather_object(counts, dict(ledger.rows))
    return ledger.of_all(counts)
