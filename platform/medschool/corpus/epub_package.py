"""An EPUB as an archive and a package: what its container, package, navigation and guide say, and its members, checked.

    zip --META-INF/container.xml--> package (OPF) --spine--> documents with titles, types, title of the book, year, licence

The file is not trusted. Nothing of it is ever written, a path in it is only looked up among its members; the sizes that its
directory states are limits (a zip member cannot give more), checked before the first row; XML is read as in corpus.xml.
"""

import html
import posixpath
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from lxml import etree

from medschool.corpus.licences import GROUPS, allowed
from medschool.corpus.spool import WHOLE_BYTES
from medschool.corpus.stated import licence_of, year_of
from medschool.corpus.xml import MAX_ELEMENT_BYTES
from medschool.errors import InputError

MEMBER_BYTES, BOOK_BYTES = MAX_ELEMENT_BYTES, WHOLE_BYTES
"""Largest document of a spine, and all of them together, unpacked. A thick textbook has 20 MB in parts of less than 1 MB."""
MAX_RATIO, RATIO_BYTES = 100, 2**20
"""Largest ratio of unpacked to packed size, for members of more than RATIO_BYTES. XHTML has 3 to 20, a bomb about 1,000."""
CONTAINER, ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
XHTML = {"application/xhtml+xml", "text/html", "text/x-oeb1-document"}
SVG, NCX = "image/svg+xml", "application/x-dtbncx+xml"
AGAIN = "fetch the file again; if it is the same, take it out of the source"
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)
"""What zipfile raises for a damaged archive; OSError for a place before its beginning. The copy that it reads is on this disk."""
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_LOCKED = 1
"""Flag of a zip member that has a password."""
_TYPE = "{http://www.idpf.org/2007/ops}type"


@dataclass(frozen=True)
class Archive:
    """The members of an EPUB, by their paths. Every error names the file and the member."""

    zip: zipfile.ZipFile
    uri: str

    def where(self, path: str, line: int | None = None) -> str:
        return f"{self.uri}!{path}:{line}" if line is not None else f"{self.uri}!{path}"

    def checked(self, path: str) -> zipfile.ZipInfo:
        """What the directory says of a member. Raises InputError where it is missing, locked or too large to be read."""
        try:
            member = self.zip.getinfo(path)
        except KeyError as error:
            raise InputError("is missing in the EPUB, which needs it", AGAIN, self.where(path)) from error
        size, packed = member.file_size, max(member.compress_size, 1)
        for refused, problem, remedy in (
            (member.flag_bits & _LOCKED, "is locked with a password", "use a copy of the book without a password"),
            (member.compress_type not in _METHODS, f"is packed by method {member.compress_type}, no EPUB is", AGAIN),
            (size > MEMBER_BYTES, f"has {size} bytes, more than {MEMBER_BYTES}", "take the file out of the source"),
            (
                size > RATIO_BYTES and size > MAX_RATIO * packed,
                f"has {size} bytes packed into {packed}: a zip bomb, not a text",
                "take the file out of the source",
            ),
        ):
            if refused:
                raise InputError(problem, remedy, self.where(path))
        return member

    def xml(self, path: str) -> etree._Element:
        """The root of an XML member. Raises InputError where it is damaged, not well-formed or declares entities."""
        try:
            data = self.zip.read(self.checked(path))
        except _DAMAGE as error:
            raise InputError(f"is damaged in the EPUB ({error})", "fetch the file again", self.where(path)) from error
        parser = etree.XMLParser(
            resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True, remove_pis=True
        )
        try:
            root = etree.fromstring(data, parser)
        except etree.XMLSyntaxError as error:
            raise InputError(f"not well-formed XML ({error.msg})", AGAIN, self.where(path, error.lineno)) from error
        dtd = root.getroottree().docinfo.internalDTD
        if dtd is not None and next(iter(dtd.iterentities()), None) is not None:
            problem = "declares XML entities, which could read files or grow without end"
            raise InputError(problem, "take the file out of the source", self.where(path))
        return root


@contextmanager
def opened(copy: Path, uri: str) -> Iterator[Archive]:
    """The archive. Raises InputError where the file is none, or only the beginning of one."""
    with copy.open("rb") as file:
        begins = file.read(4) == b"PK\x03\x04"
        try:
            archive = zipfile.ZipFile(file)
        except _DAMAGE as error:
            what = "not a whole zip archive, it is cut short or damaged" if begins else "not a zip archive, so no EPUB"
            raise InputError(f"{what} ({error})", "fetch the file again, or check this source's `format`", uri) from error
        with archive:
            yield Archive(archive, uri)


@dataclass(frozen=True)
class Document:
    """One document of the spine."""

    path: str
    media: str
    linear: bool


@dataclass(frozen=True)
class Book:
    """What the package says: of the book as a whole, and of documents by their paths."""

    title: str
    year: int | None
    licence: str
    language: str
    documents: tuple[Document, ...]
    labels: dict[str, str]
    """Titles, by the navigation document or the NCX."""
    types: dict[str, str]
    """Types, by the guide."""


