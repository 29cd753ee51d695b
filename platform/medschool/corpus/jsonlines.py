"""JSON lines, one record a line, read so that no line can spoil the next one or fill the memory.

A line is malformed, with its number and the reason, when it is longer than LINE_BYTES, not UTF-8, begins with a byte order mark,
holds a NUL byte or half a character, is not one whole JSON object, names a key twice (which of the two values counts is
undefined), holds NaN or Infinity (no JSON), or nests deeper than Python's recursion limit. The next line is read as if nothing
had been.

Memory: one line and its values, 450 MB at the very worst (a line of LINE_BYTES full of empty objects).
Price: 100 MB a second and core.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from medschool.errors import InputError
from medschool.rows import Draft, Dropped

LINE_BYTES = 16 * 2**20
"""Longest line, in bytes; a book of a thousand pages has 3 MB."""
SKIP_BYTES = 2**20
SAMPLE_CHARS = 200
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


class Malformed(ValueError):
    """A record that a reader cannot use; its text says why."""


@dataclass(frozen=True)
class Record:
    """One JSON object of a file."""

    line: int
    """Counted from 1."""
    values: dict[str, Any]
    sample: str
    """The first SAMPLE_CHARS characters of the line."""


def records(stream: BinaryIO, uri: str, source: str, line_bytes: int = LINE_BYTES) -> Iterator[Record | Dropped]:
    """One row a line that is not blank, in the order of the file. Raises InputError when there is none."""
    found = False
    for number, line in enumerate(_lines(stream, line_bytes), start=1):
        if not line.strip():
            continue
        found = True
        try:
            if len(line) > line_bytes:
                raise Malformed(f"longer than {line_bytes} bytes")
            yield Record(number, json_object(line), sample_of(line))
        except Malformed as error:
            yield malformed(number, str(error), sample_of(line), uri, source)
    if not found:
        raise InputError("the file is empty", "fetch the file again", uri)


def malformed(line: int, problem: str, sample: str, uri: str, source: str) -> Dropped:
    """What is written down of a line that cannot be used."""
    return Dropped(f"{uri}:{line}", source, "malformed", f"line {line}: {problem}", sample, uri)


def strict(text: str) -> Any:
    """The value of a JSON text. Raises Malformed where it is none, names a key twice, holds NaN, or nests too deep."""
    try:
        return json.loads(text, object_pairs_hook=_pairs, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error)) from error


def _lines(stream: BinaryIO, line_bytes: int) -> Iterator[bytes]:
    """Lines; of one that is too long the first line_bytes + 1, the rest is passed over in pieces."""
    while line := stream.readline(line_bytes + 1):
        yield line
        while len(line) > line_bytes and not line.endswith(b"\n") and (rest := stream.readline(SKIP_BYTES)):
            if rest.endswith(b"\n"):
                break


def sample_of(line: bytes) -> str:
    """The first SAMPLE_CHARS characters, for what is written down of a record."""
    return line[: 4 * SAMPLE_CHARS].decode("utf-8", "replace").strip("\r\n")[:SAMPLE_CHARS]


def json_object(line: bytes) -> dict[str, Any]:
    """The JSON object that a record's bytes are. Raises Malformed, as the module's docstring says."""
    if line.startswith(BYTE_ORDER_MARK):
        raise Malformed("begins with a byte order mark")
    if b"\0" in line:
        raise Malformed("holds a NUL byte")
    try:
        values = strict(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Malformed(str(error)) from error
    if not isinstance(values, dict):
        raise Malformed("not a JSON object")
    if _HALF_CHARACTER.search(line):
        _check_characters(values)
    return values


def _check_characters(values: Any) -> None:
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Malformed("holds half a character") from error


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"names the key {next(key for key in found if keys.count(key) > 1)!r:.60} twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"holds {constant}, which is not JSON")


def rows(
    stream: BinaryIO, uri: str, source: str, row: Callable[[Record, str, str], Draft | Dropped]
) -> Iterator[Draft | Dropped]:
    """What `row(record, uri, source)` makes of every record; a record that it calls Malformed is dropped with its line."""
    for record in records(stream, uri, source):
        if isinstance(record, Dropped):
            yield record
            continue
        try:
            yield row(record, uri, source)
        except Malformed as error:
            yield malformed(record.line, str(error), record.sample, uri, source)
