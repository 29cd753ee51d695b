"""The funnel: the way from raw records to the documents of one source, with what every stage took, and samples of it.

    records --reader--> drafts --checks, steps, cleaning, checks--> documents

Every character is accounted for: those of the drafts are those of the documents and what each stage took, a step from a text or a
check with a whole document. (Cleaning repairs accidents of encoding, which can make a text longer: its count may be negative.) A
record that the reader dropped never was a text, so it has no characters.

A Funnel is a value: `add`, `leave` and `merge` give a new one. Merging is associative and commutative, so parts may be counted
anywhere and put together in any order. The samples of a stage are those of the documents with the smallest hash of (id, stage):
a fair draw that does not depend on who counted first.

Price: about 30 microseconds a document; a funnel has less than 40 KB.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from medschool.corpus.steps import SAMPLE_CHARS, STEPS, Removed
from medschool.rows import Document, Draft, Dropped
from medschool.seed import seed_of

SAMPLES = 5
CLEAN = "clean"
"""The stage of medschool.corpus.clean, which repairs what is no step's business: encoding, white space, invisible characters."""
BEFORE_STEPS = ("retracted", "licence")
"""Checks that need no text and so are made before the steps, where they are made."""
TEMPLATE = "funnel.html.j2"
ABOUT = {
    "malformed": "records that cannot be read",
    "parse": "records without what makes a document",
    "no_text": "records without a text",
    "deleted": "records that their publisher deleted",
    "obsolete": "terms that are no longer used",
    "retracted": "publications that were retracted",
    "licence": "documents whose licence the recipe does not allow",
    CLEAN: "accidents of encoding, white space, invisible characters",
    "too_short": "documents that are shorter than the recipe allows",
    "language": "documents in another language",
    "quality": "documents that fail a quality filter",
    "identifiers": "documents that hold identifiers of people",
    "duplicate": "documents with the text of another one",
} | {step.name: step.about for step in STEPS.values()}
"""What goes at each stage, in words; a stage that is not here has none."""

FUNNEL_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("stage", pa.string()),
        ("kind", pa.string()),
        ("about", pa.string()),
        ("documents_before", pa.int64()),
        ("documents_touched", pa.int64()),
        ("documents_dropped", pa.int64()),
        ("chars_removed", pa.int64()),
        ("bytes_removed", pa.int64()),
        ("samples", pa.list_(pa.struct([("id", pa.string()), ("text", pa.large_string())]))),
    ]
)


class Sample(NamedTuple):
    """Something that went. Ordered by a hash, which draws them."""

    rank: int
    id: str
    text: str


@dataclass(frozen=True)
class Stage:
    """What one stage took."""

    touched: int = 0
    """Documents that it took something from, or dropped."""
    dropped: int = 0
    chars: int = 0
    bytes: int = 0
    """In UTF-8."""
    samples: tuple[Sample, ...] = ()

    def merge(self, other: "Stage") -> "Stage":
        counts = (self.touched + other.touched, self.dropped + other.dropped, self.chars + other.chars, self.bytes + other.bytes)
        return Stage(*counts, tuple(sorted((*self.samples, *other.samples))[:SAMPLES]))