def read_book(archive: Archive, name: str) -> Book:
    """The package, its spine checked: every document is there, can be read and is of a size that a text has."""
    opf = _package_path(archive)
    package = archive.xml(opf)
    items = {item.get("id", ""): item for item in package.iterfind("{*}manifest/{*}item")}
    documents = tuple(_spine(package, items, archive, opf))
    _check(archive, documents)

    def stated(tag: str) -> list[str]:
        return [words for node in package.iterfind(f"{{*}}metadata//{{*}}{tag}") if (words := plain(node))]

    dates = sorted(package.iterfind("{*}metadata//{*}date"), key=_date_rank)
    group = licence_of(" ".join(stated("rights")))
    return Book(
        title=next(iter(stated("title")), name),
        year=next((year for node in dates if (year := year_of(plain(node)))), None),
        licence=group if group in allowed(GROUPS) else "unstated",
        language=next(iter(stated("language")), "").lower().partition("-")[0],
        documents=documents,
        labels=_labels(archive, package, items.values(), opf),
        types={
            _resolved(archive, opf, node.get("href", "")): node.get("type", "").removeprefix("other.").lower()
            for node in package.iterfind("{*}guide/{*}reference")
            if "#" not in node.get("href", "")
        },
    )


def _package_path(archive: Archive) -> str:
    if CONTAINER not in archive.zip.NameToInfo:
        raise InputError(f"holds no {CONTAINER}: not an EPUB", "check this source's `format`", archive.uri)
    for root in archive.xml(CONTAINER).iterfind("{*}rootfiles/{*}rootfile"):
        if path := root.get("full-path"):
            return str(path)
    raise InputError("names no package (<rootfile full-path=...>)", AGAIN, archive.where(CONTAINER))


def _spine(package: etree._Element, items: dict[str, etree._Element], archive: Archive, opf: str) -> Iterator[Document]:
    """The documents in their order, each once. One of another kind stands for the XHTML that it falls back on."""
    seen: set[str] = set()
    for ref in package.iterfind("{*}spine/{*}itemref"):
        name = ref.get("idref", "")
        tried: set[str] = set()
        while name in items and items[name].get("media-type") not in XHTML and name not in tried:
            tried.add(name)
            name = items[name].get("fallback") or name
        if name not in items:
            problem = f"the spine names {name!r}, which the manifest does not have"
            raise InputError(problem, AGAIN, archive.where(opf, ref.sourceline))
        path = _resolved(archive, opf, items[name].get("href", ""))
        if path not in seen:
            seen.add(path)
            yield Document(path, items[name].get("media-type", ""), ref.get("linear") != "no")
    if not seen:
        raise InputError("has no spine, or an empty one: the book has no text", AGAIN, archive.where(opf))


def _check(archive: Archive, documents: Iterable[Document]) -> None:
    """Raises InputError where a document of the spine cannot be read, or all of them are too much."""
    locked = _encrypted(archive)
    total = 0
    for document in documents:
        total += archive.checked(document.path).file_size
        if document.path in locked:
            problem = f"is encrypted (DRM), as are {len(locked)} members by {ENCRYPTION}"
            raise InputError(problem, "use a copy of the book that its publisher gives without DRM", archive.where(document.path))
        if document.media not in {*XHTML, SVG}:
            problem = f"is a document of the spine and no XHTML, but {document.media or 'of no media type'}"
            raise InputError(problem, AGAIN, archive.where(document.path))
    if total > BOOK_BYTES:
        problem = f"its documents have {total} bytes together, more than {BOOK_BYTES}"
        raise InputError(problem, "take the file out of the source", archive.uri)


def _encrypted(archive: Archive) -> set[str]:
    """Paths of the encrypted members; fonts are often among them, which bothers nobody here."""
    if ENCRYPTION not in archive.zip.NameToInfo:
        return set()
    return {_resolved(archive, "", node.get("URI", "")) for node in archive.xml(ENCRYPTION).iterfind(".//{*}CipherReference")}


def _labels(archive: Archive, package: etree._Element, items: Iterable[etree._Element], opf: str) -> dict[str, str]:
    """Title of each document, the first that the navigation document or else the NCX has for it."""
    labels: dict[str, str] = {}

    def put(path: str, href: str, words: str) -> None:
        if words:
            labels.setdefault(_resolved(archive, path, href), words)

    for item in sorted(items, key=lambda item: item.get("media-type") == NCX):
        path = _resolved(archive, opf, item.get("href", ""))
        if "nav" in item.get("properties", "").split():
            for link in archive.xml(path).iterfind(".//{*}nav//{*}a"):
                nav = next(link.iterancestors("{*}nav"))
                if "toc" in types_of(nav) or not types_of(nav):
                    put(path, link.get("href", ""), plain(link))
        elif item.get("media-type") == NCX:
            for point in archive.xml(path).iterfind(".//{*}navMap//{*}navPoint"):
                content, label = point.find("{*}content"), point.find("{*}navLabel/{*}text")
                if content is not None and label is not None:
                    put(path, content.get("src", ""), plain(label))
    return labels


def _resolved(archive: Archive, base: str, href: str) -> str:
    """Path of the member that `href` in the member `base` leads to; one that leads out of the archive is no member's."""
    href, folder = href.partition("#")[0], posixpath.dirname(base)
    paths = [posixpath.normpath(posixpath.join(folder, spelling)) for spelling in (unquote(href), href)]
    return next((path for path in paths if path in archive.zip.NameToInfo), paths[0])


def _date_rank(node: etree._Element) -> int:
    """Day of publication first, day of a modification last."""
    event = next((value for name, value in node.attrib.items() if name.rpartition("}")[2] == "event"), "")
    return {"publication": 0, "modification": 2}.get(str(event), 1)


def plain(node: etree._Element) -> str:
    return " ".join(html.unescape("".join(node.itertext())).split())


def types_of(node: etree._Element) -> list[str]:
    """What an element is by its `epub:type` and `role`, the more exact first where both are given."""
    roles = (role.removeprefix("doc-") for role in node.get("role", "").lower().split() if role.startswith("doc-"))
    return [*node.get(_TYPE, "").lower().split(), *roles]
