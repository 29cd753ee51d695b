"""One JSON array or object of any size, read an element at a time.

The decoder of Python's json looks where an element ends; its bytes then go to medschool.corpus.jsonlines, so that an element of
an array is judged as strictly as a line: not UTF-8, a NUL byte, a raw control character, half a character, a key named twice and
NaN spoil that element alone. (A parser of events such as ijson's stops the file there, or says nothing: it gives `?` for half a
character, and the last of two equal keys.) Where the punctuation itself is broken, nobody knows where the next element begins:
then the file breaks off.

Memory: one element, at most ELEMENT_CHARS characters, and a chunk. Price: 100 MB a second and core, without the judging.
"""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import count
from typing import BinaryIO

from medschool.corpus.jsonlines import LINE_BYTES
from medschool.errors import InputError

ELEMENT_CHARS = LINE_BYTES
CHUNK_BYTES = 2**20
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(strict=False)


def array_items(stream: BinaryIO, uri: str) -> Iterator[bytes]:
    """The text of every element of an array. Raises InputError, naming the line, where the file is no whole array or is empty."""
    text = _Text(stream, uri)
    text.take("[")
    for number in count():
        if not number and text.sign() == "]":
            raise InputError("the array is empty", "fetch the file again", uri)
        yield text.value()
        if text.take(",", "]") == "]":
            text.end()
            return


def object_members(stream: BinaryIO, uri: str) -> Iterator[tuple[str, bytes]]:
    """Key and text of every value of an object. Raises InputError as `array_items`; a key that comes twice is given twice."""
    text = _Text(stream, uri)
    text.take("{")
    for number in count():
        if not number and text.sign() == "}":
            raise InputError("the object is empty", "fetch the file again", uri)
        if text.sign() != '"':
            raise text.broken("no key in quotes")
        key = json.loads(text.value().decode("utf-8", "replace"), strict=False)
        text.take(":")
        yield key, text.value()
        if text.take(",", "}") == "}":
            text.end()
            return


class _Text:
    """A stream as text, of which the part before `_at` has been taken."""

    def __init__(self, stream: BinaryIO, uri: str) -> None:
        self._stream, self._uri, self._line = stream, uri, 1
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text, self._at, self._ended = "", 0, False
        if self.sign() == "\ufeff":
            self._at += 1

    def sign(self) -> str:
        """The next character that is no white space, not taken; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, *wanted: str) -> str:
        """The next sign, which is one of `wanted`."""
        if (found := self.sign()) not in wanted:
            raise self.broken(f"{found!r} in place of {' or '.join(map(repr, wanted))}" if found else "the file ends too early")
        self._at += 1
        return found

    def value(self) -> bytes:
        """The text of the next value, as the file has it."""
        if not self.sign():
            raise self.broken("the file ends too early")
        while True:
            try:
                _, end = _DECODER.raw_decode(self._text, self._at)
                problem = "the file ends too early"
            except (ValueError, RecursionError) as error:
                end, problem = len(self._text), getattr(error, "msg", str(error))
            if end < len(self._text):  # else it may go on: a number does not say where it ends
                found, self._at = self._text[self._at : end], end
                return found.encode("utf-8", "surrogateescape")
            if len(self._text) - self._at > ELEMENT_CHARS:
                raise self.broken(f"{problem}, and no end within {ELEMENT_CHARS} characters")
            if not self._more():
                raise self.broken(problem)

    def end(self) -> None:
        """Check that nothing but white space follows."""
        if found := self.sign():
            raise self.broken(f"{found!r} behind the end")

    def broken(self, problem: str) -> InputError:
        line = self._line + self._text.count("\n", 0, self._at)
        remedy = "fetch the file again, and check its `format` in the recipe"
        return InputError(f"not one whole JSON array or object: {problem}", remedy, f"{self._uri}:{line}")

    def _more(self) -> bool:
        """Read on, and forget what was taken; False at the end of the stream."""
        if self._ended:
            return False
        self._line += self._text.count("\n", 0, self._at)
        rest = self._text[self._at :]
        data = self._stream.read(max(CHUNK_BYTES, len(rest)))
        self._ended = not data
        self._text, self._at = rest + self._decoder.decode(data, final=self._ended), 0
        return True
