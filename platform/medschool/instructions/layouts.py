"""Records that are conversations already: which of their values is said by whom, and what kind of conversation it is.

A layout is a function of one record's values. It is the same for JSON, Parquet and Arrow files, the containers, so each gives
three formats: `alpaca`, `alpaca_parquet`, `alpaca_datasets`. To add a layout, write its function in a file of its own and enter
it in medschool.instructions.formats.

A conversation's id is its place, `<file>:<number of the record>`, because an id in the file may be missing or come twice.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from medschool.instructions.containers import CONTAINERS, Container
from medschool.instructions.fields import Refused
from medschool.rows import Conversation, Dropped, Message


@dataclass(frozen=True)
class Layout:
    """How the records of one kind of file are read."""

    read: Callable[[Mapping[str, Any]], tuple[str, tuple[Message, ...]]]
    """The values of a record -> Conversation.kind and its messages. Raises Refused."""
    columns: tuple[str, ...]
    """All keys that `read` looks at."""
    needs: tuple[str, ...]
    """Keys of which a table has at least one, else it is something else."""
    licence: str
    """What holds where the recipe names none."""


def formats_of(name: str, layout: Layout) -> dict[str, Callable[[BinaryIO, str, str, int], Iterator[Conversation | Dropped]]]:
    """The makers of one layout by the names of their formats."""
    return {
        name if kind == "json" else f"{name}_{kind}": partial(_conversations, container=container, layout=layout)
        for kind, container in CONTAINERS.items()
    }


def _conversations(
    stream: BinaryIO, uri: str, name: str, seed: int, container: Container, layout: Layout
) -> Iterator[Conversation | Dropped]:
    """One row a record. The seed decides nothing: the words are those of the file. Raises InputError as the container does."""
    for entry in container(stream, uri, name, layout.columns, layout.needs):
        if isinstance(entry, Dropped):
            yield entry
            continue
        key = f"{uri}:{entry.number}"
        try:
            kind, messages = layout.read(entry.values)
            yield Conversation(key, name, kind, messages, layout.licence, uri)
        except Refused as error:
            yield Dropped(key, name, error.step, f"{entry.place}: {error.reason}", entry.sample, uri)
