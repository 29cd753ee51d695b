"""Sets made from a corpus of the same recipe: its documents become conversations as they were cleaned, licensed and told apart.

    corpus/<source> documents/*.parquet --one task a file, a row group at a time--> documents
    documents, without copies, canaries and revised records --maker--> read/made/00002-00000.parquet, as from a raw file

    format                 a document gives                                        kind
    reading_comprehension  questions that its passages answer (reading)            reading/<kind of question>
    conclusion             its title, where that asks, with its conclusion (title) conversation

Such a set rests on the corpus stage, so whatever changes the documents makes it anew. A conversation has its document's licence,
file and id, so those of held-out documents stay out of the rows (instructions.chats). Three kinds of documents give nothing, and
are counted: near-duplicates, one of whose twins may be held out; canaries, which are to be read a stated number of times; and a
later document with the id of an earlier one, such as a revised record. So are those of which the maker makes nothing.

Memory of a task: one row group of the corpus, about 16 MB of text, and one portion. Of the driver: 34 bytes a document, to find
ids that come twice.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq

from medschool.artifact import Artifact
from medschool.corpus.canaries import is_canary
from medschool.corpus.finish import repeats
from medschool.duplicates import removed_ids
from medschool.formats import by_name
from medschool.instructions.portions import RawFile, Reading, divide
from medschool.instructions.reading import reading_comprehension
from medschool.instructions.title import title_conclusion
from medschool.recipe import Recipe
from medschool.rows import Conversation, Document, Dropped, LeftOut
from medschool.seed import seed_of
from medschool.tokens.portions import open_parquet

CorpusMaker: TypeAlias = Callable[[Document, str, int, int], Iterator[Conversation | Dropped]]
"""(document, name of the set, seed, most words of a passage) -> rows; none where the document gives nothing."""

CORPUS_FORMATS: dict[str, CorpusMaker] = {"reading_comprehension": reading_comprehension, "conclusion": title_conclusion}
REASONS = {
    "near_duplicate": "another document says nearly the same",
    "canary": "was planted to be read a stated number of times",
    "same_id": "an earlier document has this id",
    "nothing_to_ask": "the maker found nothing in it",
}


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus, and which of its rows are passed over."""

    file: RawFile
    twice: np.ndarray
    """Rows whose id an earlier one has."""


def corpus_files(recipe: Recipe, name: str, corpus: Artifact) -> list[CorpusFile]:
    """The files of the corpus that the set `name` is made from. Raises InputError for an unknown format."""
    spec = recipe.instructions[name].from_corpus
    assert spec is not None
    by_name(CORPUS_FORMATS, spec.format, f"instructions.{name}.from_corpus")
    paths = [file.path for file in corpus.files if file.path.startswith("documents/")]
    twice = repeats([_id_hashes(corpus.uri(path)) for path in paths])
    return [
        CorpusFile(RawFile(number, corpus.uri(path), path, spec.format, None, 0), rows)
        for number, (path, rows) in enumerate(zip(paths, twice, strict=True))
    ]


def copies_in(recipe: Recipe, name: str, inputs: Mapping[str, Artifact]) -> frozenset[str]:
    """Ids of the near-duplicates among the documents that the set is made from. inputs: by role."""
    spec = recipe.instructions[name].from_corpus
    return removed_ids(inputs["duplicates"], spec.source) if spec is not None and "duplicates" in inputs else frozenset()


def read_documents(part: CorpusFile, name: str, copies: frozenset[str], seed: int, words: int, prefix_uri: str) -> Reading:
    """Write the portions of one file of a corpus below `prefix_uri`, as portions.read_file does.

    Raises InputError for a file that is not whole: an artifact is never read in part.
    """
    return divide(_rows(part, name, copies, seed, words), part.file, None, prefix_uri)


def _rows(
    part: CorpusFile, name: str, copies: frozenset[str], seed: int, words: int
) -> Iterator[Conversation | Dropped | LeftOut]:
    make, twice = CORPUS_FORMATS[part.file.format], frozenset(part.twice.tolist())
    for row, document in enumerate(_documents(part.file.uri)):
        step = _passed_over(document, row in twice, copies)
        made = [] if step else list(make(document, name, seed, words))
        if not made:
            step = step or "nothing_to_ask"
            yield LeftOut(name, step, 1, REASONS[step], document.uri)
        yield from made


def _passed_over(document: Document, twice: bool, copies: frozenset[str]) -> str:
    """The step that leaves a document out; empty where none does."""
    if is_canary(document.id):
        return "canary"
    if document.id in copies:
        return "near_duplicate"
    return "same_id" if twice else ""


def _documents(uri: str) -> Iterator[Document]:
    """The documents of a Parquet file, one row group in memory."""
    for group in range(open_parquet(uri, _groups)):
        for row in open_parquet(uri, partial(_group, number=group)):
            yield Document(**row)


def _groups(file: pq.ParquetFile) -> int:
    return int(file.metadata.num_row_groups)


def _group(file: pq.ParquetFile, number: int) -> list[dict[str, Any]]:
    return list(file.read_row_group(number).to_pylist())


def _id_hashes(uri: str) -> np.ndarray:
    ids = open_parquet(uri, lambda file: file.read(["id"]).column("id").to_pylist())
    return np.array([seed_of(id_) for id_ in ids], dtype=np.uint64)
