"""Copies of the weights for somebody who measures the model while it goes on learning. Training waits for the copy, for no more.

    step due --every rank: weights to rank 0's host, files on its disk--> [one place, newest wins] --thread--> store --> measure

The training step waits while the files are written (the `handout` part of its lap): 2 bytes of bf16 or 4 of fp32 a parameter
are written to the node's disk. Upload and measurement run in a thread of rank 0, one at a time. A copy that comes while another
one is measured waits in the one place there is, and takes it from one that waits already: a measurement slower than its interval
leaves steps out and never queues up. At most two copies lie on the disk and one in the store.

What the measurement says goes wherever `measure` puts it, not into the training or its result. If it fails, that is said, and the
next copy is tried. When training ends, what is not measured yet is dropped: the finished model is measured by whoever wants it.
"""

import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from medschool import storage
from medschool.artifact import upload_folder
from medschool.train.course import Course
from medschool.train.export import weights_on_cpu, write_model
from medschool.train.model import model_copy

HANDOUT = "handout"
"""Folder of the copies below the run's; nothing in it outlives the run."""
Measure = Callable[[int, str], None]
"""Takes a step and the URI of a folder with the model as it was after that step; returns when it needs the folder no longer."""


class HandOut:
    """Use as a context manager around the steps, on every rank. Without `measure` it does nothing."""

    def __init__(
        self, engine: Any, course: Course, rank: int, scratch: Path, measure: Measure | None, say: Callable[[str], None]
    ) -> None:
        self._engine, self._course, self._rank, self._say = engine, course, rank, say
        self._scratch, self._measure = scratch / HANDOUT, measure
        self._every = course.recipe.evaluate.heldout_every_steps if measure else None
        self._changed, self._ended = threading.Condition(), False
        self._waiting: tuple[int, Path] | None = None

    def due(self, step: int) -> bool:
        """Whether a copy is wanted after this step; the same on every rank. Not after the last one, which is exported anyway."""
        return self._every is not None and step % self._every == 0 and step < self._course.steps

    def give(self, step: int) -> None:
        """Write the weights as they are now. Every rank calls this."""
        partitioned = self._engine.zero_optimization_stage() == 3
        if self._rank != 0 and not partitioned:
            return
        weights = weights_on_cpu(self._engine.module, partitioned, keep=self._rank == 0)
        if self._rank != 0:
            return
        folder = self._scratch / f"{step:08}"
        self._scratch.mkdir(exist_ok=True)
        write_model(self._engine.module, weights, model_copy(self._course.model), folder)
        with self._changed:
            late, self._waiting = self._waiting, (step, folder)
            self._changed.notify()
        if late:
            shutil.rmtree(late[1], ignore_errors=True)

    def __enter__(self) -> "HandOut":
        if self._every and self._rank == 0:
            threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._waiting, self._ended = None, True
            self._changed.notify()

    def _serve(self) -> None:
        base = storage.join(self._course.run_uri, HANDOUT)
        with suppress(Exception):
            storage.delete_prefix(base)  # of an attempt that was killed
        while taken := self._take():
            step, folder = taken
            uri = storage.join(base, folder.name)
            try:
                upload_folder(uri, folder)
                shutil.rmtree(folder, ignore_errors=True)
                assert self._measure is not None
                self._measure(step, uri)
            except Exception as error:
                self._say(f"held-out loss at step {step} was not measured: {type(error).__name__}: {str(error).splitlines()[0]}")
            with suppress(Exception):
                storage.delete_prefix(uri)

    def _take(self) -> tuple[int, Path] | None:
        """The newest copy, once there is one; None when training has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            taken, self._waiting = self._waiting, None
            return taken
