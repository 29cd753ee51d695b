"""A copy of the training state in the host's memory: the only part of a checkpoint that training waits for.

DeepSpeed knows what has to be saved under which name, and hands it to its checkpoint engine file by file. `take_snapshot` puts a
HostCopy in that engine's place for one call. It copies the tensors and touches no disk: a full disk cannot stop one rank between
two collective operations while the others wait. The files are then written by another thread, with torch.save, and are those
that DeepSpeed itself would have written; it loads them as its own.

Price: host memory for one copy of what this rank saves (for ZeRO 1 and AdamW 12 bytes a parameter over the number of workers, and
on rank 0 the weights once), kept for the whole run: a copy of 300 MB into pages that are there takes 50 ms on one core, into new
ones two to three times as long. It is pinned where the state lies on a GPU.

State in NVMe (ZeRO-Infinity) is not covered: DeepSpeed copies those files itself.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

Key = tuple[str, int, tuple[int, ...], tuple[int, ...], torch.dtype]


class HostCopy:
    """What DeepSpeed is given for a checkpoint engine: keeps every file's content in memory, by path below the saved folder."""

    def __init__(self) -> None:
        self.files: dict[str, Any] = {}
        self._buffers: dict[tuple[str, int], torch.Tensor] = {}
        self._folder = Path()

    @property
    def size_bytes(self) -> int:
        """Memory of the tensors that are held."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def begin(self, folder: Path) -> None:
        """The next files are those of a new state; the buffers of the one before are used again."""
        self.files, self._folder = {}, folder

    def save(self, state_dict: Any, path: str) -> None:
        """Called by DeepSpeed for each file that this rank writes. Tensors that share memory do so in the copy too."""
        name, seen = str(Path(path).relative_to(self._folder)), dict[Key, torch.Tensor]()
        self.files[name] = self._copied(state_dict, name, seen)

    def _copied(self, value: Any, name: str, seen: dict[Key, torch.Tensor]) -> Any:
        if isinstance(value, torch.Tensor):
            key = (str(value.device), value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
            if key not in seen:
                seen[key] = self._buffer(value.detach(), (name, len(seen)))
            return seen[key]
        if isinstance(value, dict):
            same = copy.copy(value)  # an OrderedDict of a module keeps its `_metadata`
            same.update((key, self._copied(inner, name, seen)) for key, inner in value.items())
            return same
        if isinstance(value, list):
            return [self._copied(inner, name, seen) for inner in value]
        if type(value) is tuple:
            return tuple(self._copied(inner, name, seen) for inner in value)
        return copy.deepcopy(value)

    def _buffer(self, value: torch.Tensor, place: tuple[str, int]) -> torch.Tensor:
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._buffers[place] = buffer
        return buffer.copy_(value, non_blocking=value.is_cuda)

    def create(self, info: Any) -> None: ...

    def makedirs(self, path: str, exist_ok: bool = False) -> None: ...

    def commit(self, info: Any) -> bool:
        return True

    def is_decoupled(self) -> bool:
        return False

    def preserves_storage_sharing(self) -> bool:
        return False


def take_snapshot(engine: Any, host: HostCopy, tag: str) -> None:
    """Copy this rank's part of the engine's state into `host`. Every rank calls this."""
    folder = Path("/nowhere")  # only names are taken from it
    host.begin(folder)
    with _in_place_of_files(engine, host):
        engine.save_checkpoint(str(folder), tag=tag, save_latest=False)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def _in_place_of_files(engine: Any, host: HostCopy) -> Iterator[None]:
    """DeepSpeed saves into `host`, and does not put its conversion scripts beside the state."""
    own, engine.checkpoint_engine = engine.checkpoint_engine, host
    engine._copy_recovery_script = lambda _: None
    try:
        yield
    finally:
        engine.checkpoint_engine = own
        del engine._copy_recovery_script


def write_snapshot(host: HostCopy, folder: Path) -> None:
    """The files that DeepSpeed would have written, without the CRC32 of torch.save: every byte is covered by a sha256 anyway.

    Raises OSError or RuntimeError when the disk is full.
    """
    usual = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)  # of the whole process; it saves a third of the time
    try:
        for name, content in host.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, path)
    finally:
        torch.serialization.set_crc32_options(usual)
