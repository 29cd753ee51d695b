"""Training state from the store into the engine: compared, verified, and only then opened."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medschool.errors import InputError, PlanError
from medschool.ledger import LEDGER, Ledger, go_on, parse_ledger
from medschool.train.checkpoint import Position, fetch_state, random_file, read_state, withdraw_state
from medschool.train.course import JOURNAL
from medschool.train.random_state import restore
from medschool.train.reshape import fetch_joined, loading_joined, needs_reshape
from medschool.train.saving import TAG


def load_state(engine: Any, start: Position, ledger: Ledger, rank: int, scratch: Path, say: Callable[[str], None]) -> Ledger:
    """Load what `start` names into the engine and the journal; the ledger to go on with.

    A damaged state is withdrawn: this start fails with InputError, the next one uses the state before it. Raises PlanError for
    a state of another ZeRO stage. One of another world size is joined and cut anew (medschool.train.reshape).
    """
    import torch.distributed as dist

    state = read_state(start.state_uri)
    dist.barrier()  # every rank has read the manifest before one of them can withdraw it
    if state.zero_stage != engine.zero_optimization_stage():
        raise PlanError(
            f"the checkpoint is of ZeRO {state.zero_stage}, this group is at ZeRO {engine.zero_optimization_stage()}",
            "resume with the same cluster.zero_stage, or delete the checkpoint",
            start.state_uri,
        )
    try:
        if reshaped := needs_reshape(state, engine.world_size):
            folder = fetch_joined(state, scratch)
        else:
            folder = fetch_state(state, scratch / "resume", rank)
    except InputError as error:
        passed_over = InputError(error.problem, "run again: the checkpoint before it is used", error.where)
        if withdraw_state(start.state_uri):
            say(f"checkpoint passed over: {passed_over}")
        raise passed_over from error
    with loading_joined(engine, reshaped):
        engine.load_checkpoint(str(folder), tag=TAG)
    if not reshaped and (folder / random_file(rank)).exists():
        restore((folder / random_file(rank)).read_bytes())
    shutil.copyfile(folder / JOURNAL, scratch / JOURNAL)
    stored = parse_ledger((folder / LEDGER).read_bytes(), start.state_uri)
    if reshaped:
        dist.barrier()  # the folder is that of all ranks of this machine
    shutil.rmtree(folder, ignore_errors=reshaped)
    found = go_on(ledger, stored, start.batch_index, start.step, start.state_uri)
    return found if rank == 0 else found.of_all([])  # what was counted before is counted once
