"""The object store: one small set of verbs over s3fs, and the same verbs over a local folder.

A location is a URI: `s3://bucket/prefix/key`, or an absolute local path. S3 settings come from the standard variables
(`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`) or an instance profile, never from a recipe.

Two rules hold everywhere: existence is decided by a key, never by a "directory" (prefixes linger after their last object), and
a file that must be written once is written with `put_if_absent`, which is atomic on S3 (If-None-Match) and on POSIX (link).

Every verb has the patience with a failing store that medschool.s3 describes.
"""

import hashlib
import io
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from botocore.exceptions import ClientError

from medschool.errors import InputError
from medschool.s3 import CHUNK_BYTES, error_code, filesystem, guard, is_s3, patiently

T = TypeVar("T")

COPY_THREADS = 8
PART_BYTES = 16 * 2**20
"""Part of an upload; COPY_THREADS files with two parts each are in memory at once."""
CONFLICT_WAITS_S = (0.1, 0.3, 1.0, 3.0)
WRITER = "medschool-writer"
RAW_BUFFER_BYTES = 2**20
PACKINGS = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd"}
"""How a raw file is packed, by the end of its name."""


@dataclass(frozen=True)
class FileInfo:
    """One stored file. `tag` changes when the content does: the S3 ETag, or the modification time in ns of a local file."""

    uri: str
    size_bytes: int
    tag: str


def join(base: str, *parts: str) -> str:
    """`base` with `parts` behind it; an absolute last part (a path or an s3 URI) wins, as in os.path.join."""
    for part in parts:
        base = part if is_s3(part) or part.startswith("/") else f"{base.rstrip('/')}/{part.lstrip('/')}"
    return base


@guard
def read_bytes(uri: str) -> bytes:
    """Whole content. Raises FileNotFoundError when the key does not exist, StorageError when the store fails.

    Asked for as a range, because only the answer to a range says how long the object is.
    """
    try:
        data: bytes = filesystem(uri).cat_file(uri, start=0)
    except (ClientError, OSError) as error:
        if error_code(error) not in {"InvalidRange", "416"}:
            raise
        return b""
    return data


def open_raw(uri: str, name: str) -> BinaryIO:
    """A raw input file as a buffered binary stream, unpacked on the way where it ends in `.gz`, `.tgz` or `.zst`.

    Memory: one block of CHUNK_BYTES, and for `.zst` its window of at most 128 MiB; never the file. A file that is not packed is
    seekable. The stream's own `name` is `uri`. Raises FileNotFoundError when the key does not exist; when read, StorageError
    where the store fails, and InputError at `name` where the packing is damaged or cut short.
    """
    stored = open_binary(uri)
    packing = PACKINGS.get(PurePosixPath(uri).suffix)
    return io.BufferedReader(_Unpacked(stored, packing, name), RAW_BUFFER_BYTES) if packing else stored


class _Unpacked(io.RawIOBase):
    """What `stored` holds, unpacked by Arrow, which tells a stream that was cut short from a whole one (zstandard does not)."""

    def __init__(self, stored: BinaryIO, packing: str, name: str) -> None:
        self._stored, self._packing, self._name = stored, packing, name
        self.name = stored.name
        self._stream = pa.CompressedInputStream(pa.PythonFile(stored, mode="r"), packing)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's error, not the decompressor's
                raise
            raise InputError(f"not a whole {self._packing} file ({error})", "fetch the file again", self._name) from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stored.close()
        super().close()


def read_parquet(uri: str, columns: list[str] | None = None) -> pa.Table:
    """A whole Parquet file, or some of its columns. Raises InputError when it is none."""
    data = read_bytes(uri)
    try:
        return pq.read_table(pa.BufferReader(data), columns=columns)
    except (pa.ArrowException, OSError) as error:  # what Arrow raises over bytes in memory is about the bytes
        raise InputError(f"not a whole Parquet file ({error})", "make it again, or restore the object", uri) from error


@guard
def read_range(uri: str, start_byte: int, stop_byte: int) -> bytes:
    """Bytes [start_byte, stop_byte) of a file."""
    data: bytes = filesystem(uri).cat_file(uri, start=start_byte, end=stop_byte)
    return data


