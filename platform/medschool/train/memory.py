"""Memory that runs out is named as such, with its numbers; and where the recipe allows, the next group takes fewer rows at once.

    torch cannot allocate            --out_of_memory_told--> StageError "out of memory: ..."
    Ray kills a worker, node full    --told_by (its words)--> the same
    <run>/memory/<attempt>/0000.json     one for each time, where cluster.halve_on_oom is set

Each time halves the rows of a micro-batch, or takes a little less where that must divide a worker's share. More micro-batches are
accumulated, so the global batch and the number of optimizer steps stay (the same gradients are added in another order: the loss
differs in its last digits). At one row there is nothing to halve and the run fails. The halving is forgotten with the attempt: a
run that is submitted again starts with the recipe's own micro-batch, maybe on a larger machine.

What it does not know: a process that the kernel kills (its own out-of-memory killer, a container's limit) leaves no word, and
counts as a worker that died. Ray's monitor is meant to be earlier. It chooses by its own rules and takes several processes at a
time (Ray 2.60), also where it is another program of the machine that needs the memory: look at what it lists in its log.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from medschool import storage
from medschool.errors import StageError, cause_of
from medschool.procedure import row_tokens, training
from medschool.tokens.stream import rank_rows
from medschool.train.course import Course
from medschool.train.group_end import GroupEnds
from medschool.train.zero import micro_batch_rows

START = "out of memory: "
OF_TORCH = re.compile(r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory")
"""torch.OutOfMemoryError of an accelerator; the allocator of the CPU, which raises a plain RuntimeError; the kernel's ENOMEM."""
OF_RAY = re.compile(r"[^\n]*running low on memory[^\n]*")
HELD = re.compile(r"RayTrainWorker[^\n]*actual memory used=([\d.]+GB)")
"""Words of Ray's memory monitor in the death of an actor (Ray 2.60); ray.exceptions.OutOfMemoryError is for tasks."""
ASKED = re.compile(r"tried to allocate ([\d.]+) ?(bytes|[KMG]iB)?", re.IGNORECASE)
REMEDY = (
    "set cluster.halve_on_oom or lower cluster.micro_batch_tokens; cluster.activation_checkpointing, a higher cluster.zero_stage "
    "and cluster.offload need less memory too"
)


@dataclass(frozen=True)
class Shortage:
    """One time that memory ran out."""

    told: str


@contextmanager
def out_of_memory_told(course: Course, rank: int, world_size: int) -> Iterator[None]:
    """Turn whatever is raised inside for lack of memory into a StageError with the numbers of this worker."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not isinstance(error, MemoryError) and not OF_TORCH.search(str(error)):
            raise
        rows = micro_batch_rows(course.recipe, course.phase, world_size)
        length = row_tokens(course.recipe, course.phase)
        raise StageError(
            f"{START}rank {rank} {_asked(error)} with a micro-batch of {rows} rows of {length} tokens; {_there()}",
            REMEDY,
            course.trial,
        ) from error


def _asked(error: BaseException) -> str:
    found = ASKED.search(str(error))
    if not found:
        return f"was refused memory ({type(error).__name__})"
    return f"asked for {gib(float(found[1])) if found[2] in (None, 'bytes') else f'{found[1]} {found[2]}'}"


def _there() -> str:
    """What there is and what this process held at most."""
    import resource

    import psutil
    import torch

    host, peak = psutil.virtual_memory(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux: kibibytes
    said = f"host: {gib(host.available)} of {gib(host.total)} free, this worker held {gib(peak)} at most"
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        said += f", its address space is limited to {gib(limit)}"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        peak = torch.cuda.max_memory_allocated()
        said += f"; accelerator: {gib(free)} of {gib(total)} free, this worker held {gib(peak)} at most"
    return said


def gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"


def told_by(failure: BaseException) -> str | None:
    """What a worker's failure says about memory, in one line; None for a failure of any other kind."""
    known = cause_of(getattr(failure, "_base_exc", failure))
    if known is not None:
        return known.problem.removeprefix(known.where + ": ") if START in known.problem else None
    text = f"{failure} {getattr(failure, 'health_check_failure', '')}"
    words, held = OF_RAY.search(text), HELD.search(text)
    if not words:
        return None
    return f"{START}{words[0].strip()}" + (f"; this worker held {held[1]}" if held else "")


def note_shortage(course: Course, told: str) -> None:
    """One more for this attempt; the next group takes half the rows at once."""
    number = len(shortages(course))
    storage.put_if_absent(storage.join(_folder(course), f"{number:04}.json"), json.dumps(asdict(Shortage(told))).encode())


def shortages(course: Course) -> tuple[Shortage, ...]:
    """Those of this attempt, oldest first."""
    found = storage.list_files(_folder(course))
    return tuple(Shortage(**json.loads(storage.read_bytes(info.uri))) for info in found)


def _folder(course: Course) -> str:
    return storage.join(course.run_uri, "memory", course.prefix_uri.rstrip("/").rsplit("/", 1)[-1])


def rows_after(share: int, rows: int, halvings: int) -> int | None:
    """Rows of a micro-batch, from `rows`, halved so often to a divisor of a worker's `share`; None where one row was too many."""
    for _ in range(halvings):
        if rows == 1:
            return None
        rows = max(smaller for smaller in range(1, rows // 2 + 1) if share % smaller == 0)
    return rows


def fitted(course: Course, found: tuple[Shortage, ...], world_size: int) -> Course:
    """The course with micro-batches as small as its shortages ask for. Raises GroupEnds when not even one row fits."""
    if not found:
        return course
    share = rank_rows(training(course.recipe, course.phase).batch_rows, world_size)
    rows = rows_after(share, micro_batch_rows(course.recipe, course.phase, world_size), len(found))
    if rows is None:
        raise GroupEnds(
            "memory", StageError(f"one row at a time is too much. {found[-1].told}", REMEDY.split("; ")[-1], course.trial)
        )
    cluster = course.recipe.cluster.model_copy(update={"micro_batch_tokens": rows * row_tokens(course.recipe, course.phase)})
    return replace(course, recipe=course.recipe.model_copy(update={"cluster": cluster}))
