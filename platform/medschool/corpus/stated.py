"""What a record states beside its text, read from values of any type: words, a licence, a year.

For the formats whose fields no standard fixes. What cannot be understood is not guessed: no words, `other`, no year.
"""

import re
from collections.abc import Mapping
from typing import Any

from medschool.corpus.clean import licence_group

_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_SHORT = re.compile(r"CC[ -]?BY((?:[ -]?(?:NC|ND|SA))*)")
_YEAR = re.compile(r"(?<!\d)(?:1[5-9]|20)\d\d(?!\d)")


def words_of(values: Mapping[str, Any], *keys: str) -> str:
    """The first of the values that is a text or a number, on one line; empty where none is."""
    for key in keys:
        found = values.get(key)
        if isinstance(found, str | int) and not isinstance(found, bool) and (words := " ".join(str(found).split())):
            return words
    return ""


def licence_of(words: str) -> str:
    """Licence group: `CCBYNC`, `CC BY-NC 4.0` and its link are `cc-by-nc`; another single name stays as it is (`mit`), in lower
    case; `unstated` for no words, `other` for anything else."""
    if not words:
        return "unstated"
    if short := _SHORT.fullmatch(words.upper()):
        return "-".join(["cc-by", *re.findall("nc|nd|sa", short[1].lower())])
    group = licence_group(words)
    return words.lower() if group == "other" and _NAME.fullmatch(words.lower()) else group


def year_of(words: str) -> int | None:
    """The first year from 1500 to 2099 in `words`."""
    found = _YEAR.search(words)
    return int(found[0]) if found else None
