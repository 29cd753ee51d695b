"""Checkpoints beside training: a step waits for a copy in memory, a thread does the rest.

    save() --HostCopy, all ranks--> thread of each rank: files on local disk --sha256--> store --word of this rank-->
                                    thread of rank 0: waits for the word of every rank, ledger, manifest (last), prune

Training stands still while its state is copied (medschool.train.snapshot), and where checkpoints come faster than the store takes
them: then the next one waits. One state is in memory at most and one on disk, never more.

A checkpoint that cannot be written (a full disk, a store that fails) is a line in the log: the one before it stays, training goes
on, and its files are removed. Rank 0 counts; after more than `cluster.max_failed_checkpoints` in a row the next one ends the run.

What it does not do: flush to disk. The manifest is put when the store has taken all files; what a store forgets when its machine
loses power is found by the hashes.
"""

import shutil
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from platform import python_version
from typing import Any

from medschool.artifact import ArtifactFile, upload_folder, versions, write_file
from medschool.errors import MedschoolError, StorageError
from medschool.ledger import LEDGER, Ledger, ledger_bytes
from medschool.train.checkpoint import Position, State, commit_state, prune_states, random_file, state_prefix
from medschool.train.course import JOURNAL, Course
from medschool.train.identity import identity_of
from medschool.train.parts import Part, await_parts, put_part
from medschool.train.random_state import capture
from medschool.train.snapshot import HostCopy, take_snapshot, write_snapshot

TAG = "state"
GRACE_S = 30.0
"""How long a run that ends with an error waits for the checkpoint that is under way."""


@dataclass(frozen=True)
class Taken:
    """One rank's part of a state, as it was when training stood still; the tensors are in the Saver's HostCopy."""

    position: Position
    ledger: Ledger
    random: bytes
    journal_bytes: int
    prefix_uri: str


