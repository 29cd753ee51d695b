"""A maker that needs its file in one piece, as a maker of streams.

Some formats cannot be read forwards: an ontology refers to terms that come later, an exam's way of counting shows in all of its
questions only. Their files are small, so they are read whole, up to the limit of medschool.corpus.spool.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO, TypeAlias

from medschool.corpus import spool
from medschool.rows import Conversation, Dropped

BytesMaker: TypeAlias = Callable[[bytes, str, str, int], Iterator[Conversation | Dropped]]
"""(data, uri, name of the set, seed) -> rows in the order of the file."""


def whole(make: BytesMaker) -> Callable[[BinaryIO, str, str, int], Iterator[Conversation | Dropped]]:
    """`make` as a maker of streams. It raises InputError at the file when that has more than spool.WHOLE_BYTES."""
    return partial(_read_and_make, make)


def _read_and_make(make: BytesMaker, stream: BinaryIO, uri: str, name: str, seed: int) -> Iterator[Conversation | Dropped]:
    yield from make(spool.whole(stream, uri), uri, name, seed)
