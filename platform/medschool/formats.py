"""The readers that a recipe names: looked up by name, with an error that lists the names there are."""

from collections.abc import Mapping
from typing import TypeVar

from medschool.errors import InputError

Reader = TypeVar("Reader")


def by_name(formats: Mapping[str, Reader], name: str, where: str) -> Reader:
    """The reader called `name`; InputError at `where`, naming those there are, for any other name."""
    if name not in formats:
        raise InputError(f"there is no format {name!r}", f"use one of {', '.join(sorted(formats))}", where)
    return formats[name]
