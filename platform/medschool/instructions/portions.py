"""Raw files of a set become portions: Parquet files of a size that fits into memory, whatever the size of the raw file.

    raw file --maker--> rows --PORTION_ROWS or PORTION_BYTES--> read/made/00002-00000.parquet      conversations
                                                                read/refused/00002-00000.parquet   what the maker dropped

A raw file enters whole or not at all. One that breaks off (InputError) leaves one portion with one row, of the step `unreadable`;
what was written of it before is written over, or named by nobody. What the store fails to give is no such file: its StorageError
stops the stage. The same file gives the same portions, so a task may run twice.

Memory: one portion as rows and as a table, about 130 MB, and what the maker needs. Price: 15,000 conversations of MedC-I a second
and core, its maker included; 34 s for 514 thousand of them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from medschool import storage
from medschool.artifact import write_parquet
from medschool.errors import InputError, StorageError
from medschool.exams.formats import EXAM_FORMATS
from medschool.formats import by_name
from medschool.instructions.ask import EXPLAINS, to_explain
from medschool.instructions.formats import INSTRUCTION_FORMATS, subject_of
from medschool.recipe import Recipe
from medschool.rows import CONVERSATION_SCHEMA, DROPPED_SCHEMA, Conversation, Dropped, LeftOut, table

PORTION_ROWS, PORTION_BYTES = 10_000, 16 * 2**20
"""A portion ends with the row that reaches one of them; bytes are counted as characters."""
READ, MADE, REFUSED = "read", "made", "refused"
NAMED = 3
"""Malformed records of a file that are quoted where there are too many."""


@dataclass(frozen=True)
class RawFile:
    """One raw file of a set."""

    number: int
    uri: str
    name: str
    """Its path below the store: what its conversations carry."""
    format: str
    licence: str | None
    entry: int
    """Which entry of the recipe's `files` named it."""
    explain: bool = False
    """Whether its questions are made for a teacher to explain."""


@dataclass
class Reading:
    """What a raw file came to. Small: names, counts and a few rows."""

    file: RawFile
    portions: int = 0
    rows: int = 0
    """All that the maker yielded, of other subjects too."""
    malformed: int = 0
    first_malformed: list[Dropped] = field(default_factory=list)
    subjects: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: Dropped | None = None

    def names(self) -> list[str]:
        """Names of its portions' files."""
        return [_name(self.file, portion) for portion in range(self.portions)]


def raw_files(recipe: Recipe, name: str, store_uri: str) -> list[RawFile]:
    """The raw files of a set, in the order of the recipe and the listing. Raises InputError for an unknown format or no files."""
    below = store_uri.rstrip("/") + "/"
    explain = recipe.instructions[name].ask in EXPLAINS
    found: list[RawFile] = []
    for entry, spec in enumerate(recipe.instructions[name].files):
        by_name(INSTRUCTION_FORMATS, spec.format, where := f"instructions.{name}.files")
        if explain and spec.format not in EXAM_FORMATS:
            problem = f"{spec.format} has no exam questions that a teacher could explain"
            raise InputError(problem, f"use one of {', '.join(sorted(EXAM_FORMATS))}, or another `ask`", where)
        for info in storage.require_files(storage.join(store_uri, spec.uri)):
            path = info.uri.removeprefix(below)
            found.append(RawFile(len(found), info.uri, path, spec.format, spec.licence, entry, explain))
    return found


def read_file(file: RawFile, name: str, subjects: tuple[str, ...] | None, seed: int, prefix_uri: str) -> Reading:
    """Write the portions of one file below `prefix_uri`. name: of the set; subjects: as the recipe has them."""
    try:
        return divide(_rows(file, name, seed), file, subjects, prefix_uri)
    except InputError as error:
        row, portions = _unreadable(error, file, name), _Portions(file, prefix_uri)
        portions.put(row)
        return Reading(file, portions.close(), unreadable=row)


def divide(
    rows: Iterable[Conversation | Dropped | LeftOut], file: RawFile, subjects: tuple[str, ...] | None, prefix_uri: str
) -> Reading:
    """Write what was made of a file as portions below `prefix_uri`. Raises what making the rows raises."""
    reading, portions = Reading(file), _Portions(file, prefix_uri)
    for row in rows:
        if isinstance(row, LeftOut):
            reading.rows += row.rows
            reading.left_out[row.step] += row.rows
            continue
        reading.rows += 1
        if subjects is not None and (subject := subject_of(row)) is not None:
            reading.subjects.add(subject)
            if subject not in subjects:
                continue
        if isinstance(row, Dropped) and row.step == "malformed":
            reading.malformed += 1
            reading.first_malformed = [*reading.first_malformed, row][:NAMED]
        portions.put(row)
    return replace(reading, portions=portions.close())


def _rows(file: RawFile, name: str, seed: int) -> Iterator[Conversation | Dropped | LeftOut]:
    """What the maker makes of a file, each conversation under the licence that the recipe states, if it does."""
    try:
        with storage.open_raw(file.uri, file.name) as stream:
            rows = INSTRUCTION_FORMATS[file.format](stream, file.name, name, seed)
            for row in to_explain(rows, seed) if file.explain else rows:
                yield replace(row, licence=file.licence) if file.licence and isinstance(row, Conversation) else row
    except FileNotFoundError as error:
        raise StorageError("was listed and is gone", "let the upload end, then submit again", file.uri) from error


def _unreadable(error: InputError, file: RawFile, name: str) -> Dropped:
    where = error.where if error.where.startswith(file.name) else file.name
    return Dropped(where, name, "unreadable", f"{error.problem}; {error.remedy}", "", file.name)


class _Portions:
    """The portions of a file in the making."""

    def __init__(self, file: RawFile, prefix_uri: str) -> None:
        self._file, self._prefix = file, prefix_uri
        self._written = self._bytes = 0
        self._made: list[Conversation] = []
        self._refused: list[Dropped] = []

    def put(self, row: Conversation | Dropped) -> None:
        if isinstance(row, Dropped):
            self._refused.append(row)
            self._bytes += len(row.reason) + len(row.sample)
        else:
            self._made.append(row)
            self._bytes += sum(len(message.content) for message in row.messages)
        if len(self._made) + len(self._refused) >= PORTION_ROWS or self._bytes >= PORTION_BYTES:
            self._write()

    def close(self) -> int:
        """Write what is left; the number of portions, one at least."""
        if self._made or self._refused or not self._written:
            self._write()
        return self._written

    def _write(self) -> None:
        name = _name(self._file, self._written)
        write_parquet(self._prefix, f"{READ}/{MADE}/{name}", table(self._made, CONVERSATION_SCHEMA))
        write_parquet(self._prefix, f"{READ}/{REFUSED}/{name}", table(self._refused, DROPPED_SCHEMA))
        self._made, self._refused, self._bytes = [], [], 0
        self._written += 1


def _name(file: RawFile, portion: int) -> str:
    return f"{file.number:05}-{portion:05}.parquet"
