"""A training state made loadable by another number of workers: DeepSpeed's universal checkpoint, on local disk.

ZeRO cuts the optimizer's state (stage 3: the weights too) into one part a rank, so a state fits only as many ranks as saved it.
DeepSpeed's converter joins the parts again: a folder for each parameter, with its fp32 weights and both moments of Adam whole;
an engine that is told to (`loading_joined`) cuts them anew (Lian et al. 2024, "Universal Checkpointing", arXiv 2406.18820).

    W ranks' files, verified --join, one rank a machine, the others wait--> a folder a parameter --cut--> W' ranks

Nothing is rounded: fp32 weights and moments are copied, so they are equal to the last bit. What follows is equal only to
rounding, because W' ranks add the same gradients in another order: 1e-7 relative in fp32; in bf16, where gradients are added in
bf16, some 1e-5. A state of ZeRO 0 is whole on rank 0 and fits any number of ranks as it is.

Counters and the schedule come with the model's file, which is copied as it is. Random numbers are saved rank by rank and mean
nothing to a group of another size: its ranks keep the generators that they started with, from the seed.

Price: the state is read once and written twice on every machine (12 bytes a parameter each time), by one process, and the folder
must hold all of it.
"""

import io
import shutil
import socket
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from medschool.errors import StageError
from medschool.train.checkpoint import State, fetch_state

TAG = "state"


def needs_reshape(state: State, world_size: int) -> bool:
    """Whether a state must be joined and cut anew before so many ranks can load it."""
    return state.zero_stage > 0 and state.world_size != world_size


def fetch_joined(state: State, scratch: Path) -> Path:
    """Download, verify and join a state once a machine; the folder, which all ranks of the machine share. Every rank calls this.

    Raises InputError for a damaged file, StageError as join_parts does, on the rank that does the work.
    """
    import torch.distributed as dist

    first, shared = first_of_machine(scratch)
    folder = shared / "resume"
    if first:
        fetch_state(state, folder)
        join_parts(folder)
    dist.barrier()
    return folder


@contextmanager
def loading_joined(engine: Any, joined: bool) -> Iterator[None]:
    """Within it, the engine's load_checkpoint expects a state that is `joined`.

    DeepSpeed reads this setting of its configuration ({"checkpoint": {"load_universal": true}}) when it loads and at no other
    time, so that an engine need not be built for the state that it will go on from.
    """
    engine._config.load_universal_checkpoint = joined
    try:
        yield
    finally:
        engine._config.load_universal_checkpoint = False


def join_parts(folder: Path) -> None:
    """Turn `folder`/state, the files of all ranks, into a universal checkpoint of the same name, in place.

    Opens pickles: their hashes must have been compared before. Raises StageError when DeepSpeed cannot convert them.
    """
    from deepspeed.checkpoint import ds_to_universal

    joined = folder / "universal" / TAG
    joined.mkdir(parents=True)
    told = io.StringIO()
    try:
        with redirect_stdout(told), redirect_stderr(told):
            ds_to_universal.main(
                Namespace(
                    input_folder=str(folder / TAG),
                    output_folder=str(joined),
                    num_extract_workers=1,
                    num_merge_workers=1,
                    keep_temp_folder=False,
                    strict=True,
                    inject_missing_state=True,
                )
            )
    except (AssertionError, RuntimeError, ValueError, KeyError, NotImplementedError) as error:
        raise StageError(
            f"DeepSpeed cannot join the parts of this state ({type(error).__name__}: {error})",
            "resume with the number of workers that saved it, or delete it: an older one is used",
            str(folder),
        ) from error
    shutil.rmtree(folder / TAG)
    joined.rename(folder / TAG)


def first_of_machine(scratch: Path) -> tuple[bool, Path]:
    """(Whether this rank is the first of those that share its disk, the scratch folder of that one). Every rank calls this."""
    import torch.distributed as dist

    above = scratch.parent.stat()
    mine = (socket.gethostname(), above.st_dev, above.st_ino, str(scratch))
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    first = next(each for each in everyone if each[:3] == mine[:3])
    return first[3] == mine[3], Path(first[3])
