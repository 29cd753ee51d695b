"""Marks that a part of a source was read: small JSON files in the work folder, which a killed job leaves to the next one.

    work/read/00007-<id>/...       what the reading of part 7 wrote
    work/read/00007.json           its mark: put last, only if absent, so that of two readers of one part exactly one counts

A mark counts while every file that it names is there in its full size; else it is removed, and its part is read again.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from medschool import storage
from medschool.rows import Dropped


@dataclass(frozen=True)
class Mark:
    """What the reading of one part came to. Small: names, counts and a few rows."""

    part: int
    folder: str
    """Below work/read."""
    sizes: dict[str, int]
    """Size in bytes of each file in the folder."""
    read: int
    """Records of the files that could be read."""
    documents: int
    steps: dict[str, int]
    """What became no document, by step; `unreadable` counts files."""
    found: dict[str, int]
    """Identifiers of people in all documents, by class."""
    first_malformed: tuple[Dropped, ...]
    unreadable: tuple[Dropped, ...]
    """Files that could not be read to their end."""
    failed_entries: tuple[int, ...]
    """Entry of the recipe's `files` of each of them."""
    funnel: dict[str, Any]


def read_uri(work_uri: str, *below: str) -> str:
    return storage.join(work_uri, "read", *below)


def put_mark(work_uri: str, mark: Mark) -> bool:
    """Mark a part as read; False when another reader of it was faster, whose word counts."""
    return storage.put_if_absent(_mark_uri(work_uri, mark.part), json.dumps(asdict(mark)).encode())


def marks_in(work_uri: str) -> dict[int, Mark]:
    """Every part that was read, in order. Removes marks whose files are not there."""
    sizes = {info.uri: info.size_bytes for info in storage.list_files(read_uri(work_uri))}
    uris = [uri for uri in sizes if uri.endswith(".json")]
    with ThreadPoolExecutor(storage.COPY_THREADS) as pool:
        marks = [_parse(data) for data in pool.map(storage.read_bytes, uris)]
    return {mark.part: mark for mark in _whole(marks, work_uri, sizes)}


def _whole(marks: list[Mark], work_uri: str, sizes: dict[str, int]) -> Iterator[Mark]:
    for mark in sorted(marks, key=lambda mark: mark.part):
        if all(sizes.get(read_uri(work_uri, mark.folder, name)) == size for name, size in mark.sizes.items()):
            yield mark
        else:
            storage.delete_file(_mark_uri(work_uri, mark.part))


def _mark_uri(work_uri: str, part: int) -> str:
    return read_uri(work_uri, f"{part:05}.json")


def _parse(data: bytes) -> Mark:
    raw = json.loads(data)
    for rows in ("first_malformed", "unreadable"):
        raw[rows] = tuple(Dropped(**row) for row in raw[rows])
    return Mark(**raw | {"failed_entries": tuple(raw["failed_entries"])})
