"""Raw files of a source in parts: a part is read in one go, and marked as done.

    part: some raw files --read_part--> work/read/00007-<id>/{documents,aside}.parquet, hashes.bin   then work/read/00007.json

The work folder belongs to the stage's fingerprint, so it outlives a killed job: the next one takes the marks that it finds and
reads only the other parts. Large files are a part each, small ones share one: a kill costs a worker PART_BYTES of raw files, or
one file, at most.

A raw file enters whole or not at all: it is read into files of its own, which join the part's when it has ended well. One that
breaks off (InputError) leaves a row with the step `unreadable` and nothing else. What the store fails to give is no such file:
its StorageError stops the stage.

Memory of a worker, whatever the size of the files: about four row groups (pieces.PIECE_BYTES), three times the largest record,
and 8 bytes a document of the part; local disk: twice the compressed text of the part.
"""

import tempfile
import uuid
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from medschool import storage
from medschool.artifact import upload_folder
from medschool.corpus.admit import Terms, admit
from medschool.corpus.clean import content_key
from medschool.corpus.formats import FORMATS
from medschool.corpus.funnel import Funnel
from medschool.corpus.marks import Mark, put_mark, read_uri
from medschool.corpus.pieces import Pieces, pieces_in
from medschool.errors import InputError, StorageError
from medschool.formats import by_name
from medschool.recipe import Recipe
from medschool.rows import DOCUMENT_SCHEMA, DROPPED_SCHEMA, Draft, Dropped
from medschool.seed import seed_of

PART_BYTES = 64 * 2**20
FEW_PARTS = 64
"""A source with less than so many parts of PART_BYTES is cut into smaller ones, so that all workers have one."""
HASHES = "hashes.bin"
NAMED = 3
"""Malformed records of a part that its mark quotes."""


@dataclass(frozen=True)
class RawFile:
    """One raw file of a source."""

    uri: str
    name: str
    """Its path below the store: what its documents carry."""
    format: str
    licence: str | None
    retrieved: date | None
    size_bytes: int
    entry: int
    """Which entry of the recipe's `files` named it."""


@dataclass(frozen=True)
class Part:
    """Raw files that one task reads, in order."""

    number: int
    source: str
    files: tuple[RawFile, ...]


def parts_of(recipe: Recipe, source: str, store_uri: str) -> tuple[Part, ...]:
    """The parts of a source, by the recipe and the listing alone. Raises InputError for an unknown format or no files."""
    below = store_uri.rstrip("/") + "/"
    files = []
    for entry, spec in enumerate(recipe.sources[source].files):
        by_name(FORMATS, spec.format, f"sources.{source}.files")
        for info in storage.require_files(storage.join(store_uri, spec.uri)):
            name = info.uri.removeprefix(below)
            files.append(RawFile(info.uri, name, spec.format, spec.licence, spec.retrieved, info.size_bytes, entry))
    return tuple(Part(number, source, tuple(group)) for number, group in enumerate(_groups(files)))


