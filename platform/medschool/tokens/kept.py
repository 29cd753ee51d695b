"""Whole shards on a node's own disk, so that every reader of the node finds them there.

    s3://.../shards/00007.arrow --one GET a node, under a lock--> $MEDSCHOOL_CACHE/shards/<hash> --mapped--> each reading process

An epoch gives the rows of one shard after the other, in a random order inside each; so a shard that is touched is soon used up,
and fetching it whole costs one request for some thousand rows. The shards of batches to come are fetched while others are read.
Which rows of a shard come first does not matter: the first batch after a resume fetches as much as the first of a run, whatever
the number of workers.

A shard is kept as one record batch, so that a reader copies the rows it is asked for and nothing else.

Price: at most KEPT_BYTES of disk a node, and two shards of memory while one is fetched; what is mapped belongs to the page cache
and is given back when memory is short. The shards used longest ago go first. A shard is never changed under its name (the
prefix of every attempt is new), so what is kept is never asked about again.
"""

import fcntl
import hashlib
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from medschool import s3, storage
from medschool.errors import StorageError

KEPT_BYTES = 2 * 2**30


def cache_folder() -> Path:
    return Path(os.environ.get("MEDSCHOOL_CACHE", Path.home() / ".cache" / "medschool"), "shards")


def local_shard(uri: str, sha256: str | None = None) -> Path:
    """Path of the shard on this node, fetched where it is not there yet; a local `uri` is its own path.

    What is kept is a whole Arrow file: raises pa.ArrowInvalid when the stored object is none, InputError when it is not the one
    that `sha256` names, FileNotFoundError when there is none, StorageError when the store fails or this node's disk is full.
    """
    if not s3.is_s3(uri):
        return Path(uri)
    name = hashlib.sha256(f"{os.environ.get('AWS_ENDPOINT_URL', '')} {uri}".encode()).hexdigest()[:32]
    path = cache_folder() / name
    if not _use(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(path.with_name(f"{name[:2]}.lock")):
            if not _use(path):
                _fetch(uri, path, sha256)
    return path


def fetch_soon(uri: str, sha256: str | None = None) -> None:
    """Fetch a shard that is not kept yet in a thread. What goes wrong is told to whoever reads the shard."""
    if uri in _coming:
        return

    def fetch() -> None:
        with suppress(Exception):
            local_shard(uri, sha256)
        _coming.discard(uri)

    _coming.add(uri)
    threading.Thread(target=fetch, daemon=True).start()


_coming: set[str] = set()


def _use(path: Path) -> bool:
    """Note that a kept shard is used now; False when it is not kept."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One of 256 locks a node: of the readers that want the same shard, one fetches it."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(uri: str, path: Path, sha256: str | None) -> None:
    data = storage.read_bytes(uri)
    found = hashlib.sha256(data).hexdigest()
    if sha256 not in (None, found):
        raise storage.another_object(uri, found, sha256)
    table = pa.ipc.open_file(pa.BufferReader(data)).read_all().combine_chunks()  # the last bytes say whether it is whole
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        _make_room(path.parent, len(data))
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        os.replace(part, path)
    except OSError as error:
        raise StorageError(
            f"a shard of {len(data)} bytes cannot be kept on this node ({error})",
            f"free {KEPT_BYTES >> 30} GiB there, or set MEDSCHOOL_CACHE to a folder on a larger disk",
            str(path.parent),
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _make_room(folder: Path, size_bytes: int) -> None:
    """Remove the shards that were used longest ago until `size_bytes` more fit. Who has one mapped keeps what he has."""
    kept = []
    for path in folder.iterdir():
        try:
            stat = path.stat()
        except FileNotFoundError:  # another reader made room at the same time
            continue
        kept.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in kept) + size_bytes
    for _, size, path in sorted(kept):
        if total <= KEPT_BYTES:
            break
        if size:  # a lock is empty
            path.unlink(missing_ok=True)
            total -= size
