"""What a checkpoint costs training, and what it takes to get one back: ours beside three others, on the same state and disk.

    ours          Saver: a copy in memory, then torch.save, sha256 and upload in a thread, manifest last
    synchronous   engine.save_checkpoint to a local folder, then a copy to the store; training waits for both
    torch.save    the same tensors in one file, straight into the store's folder; training waits
    dcp           torch.distributed.checkpoint.async_save of the same tensors, straight into the store's folder

A LLaMA of 20 million weights in fp32, ZeRO 1 on one rank: weights, their fp32 copies and both moments of AdamW. The store is a
folder on the disk that also holds the local files. A save is over when all its files are on disk (fsync). `stall`: how long the
call held training up. `total`: until it was over. `lost`: by how much STEPS training steps and one save at their start took
longer than the steps alone, which shows what a thread takes from a step. `restore`: from the store into the tensors; ours
compares every sha256, the others compare nothing. Rounds of all four, each beginning with another one.

`python bench/checkpoint.py [--rounds 7] [--folder DIR]`; five minutes on two cores.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update({"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})

from side_by_side import interval, machine, on_disk, spread
from small_run import Shape, setting, write_store

SHAPE = Shape(hidden_size=384, num_attention_heads=6, num_key_value_heads=6, intermediate_size=1024)
ROW_TOKENS, BATCH_ROWS, STEPS = 256, 4, 6
NAMES = ("ours", "synchronous", "torch.save", "dcp")


class Subject:
    """The engine, and four ways to save and restore it. `folder`: store and local files."""

    def __init__(self, folder: Path) -> None:
        import torch.distributed as dist

        from medschool.ledger import Ledger
        from medschool.train.engine import build_engine
        from medschool.train.saving import JOURNAL, Saver

        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        write_store(folder, SHAPE, "fp32", ROW_TOKENS, 64)
        course, _ = setting(folder, "run", "fp32", 1000, BATCH_ROWS, {"num_workers": 1, "kept_checkpoints": 1})
        self.course, self.folder, self.count = course, folder, 0
        self.engine = build_engine(course, 1)
        self.ledger = Ledger(course.order, ROW_TOKENS, {"text": "x"}, course.model.digest)
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        (self.scratch / JOURNAL).write_text("{}\n")
        self.saver = Saver(self.engine, course, 0, 1, self.scratch, print)
        self.pending: Any = None

    def step(self) -> None:
        import torch

        ids = torch.arange(BATCH_ROWS * ROW_TOKENS).reshape(BATCH_ROWS, ROW_TOKENS) % SHAPE.vocab_size
        self.engine.backward(self.engine(input_ids=ids, labels=ids, use_cache=False).loss)
        self.engine.step()

    def tensors(self) -> dict[str, Any]:
        """What DeepSpeed saves, as one dictionary of tensors."""
        optimizer = self.engine.optimizer
        found = {f"weights.{name}": weight.detach() for name, weight in self.engine.module.named_parameters()}
        for number, group in enumerate(optimizer.single_partition_of_fp32_groups):
            state = optimizer.optimizer.state[group]
            found |= {f"fp32.{number}": group.detach(), f"m.{number}": state["exp_avg"], f"v.{number}": state["exp_avg_sq"]}
        return found

    def save(self, name: str) -> Callable[[], None]:
        """Hold training up for as long as this way does; what is returned waits for the rest."""
        self.count += 1
        target = self.folder / "saved" / name
        shutil.rmtree(target, ignore_errors=True)
        return {"ours": self._ours, "synchronous": self._synchronous, "torch.save": self._torch, "dcp": self._dcp}[name](target)

    def _ours(self, target: Path) -> Callable[[], None]:
        from medschool.train.checkpoint import Position

        self.saver.save(Position(self.count, self.count), self.ledger.before(self.count))

        def rest() -> None:
            self.saver.wait()
            on_disk(Path(self.course.run_uri))

        return rest

    def _synchronous(self, target: Path) -> Callable[[], None]:
        from medschool import storage

        local = self.folder / "local"
        self.engine.save_checkpoint(str(local), tag="state", save_latest=False)
        files = list(storage.local_files(local))
        storage.map_files(lambda path: storage.upload(str(target / path.relative_to(local)), path), files)
        shutil.rmtree(local)
        on_disk(target)
        return lambda: None

    def _torch(self, target: Path) -> Callable[[], None]:
        import torch

        target.mkdir(parents=True)
        torch.save(self.tensors(), target / "state.pt")
        on_disk(target)
        return lambda: None

    def _dcp(self, target: Path) -> Callable[[], None]:
        from torch.distributed import checkpoint as dcp

        future = dcp.async_save(self.tensors(), storage_writer=dcp.FileSystemWriter(target, sync_files=True))
        return lambda: (future.result(), on_disk(target))[1]

    def restore(self, name: str) -> None:
        from torch.distributed import checkpoint as dcp

        target, local = self.folder / "saved" / name, self.folder / "back"
        if name == "dcp":
            dcp.load(self.tensors(), storage_reader=dcp.FileSystemReader(target))
        elif name == "torch.save":
            self._torch_load(target / "state.pt")
        else:
            self._ours_fetch(local) if name == "ours" else self._copy(target, local)
            self.engine.load_checkpoint(str(local), tag="state")
            shutil.rmtree(local)

    def _torch_load(self, path: Path) -> None:
        import torch

        stored = torch.load(path)
        for name, tensor in self.tensors().items():
            tensor.copy_(stored[name])

    def _ours_fetch(self, local: Path) -> None:
        from medschool.train.checkpoint import fetch_state, newest_whole, read_state

        fetch_state(read_state(newest_whole(self.course.run_uri, lambda line: None).state_uri), local, 0)

    def _copy(self, target: Path, local: Path) -> None:
        from medschool import storage

        files = list(storage.local_files(target))
        storage.map_files(lambda path: storage.download(str(path), local / path.relative_to(target)), files)


def timed(do: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = do()
    return time.perf_counter() - began, found


def steps(subject: Subject, name: str | None) -> float:
    """Seconds of STEPS steps, with a save at their start where `name` is given; what is still under way is not waited for."""
    rest: list[Callable[[], None]] = []

    def do() -> None:
        if name:
            rest.append(subject.save(name))
        for _ in range(STEPS):
            subject.step()

    seconds, _ = timed(do)
    for wait in rest:
        wait()
    return seconds


def measure(subject: Subject, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds by (what, way). The first round is not counted: it takes buffers and opens files for the first time."""
    found: dict[tuple[str, str], list[float]] = {}
    with subject.saver:
        for number in range(rounds + 1):
            for turn in range(len(NAMES)):
                name = NAMES[(number + turn) % len(NAMES)]
                stall, rest = timed(lambda name=name: subject.save(name))
                total = stall + timed(rest)[0]
                restore, _ = timed(lambda name=name: subject.restore(name))
                alone = steps(subject, None)
                lost = steps(subject, name) - alone
                for what, seconds in (("stall", stall), ("total", total), ("lost", lost), ("restore", restore)):
                    if number:
                        found.setdefault((what, name), []).append(seconds)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--folder", type=Path, help="on the disk to measure; a temporary one by default")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        subject = Subject(Path(folder))
        subject.step()
        size = sum(tensor.nbytes for tensor in subject.tensors().values())
        print(machine("torch", "deepspeed"), f"state: {size / 1e6:.0f} MB", sep="\n")
        found = measure(subject, given.rounds)
    for what in ("stall", "total", "lost", "restore"):
        print(f"{what}, s (median, range)")
        for name in NAMES:
            print(f"  {name:12} {spread(found[what, name])}")
        ratio, low, high = interval(found[what, "ours"], found[what, "synchronous"])
        print(f"  ours / synchronous: {ratio:.3f}  [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
