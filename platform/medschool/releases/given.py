"""Released files found in what is at hand: a folder, a file, or an archive, packed or not.

    --from medquad.jsonl.gz      a file, unpacked
    --from data_clean.zip        the members of an archive (.zip, .tar, .tar.gz, .tgz)
    --from ~/Downloads           the files of a folder; of its archives only those that are named like the release's

One pass over all paths, in the order of the folder or archive; contents are opened where a path is known. Files are written under
the names of `sets`, so no path of an archive can lead out of the folder. Two paths for one file are an error: a guess could take
the questions of another country. What macOS puts beside each file of an archive (`._train.json`) is passed over.
"""

import gzip
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from medschool import s3, storage
from medschool.errors import InputError
from medschool.releases.medquad import json_lines
from medschool.releases.sets import Release, Wanted

TAR = (".tar", ".tar.gz", ".tgz")
Opener = Callable[[], AbstractContextManager[Any]]
BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError, NotImplementedError, RuntimeError)
"""What the standard library raises over archives that are damaged or locked with a password."""


def collect(release: Release, given: Path, folder: Path) -> list[Wanted]:
    """Write those files of the release that `given` holds into `folder`; returns them, in the order of the release.

    Raises InputError where `given` does not exist, is damaged, or holds one file twice.
    """
    if not given.exists():
        raise InputError("there is no such file or folder", "give the release as you downloaded it", str(given))
    found: dict[str, str] = {}
    path = str(given)
    try:
        for path, opened in _paths(release, given):
            for wanted in () if "/._" in path else release.files:
                if _take(wanted, path, opened, folder / wanted.name, found.get(wanted.name)):
                    found[wanted.name] = path
    except BROKEN as error:
        remedy = "look at the file, or download it again; see that this disk has room"
        raise InputError(f"cannot be taken over ({error or type(error).__name__})", remedy, path) from error
    return [wanted for wanted in release.files if wanted.name in found]


def _take(wanted: Wanted, path: str, opened: Opener, target: Path, earlier: str | None) -> bool:
    """Whether a path is the wanted file, or a part of it, and is written now. earlier: the last path that was."""
    is_part = bool(wanted.parts) and fnmatchcase(path, f"*/{wanted.parts}")
    if not is_part and not any(fnmatchcase(path, pattern) for pattern in wanted.known_as):
        return False
    if earlier and not (is_part and fnmatchcase(earlier, f"*/{wanted.parts}")):
        raise InputError(f"{path} and {earlier} are both {wanted.name}", "give one of them", "--from")
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened() as content, target.open("ab") as file:
        if is_part:
            file.writelines(json_lines(content, path))
        else:
            shutil.copyfileobj(content, file, s3.CHUNK_BYTES)
    return True


def _paths(release: Release, given: Path) -> Iterator[tuple[str, Opener]]:
    """(path, how it is opened) of every file in `given`; paths are absolute, with that of an archive before its members'."""
    archives = {one.file for one in release.downloads}
    for path in storage.local_files(given) if given.is_dir() else (given,):
        if path == given or path.name in archives or not _is_archive(path):
            yield from _inside(path, str(path.absolute()))


def _inside(path: Path, where: str) -> Iterator[tuple[str, Opener]]:
    if path.name.endswith(TAR):
        yield from _in_tar(path, where)
    elif path.suffix == ".zip":
        yield from _in_zip(path, where)
    elif path.suffix == ".gz":
        yield where.removesuffix(".gz"), lambda: gzip.GzipFile(path)
    else:
        yield where, lambda: path.open("rb")


def _in_zip(path: Path, where: str) -> Iterator[tuple[str, Opener]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield f"{where}/{info.filename}", lambda info=info: archive.open(info)  # type: ignore[misc]


def _in_tar(path: Path, where: str) -> Iterator[tuple[str, Opener]]:
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile():
                yield f"{where}/{member.name}", lambda member=member: archive.extractfile(member)  # type: ignore[misc]


def _is_archive(path: Path) -> bool:
    return path.suffix == ".zip" or path.name.endswith(TAR)
