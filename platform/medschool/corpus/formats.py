"""The raw formats that a recipe can name, and the reader of each.

A reader takes the whole file, already unpacked (the caller removes gzip), and yields one row for each record in it. It raises
InputError, with the file and the line, where the file as a whole cannot be read; rows before that line were already given.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

from medschool.corpus.books import hpo, icd10cm
from medschool.corpus.general import prose
from medschool.corpus.papers import jats, medline
from medschool.rows import Document, Dropped

Reader: TypeAlias = Callable[[bytes, str, str], Iterator[Document | Dropped]]
"""(data, uri, source) -> rows in the order of the file."""

FORMATS: dict[str, Reader] = {"medline": medline, "jats": jats, "hpo": hpo, "icd10cm": icd10cm, "prose": prose}
