"""Artifacts: what a stage made, found again by what went in.

    artifacts/<stage>/<fingerprint>/attempt-<id>/...     the files, under a prefix no other attempt shares
    artifacts/<stage>/<fingerprint>/manifest.json        sizes and sha256 of those files, put last and only if absent

The manifest's existence means "finished". A run that dies leaves files that no manifest names; nobody reads them, and the next
attempt does not touch them. Of two writers with one fingerprint exactly one commits, the other takes the winner's result.

A fingerprint is a hash of what decides the content: the stage's recipe sections, the digests of its inputs' manifests, the tags
of the raw files it reads, and the version of its format. Where things are stored, the cluster and the recipe's name never enter.
"""

import fcntl
import hashlib
import io
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medschool import storage
from medschool.errors import StorageError

MANIFEST_FORMAT = 1
NOT_CONTENT = ("metrics.jsonl", "exam_items.parquet")
"""Files about the making: times and speeds differ between two runs that make the same; so does what the exams that a set of
instructions was compared with have in common with what was removed from it, where another exam is added."""
RECORDED_VERSIONS = ("medschool", "ray", "torch", "deepspeed", "transformers", "tokenizers", "pyarrow")


@dataclass(frozen=True)
class ArtifactFile:
    """One file of an artifact; `path` is relative to the artifact's prefix."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Output:
    """What a stage function returns: the files it wrote under its prefix, and small facts about them (JSON values)."""

    files: tuple[ArtifactFile, ...]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """A finished stage as its manifest describes it."""

    stage: str
    fingerprint: str
    manifest_uri: str
    prefix_uri: str
    files: tuple[ArtifactFile, ...]
    facts: dict[str, Any]
    inputs: dict[str, str]
    seconds: float
    created: str = ""
    """ISO time at which it was finished; empty where it is not known."""

    @property
    def digest(self) -> str:
        """sha256 over paths and hashes of the files: equal content has an equal digest, whoever made it and when."""
        content = [file for file in self.files if file.path not in NOT_CONTENT]
        return digest_of([[file.path, file.sha256] for file in sorted(content, key=lambda file: file.path)])

    def uri(self, path: str) -> str:
        """Full URI of one of the files."""
        return storage.join(self.prefix_uri, path)


def digest_of(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def fingerprint_of(stage: str, version: int, sections: Mapping[str, Any], inputs: Mapping[str, str], raw: list[list[str]]) -> str:
    """First 16 hex digits of the hash of everything that decides a stage's content (see the module's docstring)."""
    return digest_of({"stage": stage, "version": version, "sections": sections, "inputs": inputs, "raw": raw})[:16]


def stage_uri(store_uri: str, stage: str, fingerprint: str) -> str:
    return storage.join(store_uri, "artifacts", stage, fingerprint)


def manifest_uri_of(store_uri: str, stage: str, fingerprint: str) -> str:
    return storage.join(stage_uri(store_uri, stage, fingerprint), "manifest.json")


def write_file(prefix_uri: str, path: str, data: bytes) -> ArtifactFile:
    """Write one file of an artifact in the making and describe it."""
    storage.write_bytes(storage.join(prefix_uri, path), data)
    return ArtifactFile(path, len(data), hashlib.sha256(data).hexdigest())


def write_parquet(prefix_uri: str, path: str, rows: pa.Table) -> ArtifactFile:
    """Write one table of an artifact in the making as Parquet, and describe it."""
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd")
    return write_file(prefix_uri, path, sink.getvalue())


def upload_folder(prefix_uri: str, folder: Path, under: str = "") -> tuple[ArtifactFile, ...]:
    """Upload all files of `folder` below `under`, several at a time, and describe them."""
    files = tuple(
        ArtifactFile(
            storage.join(under, str(path.relative_to(folder))).lstrip("/"), path.stat().st_size, storage.sha256_file(path)
        )
        for path in storage.local_files(folder)
    )
    local = dict(zip(files, storage.local_files(folder), strict=True))
    storage.map_files(lambda file: storage.upload(storage.join(prefix_uri, file.path), local[file]), list(files))
    return files


def fetch_files(artifact: Artifact, folder: Path, under: str = "") -> Path:
    """Download the artifact's files below `under` into `folder`, keeping their paths, and verify every sha256.

    Files already there with the right hash are kept. Raises InputError on a hash that differs, StorageError when `under` holds
    none.
    """
    wanted = [file for file in artifact.files if file.path.startswith(under)]
    if not wanted:
        raise StorageError(f"the artifact holds no files below {under!r}", "run the stage that makes it", artifact.manifest_uri)
    storage.map_files(lambda file: storage.download_verified(artifact.uri(file.path), folder / file.path, file.sha256), wanted)
    return folder / under


def read_manifest(manifest_uri: str) -> Artifact:
    """The artifact that a manifest describes. Raises FileNotFoundError without one, StorageError when it is not readable."""
    try:
        raw = json.loads(storage.read_bytes(manifest_uri))
        base = manifest_uri.rsplit("/", 1)[0]
        return Artifact(
            stage=raw["stage"],
            fingerprint=raw["fingerprint"],
            manifest_uri=manifest_uri,
            prefix_uri=storage.join(base, raw["prefix"]),
            files=tuple(ArtifactFile(**file) for file in raw["files"]),
            facts=raw["facts"],
            inputs=raw["inputs"],
            seconds=raw["seconds"],
            created=raw.get("created", ""),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"not a manifest ({error})", "delete this key; the stage will run again", manifest_uri) from error


def find(store_uri: str, stage: str, fingerprint: str) -> Artifact | None:
    """The finished artifact, or None."""
    try:
        return read_manifest(manifest_uri_of(store_uri, stage, fingerprint))
    except FileNotFoundError:
        return None


def make(
    store_uri: str,
    stage: str,
    fingerprint: str,
    inputs: Mapping[str, str],
    do: Callable[[str], Output],
    prefix_uri: str | None = None,
) -> Artifact:
    """Run `do(prefix_uri)` and commit what it made; the winner's artifact when another writer was faster.

    A stage that adopts files that already lie in the store passes their prefix_uri; they are then named, not copied.
    """
    base = stage_uri(store_uri, stage, fingerprint)
    prefix = prefix_uri or storage.join(base, f"attempt-{uuid.uuid4().hex[:12]}")
    start = time.monotonic()
    output = do(prefix)
    _check_sizes(prefix, output.files)
    manifest = {
        "format": MANIFEST_FORMAT,
        "stage": stage,
        "fingerprint": fingerprint,
        "prefix": prefix if prefix_uri else prefix.removeprefix(base + "/"),
        "files": [asdict(file) for file in output.files],
        "facts": output.facts,
        "inputs": dict(inputs),
        "seconds": round(time.monotonic() - start, 3),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    uri = manifest_uri_of(store_uri, stage, fingerprint)
    storage.put_if_absent(uri, json.dumps(manifest, indent=1).encode())
    made = read_manifest(uri)  # its word counts, not the put's: the answer to a put that worked can be lost
    if not prefix_uri and made.prefix_uri != prefix:
        storage.delete_prefix(prefix)
    return made


def _check_sizes(prefix_uri: str, files: tuple[ArtifactFile, ...]) -> None:
    """Compare the store's own listing with what was written; a lost or short object must not be committed."""
    stored = {info.uri: info.size_bytes for info in storage.list_files(prefix_uri)}
    for file in files:
        uri = storage.join(prefix_uri, file.path)
        if stored.get(uri) != file.size_bytes:
            raise StorageError(
                f"{file.size_bytes} bytes were written, the store lists {stored.get(uri, 'no such object')}",
                "run again; if it recurs check the store's disk",
                uri,
            )


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what a stage writes, as installed here."""
    return {name: metadata.version(name) for name in RECORDED_VERSIONS if _installed(name)}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def local_copy(artifact: Artifact, under: str = "") -> Path:
    """The artifact's files below `under` on this node's disk, verified; downloaded once a node and kept by digest."""
    cache = Path(os.environ.get("MEDSCHOOL_CACHE", Path.home() / ".cache" / "medschool"))
    folder = cache / artifact.digest[:32]
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with folder.with_suffix(".lock").open("w") as lock:  # the workers of a node ask at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        return fetch_files(artifact, folder, under)
