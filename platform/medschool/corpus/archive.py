"""Tar archives of raw files, such as the article packages of PubMed Central: the reader runs over every member of its kind.

    package.tar.gz ──storage.open_raw: unpacked──> tar ──members──> reader(stream of one member, "package.tar.gz!a/b.nxml")

The archive is read once, from its beginning to its end, and nothing of it is ever written under a name that it chose. A member
that no reader may have is a Dropped of the step `malformed`: a link, a device, a sparse file, an absolute path, a path with `..`,
a name that an earlier member has. Members of other kinds (a package holds figures beside its article) are counted in one Dropped
of the step `other_files`.

A member that its reader refuses is one malformed record, not a malformed archive: of ten thousand articles one may be broken.
An archive that is damaged or ends without its end mark raises InputError: what followed is not known. Python's `tarfile` takes
both for the end, therefore `_Header` looks first.

Memory: what the reader needs for one member, and 100 bytes a member for its name's hash.
"""

import io
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypeAlias

from medschool.corpus.spool import COPY_BYTES
from medschool.errors import InputError
from medschool.rows import Draft, Dropped

Reader: TypeAlias = Callable[[BinaryIO, str, str], Iterator[Draft | Dropped]]
"""(stream of the unpacked file, uri, source) -> rows in the order of the file."""

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst")
HEADER_BYTES = 2**20
"""Longest extension header (a long name, extended attributes); it is held in memory."""
NAMED_KINDS = 5
_EXTENSIONS = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}


def archived(read: Reader, *suffixes: str) -> Reader:
    """`read`, also over archives: where the uri ends in one of ARCHIVES, over each member whose name ends in a suffix."""

    def reader(stream: BinaryIO, uri: str, source: str) -> Iterator[Draft | Dropped]:
        if uri.endswith(ARCHIVES):
            yield from _members(read, suffixes, stream, uri, source)
        else:
            yield from read(stream, uri, source)

    return reader


def _members(read: Reader, suffixes: tuple[str, ...], stream: BinaryIO, uri: str, source: str) -> Iterator[Draft | Dropped]:
    others: Counter[str] = Counter()
    seen: set[int] = set()
    count = 0
    for archive, member in _headers(stream, uri):
        place, name = f"{uri}!{member.name}", member.name.lower()
        if problem := _problem(member) or ("an earlier member has this name" if hash(name) in seen else ""):
            yield Dropped(place, source, "malformed", problem, "", uri)
        elif not name.endswith(suffixes):
            others[PurePosixPath(name).suffix or "no suffix"] += 1
        else:
            count += 1
            yield from _member(read, _Member(archive, member, uri), place, source)
        seen.add(hash(name))
    if not count:
        raise InputError(f"holds no file that ends in {' or '.join(suffixes)}", "check this source's `format`", uri)
    if others:
        kinds = ", ".join(f"{kind} {times}" for kind, times in others.most_common(NAMED_KINDS))
        yield Dropped(uri, source, "other_files", f"{others.total()} members of other kinds: {kinds}", "", uri)


def _member(read: Reader, raw: "_Member", place: str, source: str) -> Iterator[Draft | Dropped]:
    """Rows of one member, and as the last one what it was refused for."""
    try:
        yield from read(io.BufferedReader(raw), place, source)
    except InputError as error:
        if raw.damage is not None:
            raise raw.damage from error
        yield Dropped(error.where or place, source, "malformed", error.problem, "", place)


def _headers(stream: BinaryIO, uri: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Every member but the folders, and in the end the rest of the stream, which holds the checksum where it is packed."""
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # TarFile would keep every header
                if not member.isdir():
                    yield archive, member
    except (tarfile.TarError, ValueError) as error:
        raise _damaged(error, uri) from error
    while stream.read(COPY_BYTES):
        pass


def _problem(member: tarfile.TarInfo) -> str:
    """Why no reader may have this member; empty where it may."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return f"the path {member.name!r:.200} leads out of the archive"
    if member.issym() or member.islnk():
        return f"a link to {member.linkname!r:.200}, not a file"
    return "" if member.isreg() and not member.issparse() else f"a special file (type {member.type!r}), not a plain one"


def _damaged(error: Exception, uri: str) -> InputError:
    return InputError(f"not a whole tar archive ({error})", "fetch the file again", uri)


class _Header(tarfile.TarInfo):
    """A member's header. One that cannot be read is an error; TarFile would see the end of the archive."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "_Header":
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end mark
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if header.type in _EXTENSIONS and header.size > HEADER_BYTES:
            raise tarfile.ReadError(f"an extension header of {header.size} bytes")
        return header


class _Member(io.RawIOBase):
    """The bytes of one member, in order. `damage` is what the archive failed with, if it did while this member was read."""

    def __init__(self, archive: tarfile.TarFile, member: tarfile.TarInfo, uri: str) -> None:
        file = archive.extractfile(member)
        assert file is not None
        self._file, self._uri = file, uri
        self.damage: InputError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except InputError as error:
            self.damage = error
            raise
        except tarfile.TarError as error:
            self.damage = _damaged(error, self._uri)
            raise self.damage from error
        buffer[: len(data)] = data
        return len(data)
