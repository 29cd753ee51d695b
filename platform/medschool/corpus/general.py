"""General prose: plain text books become passages of about 1,500 characters, for the general share of the mixture.

A passage ends at the end of a paragraph once it has PASSAGE_CHARS characters; a longer paragraph is cut at the end of a line.
Prose that was wrapped by hand is unwrapped (its lines are long and of one length), verse and plays keep their lines.

Text is decoded as strict UTF-8, else as Latin-1, in which any byte is a character; so a file with NUL bytes is refused as binary.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from statistics import median
from typing import BinaryIO

from medschool.corpus.spool import whole
from medschool.errors import InputError
from medschool.rows import Draft, Dropped

PASSAGE_CHARS = 1500
WRAPPED_LINE_CHARS = 55

_LINE = re.MULTILINE | re.IGNORECASE
_START = re.compile(r"^.{0,3}\*{3} ?START OF (?:THE|THIS) PROJECT GUTENBERG.*$|^\*END\*? ?THE SMALL PRINT.*$", _LINE)
_END = re.compile(r"^.{0,3}\*{0,3} ?END OF (?:THE |THIS )?PROJECT GUTENBERG.*$", _LINE)
_HEADER_LINE = re.compile(r"^.*\bProject Gutenberg (?:e-?text|e-?book|release) of.*$", _LINE)


def prose(stream: BinaryIO, uri: str, source: str) -> Iterator[Draft | Dropped]:
    """One row a passage, in reading order. Raises InputError for an empty or a binary file."""
    path = PurePosixPath(uri).with_suffix("")
    for serial, text in enumerate(_passages(_without_licence(decoded(whole(stream, uri), uri)))):
        yield Draft(f"{path}:{serial:05}", source, text, path.name, "unstated", None, "prose", uri)


def decoded(data: bytes, uri: str) -> str:
    """Text of a file in UTF-8 or Latin-1, with plain line ends. Raises InputError for an empty or a binary file."""
    if b"\0" in data:
        raise InputError("holds NUL bytes: it is binary, not text", "check the `format` of this source in the recipe", uri)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x1a", "")
    if not text.strip():
        raise InputError("the file is empty", "fetch the file again", uri)
    return text


def _without_licence(text: str) -> str:
    """`text` without the header, footer and licence that Project Gutenberg puts around a book."""
    if end := _END.search(text):
        text = text[: end.start()]
    starts = [mark.end() for mark in _START.finditer(text)]
    return _HEADER_LINE.sub("", text[max(starts, default=0) :])


def _passages(text: str) -> Iterator[str]:
    held: list[str] = []
    for piece in _pieces(text):
        held.append(piece)
        if sum(map(len, held)) >= PASSAGE_CHARS:
            yield "\n\n".join(held)
            held = []
    if held:
        yield "\n\n".join(held)


def _pieces(text: str) -> Iterator[str]:
    """Paragraphs; one longer than a passage in parts of whole lines."""
    for paragraph in re.split(r"\n[ \t]*\n", text):
        lines = [line.strip() for line in paragraph.split("\n") if line.strip()]
        if len(lines) > 2 and median(map(len, lines[:-1])) >= WRAPPED_LINE_CHARS:
            yield re.sub(r"(\w-)\n(?=\w)", r"\1", "\n".join(lines)).replace("\n", " ")
            continue
        while lines:
            size, count = 0, 0
            while count < len(lines) and size < PASSAGE_CHARS:
                size, count = size + len(lines[count]) + 1, count + 1
            yield "\n".join(lines[:count])
            lines = lines[count:]
