"""The values of a record of conversations, and what may be wrong with one.

A turn of more than TURN_CHARS characters is no turn of a conversation but a document: it is left out as `too_long` before
anything is spent on it. So every turn of 100,000 tokens goes, whatever the tokenizer; in English that many characters are about
25,000 tokens. What fits into a row of training is decided later, in tokens, by `chats.row_tokens`.
"""

import re
from collections.abc import Mapping
from typing import Any

TURN_CHARS = 100_000
_BLANK_LINES = re.compile(r"\n\s*\n")


class Refused(ValueError):
    """A record that becomes no conversation: the step that drops it, and why, by key."""

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(step, reason)
        self.step, self.reason = step, reason


def malformed(reason: str) -> Refused:
    return Refused("malformed", reason)


def text_of(values: Mapping[str, Any], key: str, at: str = "") -> str:
    """The text under `key`, as it stands there. Raises Refused where there is none; at: where `values` lie in the record."""
    value, name = values.get(key), f"{at}{key}"
    if key not in values:
        raise malformed(f"{name} is missing")
    if not isinstance(value, str):
        raise malformed(f"{name} is {value!r:.60}, not text")
    if not value.strip():
        raise malformed(f"{name} is empty")
    if "\0" in value:
        raise malformed(f"{name} holds a NUL character")
    if len(value) > TURN_CHARS:
        raise Refused("too_long", f"{name} has {len(value)} characters, a turn has at most {TURN_CHARS}")
    return value


def optional_text(values: Mapping[str, Any], key: str) -> str:
    """The text under `key`, or nothing where it is missing, null or blank. Raises Refused for anything else."""
    value = values.get(key)
    return "" if value is None or value == "" or (isinstance(value, str) and value.isspace()) else text_of(values, key)


def user_turn(instruction: str, given: str) -> str:
    """What the user says: the instruction without blank lines, so that the first blank line is where `given` begins."""
    asked = _BLANK_LINES.sub("\n", instruction.strip())
    return f"{asked}\n\n{given}" if asked and given else asked or given
