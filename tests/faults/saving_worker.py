"""What a checkpoint fault test runs in a process of its own, so that it can be killed, or shut in with a small disk."""

import json
import sys
import tempfile
from pathlib import Path

import torch.distributed as dist
from small_engine import SmallEngine, course_in, ledger_at

from medschool.errors import StorageError
from medschool.train.checkpoint import Position
from medschool.train.saving import JOURNAL, Saver
from medschool.train.staging import staging_folder


def tell(**values: object) -> None:
    print(json.dumps(values), flush=True)


def begin(run_uri: str, scratch: Path, *overrides: str) -> tuple[SmallEngine, Saver]:
    """A group of one rank, and its Saver; a state of 24 files of 64 kB."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    (scratch / JOURNAL).write_text("{}\n")
    engine, course = SmallEngine(files=24, floats=16_000), course_in(run_uri, *overrides)
    return engine, Saver(engine, course, 0, 1, scratch, lambda line: tell(said=line))


def save(saver: Saver, engine: SmallEngine, run_uri: str, step: int) -> None:
    engine.step()
    saver.save(Position(step, step), ledger_at(course_in(run_uri), step))


def killed(run_uri: str, first: int) -> None:
    """Save state after state until somebody kills this process."""
    with staging_folder(Path(tempfile.mkdtemp())) as scratch:
        engine, saver = begin(run_uri, scratch)
        with saver:
            for step in range(first, first + 20):
                save(saver, engine, run_uri, step)
                tell(taken=step)


def small_disk(run_uri: str, disk: str) -> None:
    """Save on a disk with room for one state and no more: one, then one beside a file that fills the disk, then one again."""
    scratch, filler = Path(disk) / "scratch", Path(disk) / "filler"
    scratch.mkdir()
    engine, saver = begin(run_uri, scratch, "cluster.max_failed_checkpoints=1")
    try:
        with saver:
            for step, filled in ((1, False), (2, True), (3, False), (4, True), (5, True), (6, True)):
                filler.write_bytes(bytes(3 * 2**20 if filled else 0))
                save(saver, engine, run_uri, step)
                saver.wait()
                tell(trained=step, left=sorted(path.name for path in scratch.iterdir()))
    except StorageError as error:
        tell(ended=str(error))


if __name__ == "__main__":
    {"killed": lambda: killed(sys.argv[2], int(sys.argv[3])), "small_disk": lambda: small_disk(sys.argv[2], sys.argv[3])}[
        sys.argv[1]
    ]()