@dataclass(frozen=True)
class Funnel:
    """Counts and samples of one source: `Funnel("papers").add(...)`, `one.merge(other)`."""

    source: str
    records: int = 0
    """What the reader gave, documents or not."""
    drafts: int = 0
    draft_chars: int = 0
    draft_bytes: int = 0
    documents: int = 0
    chars: int = 0
    """Of the documents that are left."""
    bytes: int = 0
    stages: Mapping[str, Stage] = field(default_factory=dict)
    """By name, those that took something."""

    def add(self, draft: Draft | None, removed: Sequence[Removed], outcome: Document | Dropped) -> "Funnel":
        """With one more raw record. draft: as the reader gave it, before the steps; None where the reader dropped the record."""
        taken = [(what.step, _one(outcome.id, what.step, False, what.chars, what.bytes, what.sample)) for what in removed]
        read = _size(draft.text) if draft else (0, 0)
        left = (read[0] - sum(what.chars for what in removed), read[1] - sum(what.bytes for what in removed))
        if isinstance(outcome, Dropped):
            stage = _one(outcome.id, outcome.step, True, *left, outcome.sample)
            return self._with([*taken, (outcome.step, stage)], records=1, drafts=int(draft is not None), read=read)
        kept = _size(outcome.text)
        if left != kept:
            taken.append((CLEAN, Stage(1, 0, left[0] - kept[0], left[1] - kept[1])))
        return self._with(taken, records=1, drafts=1, read=read, documents=1, kept=kept)

    def leave(self, dropped: Dropped, text: str) -> "Funnel":
        """With one document fewer, that was added before and goes after all (a duplicate). text: its text as cleaned."""
        chars, size = _size(text)
        stage = _one(dropped.id, dropped.step, True, chars, size, dropped.sample)
        return self._with([(dropped.step, stage)], documents=-1, kept=(-chars, -size))

    def merge(self, other: "Funnel") -> "Funnel":
        """Both together, under the name of this one. Associative and commutative for funnels of one source."""
        read, kept = (other.draft_chars, other.draft_bytes), (other.chars, other.bytes)
        return self._with(other.stages.items(), other.records, other.drafts, read, other.documents, kept)

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON, for the way through Ray."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Funnel":
        stages = {
            name: Stage(**stage | {"samples": tuple(Sample(*sample) for sample in stage["samples"])})
            for name, stage in data["stages"].items()
        }
        return cls(**{**data, "stages": stages})

    def _with(
        self,
        stages: Any,
        records: int = 0,
        drafts: int = 0,
        read: tuple[int, int] = (0, 0),
        documents: int = 0,
        kept: tuple[int, int] = (0, 0),
    ) -> "Funnel":
        """With more of everything. stages: pairs of name and Stage."""
        merged = dict(self.stages)
        for name, stage in stages:
            merged[name] = merged[name].merge(stage) if name in merged else stage
        return Funnel(
            self.source, self.records + records, self.drafts + drafts, self.draft_chars + read[0], self.draft_bytes + read[1],
            self.documents + documents, self.chars + kept[0], self.bytes + kept[1], merged,
        )  # fmt: skip


def _one(id: str, stage: str, dropped: bool, chars: int, size: int, sample: str) -> Stage:
    return Stage(1, int(dropped), chars, size, (Sample(seed_of(id, stage), id, sample[:SAMPLE_CHARS]),))


def _size(text: str) -> tuple[int, int]:
    """Characters and bytes of UTF-8."""
    return len(text), len(text.encode(errors="surrogatepass"))


# ---- in order -----------------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One stage in its place on the way."""

    name: str
    kind: str
    """`reader`, `check` or `step`."""
    about: str
    documents_before: int
    """Records or documents that came to it."""
    stage: Stage


def rows(funnel: Funnel, off: frozenset[str] = frozenset(), checks: Sequence[str] = ()) -> Iterator[Row]:
    """The stages in their order: the reader's drops by name, checks before the steps, steps not in `off`, cleaning, other checks.

    checks: names of the checks that are made, in their order. One that is not named but dropped something counts as the reader's.
    """
    first = [name for name in checks if name in BEFORE_STEPS]
    order = [*first, *(name for name in STEPS if name not in off), CLEAN, *(name for name in checks if name not in first)]
    reader = sorted(funnel.stages.keys() - set(order))
    left = funnel.records
    for name in (*reader, *order):
        stage = funnel.stages.get(name, Stage())
        kind = "step" if name in STEPS or name == CLEAN else "reader" if name in reader else "check"
        yield Row(name, kind, ABOUT.get(name, ""), left, stage)
        left -= stage.dropped


def table(funnel: Funnel, off: frozenset[str] = frozenset(), checks: Sequence[str] = ()) -> pa.Table:
    """One row a stage, in the order of `rows`, with FUNNEL_SCHEMA. off: steps that did not run; checks: as for `rows`."""
    return pa.Table.from_pylist([_flat(funnel.source, row) for row in rows(funnel, off, checks)], FUNNEL_SCHEMA)


def _flat(source: str, row: Row) -> dict[str, Any]:
    stage = row.stage
    samples = [{"id": sample.id, "text": sample.text} for sample in stage.samples]
    counts = (row.documents_before, stage.touched, stage.dropped, stage.chars, stage.bytes)
    return dict(zip(FUNNEL_SCHEMA.names, (source, row.name, row.kind, row.about, *counts, samples), strict=True))


def page(funnel: Funnel, off: frozenset[str] = frozenset(), checks: Sequence[str] = ()) -> str:
    """The same as one page of HTML, which fetches nothing. Arguments as for `table`."""
    return _template().render(funnel=funnel, rows=list(rows(funnel, off, checks)), off=sorted(off))


@cache
def _template() -> Template:
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(count="{:,}".format, share=_share)
    return environment.get_template(TEMPLATE)


def _share(part: int, whole: int) -> str:
    """`12.3%`; a dash where there is no whole, `<0.1%` for what is not quite nothing."""
    if not whole:
        return "-"
    return "<0.1%" if 0 < part / whole < 0.0005 else f"{part / whole:.1%}"
