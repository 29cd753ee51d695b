"""A set's folder in the store: what is in it, what it must be equal to, and whether it is whole.

    raw/medqa/4_options/train.jsonl, ...
    raw/medqa/LOCK.json          sha256 of each file, as it first came into this store
    raw/medqa/MANIFEST.json      origin, licence, and each file with size, sha256 and records; put last

The manifest's existence means that the set is whole. `fetch` reads every file again before it says so: a second and core for half
a gigabyte. Files that come later (PubMedQA's PQA-A) join those of the manifest. The lock is written before the files, so that a
copy that breaks off is finished by the same bytes or not at all.
"""

import fcntl
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medschool import storage
from medschool.errors import InputError
from medschool.releases.counted import count
from medschool.releases.download import WAITS_S, Watch, download
from medschool.releases.given import collect
from medschool.releases.sets import Download, Release, Wanted

LOCK, MANIFEST = "LOCK.json", "MANIFEST.json"
Say = Callable[[str], None]
WatchOf = Callable[[Download], Watch]
"""What is called while a file is downloaded."""


def fetch(
    release: Release, store_uri: str, home: Path, say: Say, watch_of: WatchOf, waits_s: tuple[float, ...] = WAITS_S
) -> None:
    """Download a set and put it into the store at `store_uri`; nothing happens where it is there and whole.

    What was downloaded stays in `home`/downloads until it is in the store. Of two calls with one `home` the second waits, and
    finds the set. Raises InputError where a host cannot be reached, has another file, or a file is not what was published,
    StorageError from the store.
    """
    say(f"{release.title}\nlicence: {release.licence}")
    folder = home / "downloads" / release.name
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        if is_whole(release, store_uri):
            say(f"have {release.name}: {folder_of(release, store_uri)}")
        else:
            _fetch(release, folder, store_uri, home, say, watch_of, waits_s)


def _fetch(
    release: Release, folder: Path, store_uri: str, home: Path, say: Say, watch_of: WatchOf, waits_s: tuple[float, ...]
) -> None:
    for one in release.downloads:
        if not _is_downloaded(one, folder / one.file):
            size = f" ({one.size_bytes / 1e6:,.1f} MB)" if one.size_bytes else ""
            say(f"downloading {one.url}{size}")
            download(one, folder / one.file, watch_of(one), say, _by_hand(release, one), waits_s)
        say(
            f"{one.file}: sha256 {storage.sha256_file(folder / one.file)}"
            + ("" if one.sha256 else ", which nobody has published")
        )
    put(release, folder, " ".join(one.url for one in release.downloads), store_uri, home, say)
    for one in release.downloads:
        (folder / one.file).unlink()


def put(release: Release, given: Path, origin: str, store_uri: str, home: Path, say: Say) -> None:
    """Put what `given` (a file, folder or archive) holds of a release into the store. origin: for the manifest.

    Raises InputError where a file is missing, has another number of records than was published, or is another one than the first
    that this store had; the store is then as it was.
    """
    uri = folder_of(release, store_uri)
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix="fetch-") as name:
        found = collect(release, given, Path(name))
        earlier = _files(uri)
        _check_complete(release, found, earlier, given)
        described = {wanted.name: _describe(wanted, Path(name) / wanted.name, say) for wanted in found}
        _lock(uri, {name: entry["sha256"] for name, entry in described.items()})
        for wanted in found:
            storage.upload(storage.join(uri, wanted.name), Path(name) / wanted.name)
    manifest = {"origin": origin, "licence": release.licence, "files": list((earlier | described).values())}
    storage.write_bytes(storage.join(uri, MANIFEST), json.dumps(manifest, indent=1).encode())
    say(f"stored {release.name}: {uri}")


def folder_of(release: Release, store_uri: str) -> str:
    return storage.join(store_uri, "raw", release.name)


def is_whole(release: Release, store_uri: str) -> bool:
    """Whether all files of the manifest are there with their digests, and none that the set needs is missing."""
    uri = folder_of(release, store_uri)
    files = _files(uri)
    if not files or any(wanted.name not in files for wanted in release.files if not wanted.optional):
        return False
    try:
        return all(storage.size_and_sha256(storage.join(uri, name))[1] == entry["sha256"] for name, entry in files.items())
    except FileNotFoundError:
        return False


def _files(uri: str) -> dict[str, dict[str, Any]]:
    """The manifest's files by name; none where there is no manifest, or it is damaged."""
    try:
        return {file["path"]: file for file in json.loads(storage.read_bytes(storage.join(uri, MANIFEST)))["files"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _is_downloaded(one: Download, path: Path) -> bool:
    """Whether an earlier call brought it: a file has its name when it is whole."""
    return path.is_file() and one.sha256 in (None, storage.sha256_file(path))


def _by_hand(release: Release, one: Download) -> str:
    return f"bring {one.file} to this machine another way, then run: medschool fetch {release.name} --from {one.file}"


def _check_complete(release: Release, found: list[Wanted], earlier: dict[str, dict[str, Any]], given: Path) -> None:
    have = {wanted.name for wanted in found} | earlier.keys()
    missing = [wanted for wanted in release.files if not wanted.optional and wanted.name not in have]
    if missing or not found:
        wanted = missing[0] if missing else release.files[0]
        names = ", ".join((*wanted.known_as, *([wanted.parts] if wanted.parts else [])))
        archives = ", ".join(one.file for one in release.downloads)
        raise InputError(
            f"holds no {wanted.name} of {release.name} (looked for {names})",
            f"give the release as it is published: {archives}, unpacked or not, or the folder that it is in",
            str(given),
        )


def _describe(wanted: Wanted, path: Path, say: Say) -> dict[str, Any]:
    """Count and hash one file. Raises InputError where its count is not one of those that were published."""
    found, sha256 = count(path, wanted.format), storage.sha256_file(path)
    say(f"{wanted.name}: {found.words()}, sha256 {sha256}")
    if found.records not in wanted.records:
        published = " or ".join(f"{records:,}" for records in wanted.records)
        problem = f"has {found.records:,} records, the release has {published}"
        raise InputError(
            problem, "give the whole file as it was released; parts of it are named in a recipe by their own path", wanted.name
        )
    if wanted.sha256 not in (None, sha256):
        say(f"{wanted.name}: these are not the bytes of the pinned release (sha256 {wanted.sha256})")
    return {"path": wanted.name, "size_bytes": path.stat().st_size, "sha256": sha256} | asdict(found)


def _lock(uri: str, found: dict[str, str]) -> None:
    """Hold digests by name against the lock, and add those that are new. Raises InputError at the first that differs."""
    where = storage.join(uri, LOCK)
    if storage.put_if_absent(where, json.dumps(found, indent=1).encode()):
        return
    locked = json.loads(storage.read_bytes(where))
    for name, sha256 in found.items():
        if locked.get(name, sha256) != sha256:
            raise InputError(
                f"{name} has sha256 {sha256}, the one that was here first has {locked[name]}",
                f"find out why it has changed; to take the new one, delete {where}",
                uri,
            )
    if not found.keys() <= locked.keys():
        storage.write_bytes(where, json.dumps(locked | found, indent=1).encode())