def open_binary(uri: str) -> io.BufferedReader:
    """A seekable stream of one key, fetched CHUNK_BYTES at a time; every fetch has the patience of `guard`.

    A stream that fsspec opens has none: it must not be used for reading long files from S3.
    """
    return io.BufferedReader(_Ranges(uri, _size(uri)), CHUNK_BYTES) if is_s3(uri) else open(uri, "rb")


@guard
def _size(uri: str) -> int:
    return int(filesystem(uri).info(uri)["size"])


class _Ranges(io.RawIOBase):
    """One key as a raw stream of range requests."""

    def __init__(self, uri: str, size_bytes: int) -> None:
        self._uri, self._size, self._at = uri, size_bytes, 0
        self.name = uri

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readall(self) -> bytes:
        """The rest in CHUNK_BYTES a request; Python's own asks for 8 KiB at a time."""
        return b"".join(iter(lambda: self.read(CHUNK_BYTES) or b"", b""))

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._size)
        if stop <= self._at:
            return 0
        data = read_range(self._uri, self._at, stop)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@guard
def write_bytes(uri: str, data: bytes) -> None:
    """Write or overwrite one key; readers see the old content or the new, never a part."""
    if is_s3(uri):
        filesystem(uri).pipe_file(uri, data)
        return
    path = Path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    part.write_bytes(data)
    os.replace(part, path)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write one key unless it exists; True when this call wrote it. Exactly one of several racing writers wins.

    The key carries the name of its writer: where the answer to a write was lost, or the write was sent twice on its way, the
    key is there by this very call, and the refusal that comes back is no lost race.
    """
    if is_s3(uri):
        return _put_new_key(uri, data)
    path = Path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    finally:
        part.unlink()
    return True


def _put_new_key(uri: str, data: bytes) -> bool:
    """S3 answers 412 when the key is there, and 409 when another write is under way: nobody has won yet, so try again."""
    fs, writer = filesystem(uri), uuid.uuid4().hex
    bucket, key, _ = fs.split_path(uri)
    waits = iter(CONFLICT_WAITS_S)

    def put() -> bool:
        while True:
            try:
                fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfNoneMatch="*", Metadata={WRITER: writer})
                return True
            except (ClientError, OSError) as error:
                code = error_code(error)
                if code in {"PreconditionFailed", "412"}:
                    there = fs.call_s3("head_object", Bucket=bucket, Key=key)
                    return bool(there.get("Metadata", {}).get(WRITER) == writer)
                wait_s = next(waits, None) if code in {"ConditionalRequestConflict", "409"} else None
                if wait_s is None:
                    raise
            time.sleep(wait_s)

    return patiently(put, uri)


@guard
def exists(uri: str) -> bool:
    """Whether exactly this key exists (a HEAD request on S3); a prefix does not count."""
    if is_s3(uri):
        fs = filesystem(uri)
        bucket, key, _ = fs.split_path(uri)
        try:
            fs.call_s3("head_object", Bucket=bucket, Key=key)
        except FileNotFoundError:
            return False
        return True
    return Path(uri).is_file()


@guard
def make_bucket(uri: str) -> None:
    """Create the bucket (or folder) that `uri` lives in, if it is not there."""
    if not is_s3(uri):
        Path(uri).mkdir(parents=True, exist_ok=True)
        return
    fs = filesystem(uri)
    bucket = fs.split_path(uri)[0]
    try:
        fs.call_s3("head_bucket", Bucket=bucket)
    except FileNotFoundError:
        fs.call_s3("create_bucket", Bucket=bucket)


@guard
def list_files(uri: str) -> list[FileInfo]:
    """Files that match: a glob (`*`, `**`), one key, or everything under a prefix; sorted by URI. No match gives []."""
    fs = filesystem(uri)
    if any(mark in uri for mark in "*?["):
        found = fs.glob(uri, detail=True)
    elif exists(uri):
        found = {uri.removeprefix("s3://"): fs.info(uri)}
    else:
        found = fs.find(uri, detail=True)
    scheme = "s3://" if is_s3(uri) else ""
    infos = [
        FileInfo(scheme + str(path), int(info["size"]), str(info.get("ETag", "")).strip('"') or str(info.get("mtime", "")))
        for path, info in found.items()
        if info["type"] == "file"
    ]
    return sorted((info for info in infos if not info.uri.endswith(".part")), key=lambda info: info.uri)


def require_files(uri: str) -> list[FileInfo]:
    """As list_files, but raises InputError when nothing matches."""
    found = list_files(uri)
    if not found:
        raise InputError("no file matches", "check the path; `medschool fetch --list` says which files can be fetched", uri)
    return found


@guard
def delete_file(uri: str) -> None:
    """Delete one key; FileNotFoundError when it does not exist."""
    filesystem(uri).rm_file(uri)


@guard
def delete_prefix(uri: str) -> None:
    """Delete everything under `uri`; nothing there is no error."""
    if is_s3(uri):
        fs = filesystem(uri)
        keys = fs.find(uri)
        if keys:
            fs.rm(keys)
        return
    shutil.rmtree(uri, ignore_errors=True)


@guard
def upload(uri: str, local: Path) -> None:
    """Copy one local file to a key, in parts."""
    if is_s3(uri):
        filesystem(uri).put_file(str(local), uri, chunksize=PART_BYTES, max_concurrency=2)
        return
    Path(uri).parent.mkdir(parents=True, exist_ok=True)
    part = f"{uri}.{uuid.uuid4().hex}.part"
    shutil.copyfile(local, part)
    os.replace(part, uri)


def download(uri: str, local: Path) -> None:
    """Copy one key to a local file; the file appears under its name only when it is whole."""
    local.parent.mkdir(parents=True, exist_ok=True)
    part = local.with_name(f".{local.name}.{uuid.uuid4().hex}.part")
    try:
        if is_s3(uri):
            _download_ranges(uri, part)
        else:
            shutil.copyfile(uri, part)
        os.replace(part, local)
    finally:
        part.unlink(missing_ok=True)


def _download_ranges(uri: str, part: Path) -> None:
    """Ranges of CHUNK_BYTES, two at a time, each fetched with the patience of `guard` and put into its place."""
    size = _size(uri)
    with part.open("wb") as file, ThreadPoolExecutor(2) as pool:

        def fetch(start: int) -> None:
            os.pwrite(file.fileno(), read_range(uri, start, min(start + CHUNK_BYTES, size)), start)

        list(pool.map(fetch, range(0, size, CHUNK_BYTES)))


def map_files(call: Callable[[T], Any], items: list[T]) -> None:
    """Run `call` over `items` in COPY_THREADS threads; the first error is raised after all have ended."""
    with ThreadPoolExecutor(COPY_THREADS) as pool:
        list(pool.map(call, items))


def local_files(folder: Path) -> Iterator[Path]:
    """All files under `folder`, sorted, without half-written ones."""
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(".part"))


def sha256_file(path: Path) -> str:
    """Hex sha256 of a local file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_and_sha256(uri: str) -> tuple[int, str]:
    """Size in bytes and hex sha256 of one key, read in chunks. Raises FileNotFoundError when it does not exist."""
    with open_binary(uri) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return int(file.tell()), digest


def download_verified(uri: str, local: Path, sha256: str) -> None:
    """Download one key and compare its hash; a file already there with the right hash is kept.

    Raises InputError when the stored bytes are not the ones the manifest names: they are then removed again.
    """
    if local.is_file() and sha256_file(local) == sha256:
        return
    download(uri, local)
    found = sha256_file(local)
    if found != sha256:
        local.unlink()
        raise another_object(uri, found, sha256)


def another_object(uri: str, found: str, sha256: str) -> InputError:
    """The error for stored bytes that are not the ones a manifest names."""
    return InputError(
        f"sha256 is {found}, its manifest says {sha256}: the object was changed or damaged after it was written",
        "delete the artifact's manifest so that the stage runs again, and check who else writes to this prefix",
        uri,
    )