def _groups(files: Sequence[RawFile]) -> Iterator[list[RawFile]]:
    limit = min(PART_BYTES, sum(file.size_bytes for file in files) // FEW_PARTS)
    held: list[RawFile] = []
    held_bytes = 0
    for file in files:
        if held and held_bytes + file.size_bytes > limit:
            yield held
            held, held_bytes = [], 0
        held.append(file)
        held_bytes += file.size_bytes
    if held:
        yield held


# ---- reading ------------------------------------------------------------------------------------------------------------------


@dataclass
class _Reading:
    """What a raw file came to, or the files of a part together."""

    funnel: Funnel
    documents: Pieces
    aside: Pieces
    read: int = 0
    hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    steps: Counter[str] = field(default_factory=Counter)
    first_malformed: list[Dropped] = field(default_factory=list)
    found: Counter[str] = field(default_factory=Counter)

    @classmethod
    def into(cls, folder: Path, source: str) -> "_Reading":
        documents, aside = folder / "documents.parquet", folder / "aside.parquet"
        return cls(Funnel(source), Pieces(documents, DOCUMENT_SCHEMA), Pieces(aside, DROPPED_SCHEMA))

    def close(self) -> None:
        self.documents.close()
        self.aside.close()

    def take(self, row: Draft | Dropped, file: RawFile, terms: Terms) -> None:
        """One record of the file."""
        self.read += 1
        if isinstance(row, Dropped):
            self.funnel = self.funnel.add(None, (), row)
            self.set_aside(row)
            return
        draft = replace(row, licence=file.licence) if file.licence else row
        judged = admit(draft, terms, file.retrieved)
        self.funnel = self.funnel.add(draft, judged.removed, judged.row)
        self.found.update(judged.found)
        if isinstance(judged.row, Dropped):
            self.set_aside(judged.row)
        else:
            self.hashes.append(seed_of(content_key(judged.row)))
            self.documents.put(judged.row)

    def set_aside(self, dropped: Dropped) -> None:
        """One thing that became no document."""
        self.aside.put(dropped)
        self.steps[dropped.step] += 1
        if dropped.step == "malformed":
            self.first_malformed = [*self.first_malformed, dropped][:NAMED]

    def join(self, file: "_Reading") -> None:
        """Take over a file that has been read to its end."""
        self.funnel, self.read = self.funnel.merge(file.funnel), self.read + file.read
        self.hashes.extend(file.hashes)
        self.steps.update(file.steps)
        self.first_malformed = [*self.first_malformed, *file.first_malformed][:NAMED]
        self.found.update(file.found)
        for mine, its in ((self.documents, file.documents), (self.aside, file.aside)):
            for rows in pieces_in(its.path):
                mine.add(rows)


def read_part(part: Part, terms: Terms, work_uri: str) -> None:
    """Read the files of a part, write what became of them below the work folder, and mark the part as done."""
    failed: list[tuple[RawFile, Dropped]] = []
    with tempfile.TemporaryDirectory(prefix="medschool-corpus-") as scratch:
        whole = _Reading.into(Path(scratch, "part"), part.source)
        for file in part.files:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                try:
                    whole.join(_read_file(file, part.source, terms, Path(folder)))
                except InputError as error:
                    failed.append((file, _unreadable(error, file, part.source)))
        for _, row in failed:
            whole.set_aside(row)
        whole.close()
        Path(scratch, "part", HASHES).write_bytes(whole.hashes.tobytes())
        folder_name = f"{part.number:05}-{uuid.uuid4().hex[:12]}"
        files = upload_folder(read_uri(work_uri, folder_name), Path(scratch, "part"))
    mark = Mark(
        part=part.number,
        folder=folder_name,
        sizes={file.path: file.size_bytes for file in files},
        read=whole.read,
        documents=len(whole.hashes),
        steps=dict(whole.steps),
        found=dict(whole.found),
        first_malformed=tuple(whole.first_malformed),
        unreadable=tuple(row for _, row in failed),
        failed_entries=tuple(file.entry for file, _ in failed),
        funnel=whole.funnel.to_json(),
    )
    if not put_mark(work_uri, mark):
        storage.delete_prefix(read_uri(work_uri, folder_name))


def _read_file(file: RawFile, source: str, terms: Terms, folder: Path) -> _Reading:
    """One raw file to its end, into files of its own. Raises InputError where it breaks off."""
    reading = _Reading.into(folder, source)
    try:
        with storage.open_raw(file.uri, file.name) as stream:
            for row in by_name(FORMATS, file.format, file.name)(stream, file.name, source):
                reading.take(row, file, terms)
    except FileNotFoundError as error:
        raise StorageError("was listed and is gone", "let the upload end, then submit again", file.uri) from error
    finally:
        reading.close()
    return reading


def _unreadable(error: InputError, file: RawFile, source: str) -> Dropped:
    where = error.where if error.where.startswith(file.name) else file.name
    return Dropped(where, source, "unreadable", f"{error.problem}; {error.remedy}", "", file.name)
