"""JSON records of a file of questions, and what may be wrong with one: shared by all exam formats.

A reader yields one row for each record in its file: what it makes of it, or a Dropped with the step `malformed` and the place and
key that spoil it. A file that cannot be read as a whole raises InputError.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from medschool.errors import InputError
from medschool.rows import Dropped

SAMPLE_CHARS = 200
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def json_lines(data: bytes, uri: str) -> Iterator[tuple[int, Any, str]]:
    """(number, value, line) of every line that is not blank, numbers from 1; a line that is no JSON object gives its problem.

    Raises InputError as `decoded`.
    """
    for number, line in enumerate(decoded(data, uri).split("\n"), start=1):
        if line.strip():
            yield number, _object(line), line


def _object(line: str) -> dict[str, Any] | str:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    return found if isinstance(found, dict) else "not a JSON object"


def malformed(number: int, problem: str, sample: str, name: str, uri: str) -> Dropped:
    """A line that is not what its format says."""
    return Dropped(f"{uri}:{number}", name, "malformed", f"line {number}: {problem}", sample[:SAMPLE_CHARS], uri)


def text_problem(record: dict[str, Any], keys: tuple[str, ...]) -> str:
    """What is wrong with the first of `keys` that is not text with something in it, by name; empty when nothing is."""
    for key in keys:
        value = record.get(key)
        if key not in record:
            return f"{key} is missing"
        if not isinstance(value, str):
            return f"{key} is {value!r:.60}, not text"
        if not value.strip():
            return f"{key} is empty"
        if _HALF_CHARACTER.search(value):
            return f"{key} holds half a character"
    return ""


def options_problem(names: tuple[str, ...], options: list[str]) -> str:
    """Which two options are the same, by name; empty when no two are."""
    pair = equal_options(options)
    return f"{names[pair[0]]} and {names[pair[1]]} are both {options[pair[0]]!r:.60}" if pair else ""


def paragraphs(text: str) -> str:
    """A question of several lines, each with one space between words."""
    return "\n".join(words for part in text.splitlines() if (words := one_line(part)))


def decoded(data: bytes, uri: str) -> str:
    """Text of a UTF-8 file. Raises InputError, naming the line, when it is none, and when the file is empty."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            "not UTF-8 text", "fetch the file again, and check its `format` in the recipe", f"{uri}:{line}"
        ) from error
    if not text.strip():
        raise InputError("the file is empty", "fetch the file again", uri)
    return text


def one_line(text: str) -> str:
    return " ".join(text.split())


def subject_name(text: str) -> str:
    """A subject as the recipe names it, `clinical knowledge`: words with one space between them, no `_` and no `:`."""
    return one_line(re.sub(r"[_:]", " ", text))


def subject_key(subject: str) -> str:
    """A subject as ids begin with it, `clinical_knowledge`; `subject_name` reads it back."""
    return subject.replace(" ", "_")


def equal_options(options: list[str]) -> tuple[int, int] | None:
    """Places of the first two options that are the same but for white space. Case counts: AA and Aa are two genotypes."""
    seen: dict[str, int] = {}
    for index, option in enumerate(map(one_line, options)):
        if option in seen:
            return seen[option], index
        seen[option] = index
    return None
