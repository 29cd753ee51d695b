"""The object store: one small set of verbs over s3fs, and the same verbs over a local folder.

A location is a URI: `s3://bucket/prefix/key`, or an absolute local path. S3 settings come from the standard variables
(`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`) or an instance profile, never from a recipe.

Two rules hold everywhere: existence is decided by a key, never by a "directory" (prefixes linger after their last object), and
a file that must be written once is written with `put_if_absent`, which is atomic on S3 (If-None-Match) and on POSIX (link).
"""

import functools
import gzip
import hashlib
import io
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as BotoConnectionError

from medschool.errors import InputError, StorageError

T = TypeVar("T")

COPY_THREADS = 8
CHUNK_BYTES = 8 * 2**20
PART_BYTES = 16 * 2**20
"""Part of an upload; COPY_THREADS files with two parts each are in memory at once."""
CONFLICT_WAITS_S = (0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class FileInfo:
    """One stored file. `tag` changes when the content does: the S3 ETag, or the modification time in ns of a local file."""

    uri: str
    size_bytes: int
    tag: str


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def join(base: str, *parts: str) -> str:
    """`base` with `parts` behind it; an absolute last part (a path or an s3 URI) wins, as in os.path.join."""
    for part in parts:
        base = part if is_s3(part) or part.startswith("/") else f"{base.rstrip('/')}/{part.lstrip('/')}"
    return base


def filesystem(uri: str) -> fsspec.AbstractFileSystem:
    """The fsspec file system of `uri`; S3 listings are never cached, because other processes write too."""
    return _s3(os.environ.get("AWS_ENDPOINT_URL", ""), os.getpid()) if is_s3(uri) else fsspec.filesystem("file")


@functools.cache
def _s3(endpoint_url: str, pid: int) -> fsspec.AbstractFileSystem:
    retries = {"retries": {"max_attempts": 5, "mode": "standard"}, "connect_timeout": 5, "read_timeout": 60}
    return fsspec.filesystem(
        "s3", use_listings_cache=False, skip_instance_cache=True, config_kwargs=retries, default_block_size=CHUNK_BYTES
    )


def guard(call: Callable[..., T]) -> Callable[..., T]:
    """Turn what botocore and s3fs raise in `call(uri, ...)` into a StorageError with a remedy.

    A missing key stays FileNotFoundError. For callers that keep a file of `filesystem` open and read from it.
    """

    @functools.wraps(call)
    def guarded(uri: str, *args: Any, **kwargs: Any) -> T:
        try:
            return call(uri, *args, **kwargs)
        except FileNotFoundError:
            raise
        except (ClientError, BotoCoreError, OSError) as error:
            if not is_s3(uri):
                raise
            raise _explain(error, uri) from error

    return guarded


def _code(error: BaseException) -> str:
    """The S3 error code of `error` or of what caused it, else ''."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ClientError):
            return str(seen.response.get("Error", {}).get("Code", ""))
        seen = seen.__cause__
    return ""


def _explain(error: Exception, uri: str) -> StorageError:
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "the default S3 endpoint")
    code = _code(error)
    if code in {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403", "Forbidden", "ExpiredToken"} or isinstance(
        error, PermissionError
    ):
        return StorageError(
            f"{endpoint} refuses these credentials ({code or error})",
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or unset them to use the ones of `medschool up`",
            uri,
        )
    if type(error).__name__ == "NoCredentialsError":
        return StorageError(
            "no S3 credentials found", "run `medschool up`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", uri
        )
    if isinstance(error, HTTPClientError | BotoConnectionError | ConnectionError | TimeoutError):
        return StorageError(
            f"{endpoint} does not answer ({error})", "run `medschool doctor`; start the store with `medschool up`", uri
        )
    return StorageError(f"the store answered {code or type(error).__name__}: {error}", "run `medschool doctor`", uri)


@guard
def read_bytes(uri: str) -> bytes:
    """Whole content. Raises FileNotFoundError when the key does not exist, StorageError when the store fails."""
    data: bytes = filesystem(uri).cat_file(uri)
    return data


def read_raw(uri: str, name: str) -> bytes:
    """A raw input file, unpacked where it ends in `.gz`. Raises InputError at `name` when it is not a whole gzip file."""
    data = read_bytes(uri)
    if not uri.endswith(".gz"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"not a whole gzip file ({error})", "fetch the file again", name) from error


def read_parquet(uri: str, columns: list[str] | None = None) -> pa.Table:
    """A whole Parquet file, or some of its columns."""
    return pq.read_table(io.BytesIO(read_bytes(uri)), columns=columns)


@guard
def read_range(uri: str, start_byte: int, stop_byte: int) -> bytes:
    """Bytes [start_byte, stop_byte) of a file."""
    data: bytes = filesystem(uri).cat_file(uri, start=start_byte, end=stop_byte)
    return data


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


@guard
def put_if_absent(uri: str, data: bytes) -> bool:
    """Write one key unless it exists; True when this call wrote it. Exactly one of several racing writers wins."""
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
    fs = filesystem(uri)
    bucket, key, _ = fs.split_path(uri)
    waits = iter(CONFLICT_WAITS_S)
    while True:
        try:
            fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            return True
        except (ClientError, OSError) as error:
            code = _code(error)
            if code in {"PreconditionFailed", "412"}:
                return False
            wait_s = next(waits, None) if code in {"ConditionalRequestConflict", "409"} else None
            if wait_s is None:
                raise
        time.sleep(wait_s)


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
        raise InputError("no file matches", "check the path; `medschool fetch quickstart` brings the quickstart's files", uri)
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


@guard
def download(uri: str, local: Path) -> None:
    """Copy one key to a local file; the file appears under its name only when it is whole."""
    local.parent.mkdir(parents=True, exist_ok=True)
    part = local.with_name(f".{local.name}.{uuid.uuid4().hex}.part")
    try:
        filesystem(uri).get_file(uri, str(part))
        os.replace(part, local)
    finally:
        part.unlink(missing_ok=True)


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


@guard
def size_and_sha256(uri: str) -> tuple[int, str]:
    """Size in bytes and hex sha256 of one key, read in chunks. Raises FileNotFoundError when it does not exist."""
    with filesystem(uri).open(uri, "rb") as file:
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
        raise InputError(
            f"sha256 is {found}, its manifest says {sha256}: the object was changed or damaged after it was written",
            "delete the artifact's manifest so that the stage runs again, and check who else writes to this prefix",
            uri,
        )
