"""XML files of any size, one element at a time.

Entities are not resolved, no DTD is loaded and nothing is fetched; a file that declares entities is refused (they could read
files or grow without end). Memory is that of one element: a stream that goes on for MAX_ELEMENT_BYTES without ending one is
refused, and so are texts of 10 MB without markup and nesting of 256 levels, by the limits of libxml2.

Price: about 100 MB a second and core, without what is done with the elements.
"""

from collections.abc import Iterator
from typing import BinaryIO

from lxml import etree

from medschool.errors import InputError

MAX_ELEMENT_BYTES = 16 << 20
"""A full text has 0.1 MB, one with long tables a few. This much takes 0.1 to 0.6 GB of memory, by how dense its tags are."""


def elements(stream: BinaryIO, uri: str, *tags: str) -> Iterator[etree._Element]:
    """Stream the elements named `tags` in any namespace; each is emptied when the next one is asked for.

    Raises InputError, naming the line, when the bytes are not whole, well-formed XML, declare entities, hold an element that is
    too large, or none at all; and whatever reading the stream raises.
    """
    meter = _Meter(stream, uri)
    found = False
    try:
        for _, element in etree.iterparse(
            meter, events=("end",), tag=[f"{{*}}{tag}" for tag in tags], resolve_entities=False, no_network=True, load_dtd=False,
            huge_tree=False, remove_comments=True, remove_pis=True,
        ):  # fmt: skip
            if not found:
                _refuse_entities(element.getroottree(), uri)
            found = True
            yield element
            meter.bytes = 0
            element.clear()
            while element.getprevious() is not None:
                del element.getparent()[0]
    except etree.XMLSyntaxError as error:
        remedy = "fetch the file again; if it is the same, take it out of the source"
        raise InputError(f"not well-formed XML ({error.msg})", remedy, f"{uri}:{error.lineno}") from error
    if not found:
        raise InputError(f"holds no <{tags[0]}> element", "check the `format` of this source in the recipe", uri)


def name_of(node: etree._Element) -> str:
    """Name of an element without its namespace; empty for what is no element."""
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""


class _Meter:
    """The stream, with the bytes that were read since the last element."""

    def __init__(self, stream: BinaryIO, uri: str) -> None:
        self._stream, self._uri, self.bytes = stream, uri, 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.bytes += len(data)
        if self.bytes > MAX_ELEMENT_BYTES:
            problem = f"holds more than {MAX_ELEMENT_BYTES >> 20} MiB of XML without the end of an element that is looked for"
            raise InputError(problem, "take the file out of the source, or divide it", self._uri)
        return data


def _refuse_entities(tree: etree._ElementTree, uri: str) -> None:
    dtd = tree.docinfo.internalDTD
    names = [str(entity.name) for entity in dtd.iterentities()] if dtd is not None else []
    if names:
        raise InputError(
            f"declares {len(names)} XML entities ({', '.join(names[:3])}), which could read files or grow without end",
            "take the file out of the source; no file of MEDLINE, PMC or ICD-10-CM declares any",
            uri,
        )
