"""The recipe's sections about text: files, sources, the rules that documents must pass, and rows of tokens."""

from datetime import date
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from medschool.recipe.section import Name, Positive, Section


class Files(Section):
    """Raw files of one format."""

    uri: str
    """Glob, key or folder: an absolute URI, or a path below the store."""
    format: str
    """A reader of medschool.corpus.formats, such as `medline` or `jats`."""
    licence: str | None = None
    """Licence group of every document in these files; for formats that state none, such as `prose`."""
    retrieved: date | None = None
    """Day on which these files were retrieved; every document carries it."""


class Source(Section):
    """One named source of text."""

    files: Annotated[tuple[Files, ...], Field(min_length=1)]
    licences: Annotated[tuple[str, ...], Field(min_length=1)]
    """Licence groups that may be trained on; a document with any other is dropped and counted.

    `commercial` and `non-commercial` stand for the groups that PubMed Central gives these names.
    """
    retracted: str | None = None
    """CSV file of ids that were retracted, an absolute URI or a path below the store; its documents are dropped and counted."""
    expected_tokens: Positive | None = None
    """Size for planning, before the source has been tokenized."""


class BadFiles(Section):
    """How much of a source may be unreadable before the run stops. Network and permission errors never count: they stop it."""

    max_share: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Of the records of a source."""
    max_files: Annotated[int, Field(ge=0)] = 10
    """Files that could not be read to their end."""


class Identifiers(Section):
    """Scan for the identifiers of people that HIPAA's Safe Harbor rule lists (45 CFR 164.514(b)(2))."""

    max_per_document: Annotated[int, Field(ge=0)]
    """A document with more findings is quarantined."""
    max_quarantined_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Of the documents of a source; when more are quarantined the run stops, because the source is not what it is taken for."""
    names: bool = False
    """Also look for names of people and places with presidio (the extra `deidentify`)."""


class Clean(Section):
    """Rules that every document must pass."""

    min_chars: Positive
    """Shorter documents are dropped, in characters after cleaning."""
    off: tuple[str, ...] = ()
    """Steps of medschool.corpus.steps that are left out, by name; all run when empty."""
    languages: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$")], ...] | None = None
    """Languages to keep, as ISO 639-1 codes, by what the text looks like; every language when left out."""
    quality: tuple[Literal["gopher", "c4", "fineweb"], ...] = ()
    """Quality filters with their published thresholds, in this order."""
    bad_files: BadFiles = BadFiles()
    identifiers: Identifiers | None = None
    """Scan for identifiers of people; none when left out."""


class NearDuplicates(Section):
    """Removal of near-duplicates, over all sources together: MinHash with banding (Broder 1997; Leskovec et al., chapter 3)."""

    similarity: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Jaccard similarity of two documents' word n-grams from which one of them goes."""
    permutations: Positive = 128
    ngram_words: Positive = 5


class Canaries(Section):
    """Invented sentences that are put into one source, to measure later what a model repeats by heart (Carlini et al. 2019)."""

    source: Name
    count: Positive
    """Different sentences."""
    repeats: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 4, 16)
    """How often they stand in the source: the sentences are dealt to these numbers in turn."""


class Tokens(Section):
    """From documents to rows of tokens."""

    row_tokens: Positive
    """Length of a training row, in tokens (the paper's context is 2048)."""
    packing: Literal["concatenate", "best_fit", "windows"] = "concatenate"
    """`concatenate` cuts a stream of documents, `best_fit` keeps short ones whole, `windows` is the paper's released code."""
    rows_per_shard: Positive = 4096
    """Rows in one stored file; 4096 rows of 2048 uint16 tokens are 16 MiB."""
    heldout_tokens: Positive
    """Tokens of whole documents that are kept out of training for measurement, at most, for each source."""
    heldout_document_tokens: Positive
    """A held-out document is scored on its first so many tokens."""