class Saver:
    """Saves training states of one worker group. Every rank has one; use as a context manager, in a process group.

    scratch: this rank's own folder on local disk, with the journal in it.
    say: is given the lines that users should see, from rank 0 alone.
    """

    def __init__(
        self, engine: Any, course: Course, rank: int, world_size: int, scratch: Path, say: Callable[[str], None]
    ) -> None:
        self._engine, self._course, self._scratch, self._say = engine, course, scratch, say
        self._rank, self._world_size = rank, world_size
        self._host, self._memory = HostCopy(), threading.Semaphore(1)
        self._thread, self._jobs = ThreadPoolExecutor(1, thread_name_prefix="checkpoint"), list[Future[None]]()
        self._group, self._count, self._failures = "", 0, 0
        self._most, self._ended = course.recipe.cluster.max_failed_checkpoints, threading.Event()

    def __enter__(self) -> "Saver":
        """Agree on a name that no other worker group has; rank 0 removes what groups before this one left half done."""
        import torch.distributed as dist

        name: list[Any] = [uuid.uuid4().hex[:12]]
        dist.broadcast_object_list(name)
        self._group = name[0]
        if self._rank == 0:
            self._jobs.append(self._thread.submit(self._prune))
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Wait for what is under way; after an error only for a while, because other ranks may be gone."""
        limit = time.monotonic() + GRACE_S
        for job in self._jobs:
            with suppress(TimeoutError):
                job.result(None if kind is None else max(0.0, limit - time.monotonic()))
        self._ended.set()
        self._thread.shutdown(wait=kind is None)

    def save(self, position: Position, ledger: Ledger) -> float:
        """Copy the state and leave the rest to the thread; seconds that training stood still. Every rank calls this.

        Raises StorageError on rank 0 when too many checkpoints in a row could not be written.
        """
        began = time.perf_counter()
        self._check_failures()
        self._memory.acquire()
        try:
            take_snapshot(self._engine, self._host, TAG)
            self._count += 1
            journal = self._scratch / JOURNAL
            taken = Taken(
                position=position,
                ledger=ledger,
                random=capture(),
                journal_bytes=journal.stat().st_size if self._rank == 0 else 0,
                prefix_uri=state_prefix(self._course.run_uri, position.step, f"{self._group}-{self._count}"),
            )
        except BaseException:
            self._memory.release()
            raise
        self._jobs = [job for job in self._jobs if not job.done()] + [self._thread.submit(self._store, taken)]
        return time.perf_counter() - began

    def wait(self) -> None:
        """Return when nothing is under way on this rank any more; on rank 0 every state is then committed, or has failed."""
        for job in self._jobs:
            job.result()

    @property
    def failures(self) -> int:
        """Checkpoints in a row that could not be written, as far as rank 0 knows by now."""
        return self._failures

    def _check_failures(self) -> None:
        if self._failures > self._most:
            raise StorageError(
                f"{self._failures} checkpoints in a row could not be written, cluster.max_failed_checkpoints allows {self._most}",
                "the lines above say why; make room or mend the store and run again: it goes on from the newest checkpoint",
                self._course.run_uri,
            )

    def _store(self, taken: Taken) -> None:
        """The thread's part of one state. Never raises: a checkpoint that fails is counted and told."""
        folder = self._scratch / taken.prefix_uri.rsplit("/", 1)[-1]
        try:
            try:
                size = self._host.size_bytes
                self._write(taken, folder, size)
            finally:
                self._memory.release()
            files = upload_folder(taken.prefix_uri, folder)
            if self._rank:
                put_part(taken.prefix_uri, self._rank, Part(files, taken.ledger.rows))
            else:
                self._commit(taken, files)
        except Exception as error:
            self._fail(taken, error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, taken: Taken, folder: Path, size_bytes: int) -> None:
        """This rank's files on local disk."""
        try:
            write_snapshot(self._host, folder)
            path = folder / random_file(self._rank)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(taken.random)
            if self._rank == 0:
                with (self._scratch / JOURNAL).open("rb") as journal:
                    (folder / JOURNAL).write_bytes(journal.read(taken.journal_bytes))
        except (OSError, RuntimeError) as error:  # torch.save says RuntimeError when a disk is full
            free = shutil.disk_usage(self._scratch).free
            raise StorageError(
                f"{size_bytes} bytes of state could not be written, {free} bytes are free ({' '.join(str(error).split())[:200]})",
                "make room there, or set MEDSCHOOL_CACHE to a larger disk",
                str(folder),
            ) from error

    def _commit(self, taken: Taken, files: tuple[ArtifactFile, ...]) -> None:
        """Rank 0: the ledger of all ranks, then the manifest, then no more states than are to be kept."""
        parts = await_parts(taken.prefix_uri, range(1, self._world_size), self._ended.is_set)
        ledger = taken.ledger.of_all([taken.ledger.rows, *(part.rows for part in parts)]).before(taken.position.batch_index)
        files += (write_file(taken.prefix_uri, LEDGER, ledger_bytes(ledger)),)
        state = State(
            position=taken.position,
            world_size=self._world_size,
            zero_stage=self._course.recipe.cluster.zero_stage,
            prefix_uri=taken.prefix_uri,
            files=files + tuple(file for part in parts for file in part.files),
            identity=identity_of(self._course, ledger),
            micro_batch_rows=int(self._engine.train_micro_batch_size_per_gpu()),
            versions={"python": python_version(), **versions()},
        )
        commit_state(self._course.run_uri, state)
        self._failures = 0
        self._prune()

    def _fail(self, taken: Taken, error: Exception) -> None:
        """Tell it: rank 0 to the user, another rank to rank 0. What is already in the store goes when a newer state is whole."""
        problem = str(error) if isinstance(error, MedschoolError) else f"{type(error).__name__}: {error}"
        if self._rank:
            try:
                put_part(taken.prefix_uri, self._rank, Part(problem=problem))
            except MedschoolError:
                return  # the store does not answer: rank 0 finds that out for itself
        else:
            self._failures += 1
            self._say(
                f"checkpoint of step {taken.position.step} not saved: {problem}; training goes on, the one before it stays "
                f"({self._failures} in a row, cluster.max_failed_checkpoints is {self._most})"
            )

    def _prune(self) -> None:
        """Failing to remove what is old is no failed checkpoint: it is tried again after the next one."""
        spec = self._course.recipe.cluster
        try:
            torn = prune_states(self._course.run_uri, spec.kept_checkpoints, spec.milestone_every_steps)
        except (MedschoolError, OSError) as error:
            self._say(f"old checkpoints not removed: {error}")
            return
        if torn:
            self._say(f"{torn} checkpoints that were never finished removed")


def of_all_ranks(ledger: Ledger, world_size: int) -> Ledger:
    """The ledger with the counts of all ranks; every rank gets it."""
    import torch.distributed as dist

    counts: list[Any] = [None] * world_size
    dist.all_gather_object(counts, dict(ledger.rows))
    return ledger.of_all(counts)
