"""The rows that travel between stages: a document, a conversation, an exam item, a probe, and a thing that was dropped.

A draft does not travel: it is what a reader hands to the corpus steps, which make a document of it.

Stages exchange Parquet files with exactly these columns, so any reader (pyarrow, DuckDB, pandas) can check them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class Span:
    """A marked part of a draft: `text[start:end]`, in characters. Spans may nest and overlap."""

    kind: str
    """What it is, by the name of the corpus step that removes it: `authors`, `references`, `citation`..."""
    start: int
    end: int


@dataclass(frozen=True)
class Draft:
    """A document as a reader found it, with nothing taken out: what goes is for the corpus steps to decide, and to count."""

    id: str
    source: str
    text: str
    """Paragraphs apart by a blank line; a heading is a line `## Methods` in front of its section."""
    title: str
    licence: str
    year: int | None
    article_type: str
    uri: str
    spans: tuple[Span, ...] = ()
    language: str = ""
    """As the file states it, a code of ISO 639 such as `en` or `eng`; empty where it states none."""
    retracted: bool = False
    """Whether the file itself says so."""


@dataclass(frozen=True)
class Document:
    """One text with its provenance. `sha256` is of the UTF-8 text as cleaned; it is filled in by the clean step."""

    id: str
    """Unique in the source, stable between runs: `pmid:10704411`, `HP:0000003`."""
    source: str
    """The recipe's name of the source: `papers`, `books`, `general`."""
    text: str
    title: str
    licence: str
    """Lower-case licence group: `cc-by`, `cc-by-nc`, `public-domain`, `publisher-copyright`, `unstated`..."""
    year: int | None
    """Year of publication, None where the input states none."""
    article_type: str
    """`abstract`, `research-article`, `definition`, `prose`..."""
    uri: str
    """The raw file it came from."""
    retrieved: str = ""
    """Day on which that file was retrieved, as the recipe states it: `2026-11-22`; empty where it does not."""
    sha256: str = ""


DOCUMENT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("text", pa.large_string()),
        ("title", pa.string()),
        ("licence", pa.string()),
        ("year", pa.int32()),
        ("article_type", pa.string()),
        ("uri", pa.string()),
        ("retrieved", pa.string()),
        ("sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


@dataclass(frozen=True)
class Conversation:
    """One example of instruction tuning: the assistant's turns are trained on, the others are read."""

    id: str
    """Unique in its set, stable between runs: `mmlu:nutrition:17:direct`."""
    source: str
    """The recipe's name of the set."""
    kind: str
    """What it teaches: `exam`, `rationale`, `conversation` or `graph`, the components of the paper's ablation; or `reading/cause`
    and other kinds of questions on a text (medschool.instructions.reading)."""
    messages: tuple[Message, ...]
    """At least one `user` turn and then an `assistant` turn, which is the last."""
    licence: str
    uri: str
    """The raw file it came from."""
    document: str = ""
    """Id of the document of a corpus that it was made from, if any: one that is held out is not talked about either."""


CONVERSATION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("kind", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))),
        ("licence", pa.string()),
        ("uri", pa.string()),
        ("document", pa.string()),
    ]
)


@dataclass(frozen=True)
class ExamItem:
    """One multiple-choice question."""

    id: str
    """Unique in its exam, stable between runs: `anatomy:12`."""
    exam: str
    """The recipe's name of the exam, or of the set of instructions made from it."""
    subject: str
    question: str
    options: tuple[str, ...]
    """In the order of the file; their letters are A, B, C..."""
    answer: int
    """Index of the right option."""
    rationale: str
    """Why, where the file says it; else empty."""
    uri: str
    context: str = ""
    """What the question is about, to be read before it: an abstract, where the exam has one."""
    task: str = ""
    """The layout of lm-evaluation-harness that fits its file, by name (medschool.exams.harness); empty where none does."""
    asked: str = ""
    """The whole question in that layout, up to `Answer:`, made of the texts exactly as they stand in the file."""


EXAM_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("exam", pa.string()),
        ("subject", pa.string()),
        ("question", pa.large_string()),
        ("options", pa.list_(pa.large_string())),
        ("answer", pa.int32()),
        ("rationale", pa.large_string()),
        ("uri", pa.string()),
        ("context", pa.large_string()),
        ("task", pa.string()),
        ("asked", pa.large_string()),
    ]
)


@dataclass(frozen=True)
class Probe:
    """One fact as a choice between endings. Facts that were trained on have twins of the same kind that no variant saw."""

    id: str
    kind: str
    """What kind of fact, and from which source: `cloze/papers`, `graph/books`."""
    seed: int | None
    """Training seed under which the fact was in a training batch; None for a twin from the held-out documents."""
    prompt: str
    candidates: tuple[str, ...]
    """Endings that the prompt can take, as text that follows it directly."""
    answer: int
    """Index of the true ending."""
    document: str
    """Id of the document that states it."""


PROBE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("seed", pa.int64()),
        ("prompt", pa.large_string()),
        ("candidates", pa.list_(pa.large_string())),
        ("answer", pa.int32()),
        ("document", pa.string()),
    ]
)


@dataclass(frozen=True)
class Dropped:
    """Something that did not become a row, and why. Nothing is dropped without one of these."""

    id: str
    """Document id, or the raw file's name and position where there is none."""
    source: str
    step: str
    """The step that dropped it: `parse`, `licence`, `too_short`, `duplicate`..."""
    reason: str
    """One sentence with the value that decided."""
    sample: str
    """The first 200 characters of what was dropped."""
    uri: str


@dataclass(frozen=True)
class LeftOut:
    """Rows of a raw file that were read well and not used, as a number: too many, and too much alike, to be kept one by one."""

    source: str
    step: str
    """What left them out: `balance`, `suppressed`, `not_english`..."""
    rows: int
    reason: str
    uri: str


DROPPED_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "source", "step", "reason", "sample", "uri")])


Row = Document | Conversation | ExamItem | Probe | Dropped


def table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Arrow table of `rows` with exactly `schema`."""
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for row in rows:
        for name, value in asdict(row).items():
            columns[name].append(value)
    return pa.table(columns, schema=schema)
