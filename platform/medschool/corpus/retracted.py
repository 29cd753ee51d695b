"""The list of retracted documents: a CSV file of ids, whose documents do not enter the corpus.

    id,reason                          or, without a header,        pmid:12345678
    pmid:12345678,data fabricated                                   PMC1234567

The column named `id` counts (in any case), or the first one where the first line is an id itself. Ids are those of the corpus
(`pmid:12345678`, `pmc:1234567`, `doi:10.1000/x`); what they are usually written like, `12345678`, `PMC1234567` and
`10.1000/x`, is read as such. An article stands in the corpus under one id, PMC's where it has one: a list that may meet full
text and abstracts names both. Price: about 100 bytes of memory an id, in every reading process.
"""

import csv
import io
import re

from medschool import storage
from medschool.errors import InputError

_ID = re.compile(r"[A-Za-z][\w-]*:\S+|PMC\d+|\d+|10\.\d+/\S+", re.IGNORECASE)
_VERSION = re.compile(r"(pmid:\d+)\.\d+")


def retracted_ids(uri: str, name: str) -> frozenset[str]:
    """Ids in the CSV file at `uri`, as the corpus writes them. Raises InputError at `name` for a missing file or column."""
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError("there is no such file", "put the list of retracted ids there, or take `retracted` out", name) from error
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text ({error})", "save the list as a CSV file in UTF-8", name) from error
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if any(cell.strip() for cell in row)]
    column, first = _column(rows, name)
    cells = ((number, row[column].strip() if column < len(row) else "") for number, row in enumerate(rows[first:], first + 1))
    return frozenset(_id(cell, f"{name}:{number}") for number, cell in cells)


def is_retracted(id: str, ids: frozenset[str]) -> bool:
    """Whether `ids` name the document; every version of a PubMed record (`pmid:123.2`) goes by the id of the first."""
    return bool(ids) and (id in ids or _VERSION.sub(r"\1", id) in ids)


def _column(rows: list[list[str]], name: str) -> tuple[int, int]:
    """Which column holds the ids, and in which row they begin."""
    if not rows:
        return 0, 0
    header = [cell.strip().lower() for cell in rows[0]]
    if "id" in header:
        return header.index("id"), 1
    if _ID.fullmatch(header[0]):
        return 0, 0
    raise InputError(
        f"no column is named `id` ({', '.join(header)[:80]}), and the first line does not begin with an id",
        "name the column of ids `id`",
        name,
    )


def _id(cell: str, where: str) -> str:
    if not _ID.fullmatch(cell):
        raise InputError(f"{cell[:60]!r} is not the id of a document", "write it as pmid:..., pmc:... or doi:...", where)
    if cell.isdecimal():
        return f"pmid:{cell}"
    if number := re.fullmatch(r"PMC(\d+)", cell, re.IGNORECASE):
        return f"pmc:{number[1]}"
    return f"doi:{cell}" if cell.startswith("10.") else cell
