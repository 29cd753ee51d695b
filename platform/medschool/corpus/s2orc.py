"""Papers of S2ORC, the full-text corpus of Semantic Scholar (Lo et al. 2020, "S2ORC"; the files of its dataset API, version 2).

One JSON object a line. The whole paper is one text, from the title to the last reference; what stands where is told by
annotations: for each kind a JSON text of `[{"start": 6, "end": 15, "attributes": {...}}]`, in characters, or null. The numbers
may be strings. Annotations overlap, and some point past the end of the text: they are clipped to it.

The text becomes a draft by insertions only. Annotated blocks are set apart by blank lines, a section's header becomes a line
`## Header`, with one more `#` for each level of its number ("2.1" is `###`). Everything else that is annotated becomes a span,
and the corpus steps decide what goes. Paragraphs are as annotated; in a text without such annotations each line is one.

Memory: one record. Price: 500 full texts a second and core.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, BinaryIO

from medschool.corpus.jsonlines import Malformed, Record, rows, strict
from medschool.corpus.stated import licence_of, words_of, year_of
from medschool.rows import Draft, Dropped, Span

KINDS = {
    "author": "authors",
    "authorfirstname": "authors",
    "authorlastname": "authors",
    "authoraffiliation": "affiliations",
    "bibauthor": "references",
    "bibauthorfirstname": "references",
    "bibauthorlastname": "references",
    "bibentry": "references",
    "bibtitle": "references",
    "bibvenue": "references",
    "bibref": "citation",
    "figure": "figure",
    "figurecaption": "figure_caption",
    "figureref": "figure_mention",
    "formula": "formula",
    "publisher": "front_matter",
    "table": "table",
    "tableref": "table_mention",
    "venue": "front_matter",
}
"""Kind of the span that an annotation becomes. The others (abstract, paragraph, sectionheader, title) are the structure."""
BLOCKS = ("abstract", "bibentry", "figure", "paragraph", "sectionheader", "table", "title")
"""Annotations that are set apart by blank lines."""
DEEPEST_HEADING = 6


@dataclass(frozen=True)
class Mark:
    """One annotation: `text[start:end]`, in characters, clipped to the text; never empty."""

    start: int
    end: int
    attributes: dict[str, Any]


def s2orc(stream: BinaryIO, uri: str, source: str) -> Iterator[Draft | Dropped]:
    """One row a line. Dropped: `malformed` lines, also those with an annotation that cannot be read; papers without text.

    Raises InputError for an empty file.
    """
    return rows(stream, uri, source, _row)


def _row(record: Record, uri: str, source: str) -> Draft | Dropped:
    values = record.values
    content, paper_id = _part(values, "content"), _id(values)
    text = content.get("text")
    if text is not None and not isinstance(text, str):
        raise Malformed(f"content.text is {text!r:.60}, not text")
    if not text or not text.strip():
        return Dropped(paper_id, source, "no_text", "the record has no full text", "", uri)
    marks = {key: _marks(key, value, len(text)) for key, value in _part(content, "annotations").items()}
    title = next((" ".join(text[mark.start : mark.end].split()) for mark in marks.get("title", [])), "")
    rendered, spans = render(text, marks)
    licence = licence_of(words_of(_part(_part(content, "source"), "oainfo"), "license"))
    return Draft(paper_id, source, rendered, title, licence, year_of(words_of(values, "year")), "paper", uri, spans)


def _part(values: dict[str, Any], key: str) -> dict[str, Any]:
    """The object under `key`; empty where it is null or missing. Raises Malformed where it is something else."""
    found = values.get(key) or {}
    if not isinstance(found, dict):
        raise Malformed(f"{key} is {found!r:.60}, not an object")
    return found


def _id(values: dict[str, Any]) -> str:
    external = _part(values, "externalids")
    for kind, key in (
        ("pmc", words_of(external, "pubmedcentral").upper().removeprefix("PMC")),
        ("pmid", words_of(external, "pubmed")),
        ("corpusid", words_of(values, "corpusid")),
    ):
        if key:
            return f"{kind}:{key}"
    raise Malformed("without pubmedcentral, pubmed and corpusid")


# ---- annotations --------------------------------------------------------------------------------------------------------------


def _marks(key: str, value: Any, chars: int) -> list[Mark]:
    """The annotations under one key, in the order of the text. Raises Malformed, naming the key, where they cannot be read."""
    try:
        found = strict(value) if isinstance(value, str) else value
        marks = [_mark(mark, chars) for mark in found or []]
    except (ValueError, TypeError, AttributeError) as error:
        raise Malformed(f"annotations.{key} cannot be read ({error})") from error
    return sorted((mark for mark in marks if mark.start < mark.end), key=lambda mark: (mark.start, mark.end))


def _mark(found: dict[str, Any], chars: int) -> Mark:
    start, end = (_position(found.get(key)) for key in ("start", "end"))
    attributes = found.get("attributes") or {}
    return Mark(max(start, 0), min(end, chars), attributes if isinstance(attributes, dict) else {})


def _position(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Malformed(f"{value!r:.60} is no position")
    return int(value)


# ---- text ---------------------------------------------------------------------------------------------------------------------


def render(text: str, marks: dict[str, list[Mark]]) -> tuple[str, tuple[Span, ...]]:
    """The text with its blocks apart and its headers as headings, and the spans of what is annotated in it, in its order.

    Nothing is taken out of the text; line breaks inside a header become spaces.
    """
    headers = _apart(marks.get("sectionheader", []))
    text = _on_one_line(text, headers)
    breaks = set() if marks.get("paragraph") else {found.start() for found in re.finditer("\n", text)}
    for key in BLOCKS:
        breaks.update(position for mark in marks.get(key, []) for position in (mark.start, mark.end))
    inside = [header for header in headers if text[header.start : header.end].strip()]
    added = _blank_lines(text, breaks, inside)
    for header in inside:
        start = _next_word(text, header.start)
        added[start] = added.get(start, "") + "#" * _depth(header) + " "
    spans = [Span(kind, mark.start, mark.end) for key, kind in KINDS.items() for mark in marks.get(key, [])]
    return insert(text, added, sorted(spans, key=lambda span: (span.start, span.end, span.kind)))


def insert(text: str, added: dict[int, str], spans: Iterable[Span]) -> tuple[str, tuple[Span, ...]]:
    """`text` with `added[position]` in front of each of these positions, and the spans where their characters now stand.

    An insertion at either end of a span is outside of it. added: positions in 0..len(text).
    """
    positions = sorted(added)
    shifts = [0, *accumulate(len(added[position]) for position in positions)]
    pieces = [text[start:stop] for start, stop in pairwise([0, *positions, len(text)])]
    moved = (
        Span(
            span.kind,
            span.start + shifts[bisect_right(positions, span.start)],
            span.end + shifts[bisect_left(positions, span.end)],
        )
        for span in spans
    )
    inserted = (added[position] + piece for position, piece in zip(positions, pieces[1:], strict=True))
    return pieces[0] + "".join(inserted), tuple(moved)


def _on_one_line(text: str, headers: list[Mark]) -> str:
    """`text`, of the same length, with a space for each line break inside of `headers`, which lie apart and in order."""
    ends = [0, *(header.end for header in headers)]
    starts = [*(header.start for header in headers), len(text)]
    between = [text[end:start] for end, start in zip(ends, starts, strict=True)]
    flat = [re.sub(r"\s", " ", text[header.start : header.end]) for header in headers]
    return between[0] + "".join(line + after for line, after in zip(flat, between[1:], strict=True))


def _apart(marks: list[Mark]) -> list[Mark]:
    """Those of the marks that overlap no earlier one."""
    kept: list[Mark] = []
    for mark in marks:
        if not kept or mark.start >= kept[-1].end:
            kept.append(mark)
    return kept


def _blank_lines(text: str, breaks: set[int], headers: list[Mark]) -> dict[int, str]:
    """What is missing to a blank line at each break: by the position of the next word, so that two breaks beside it are one.

    No break comes inside a word or a header; before and after a header there always is one, and the header begins its line.
    """
    starts = [_next_word(text, header.start) for header in headers]
    edges = {*starts, *(_next_word(text, header.end) for header in headers)}
    found = {}
    for position in {_next_word(text, position) for position in breaks} | edges:
        gap = text[_word_before(text, position) : position]
        place = bisect_right(starts, position) - 1
        inside = place >= 0 and starts[place] < position < headers[place].end
        in_word = not gap and text[position - 1 : position].isalnum() and text[position : position + 1].isalnum()
        if position in edges or not (inside or in_word):
            found[position] = _missing(gap, position in starts, len(gap) < position) if position < len(text) else ""
    return {position: lines for position, lines in found.items() if lines}


def _missing(gap: str, begins_line: bool, between: bool) -> str:
    """The line breaks that white space lacks to hold a blank line between two words, and to end with one before a heading."""
    if between and "\n\n" not in gap:
        return "\n" * (2 - gap.endswith("\n"))
    return "\n" if begins_line and gap and not gap.endswith("\n") else ""


def _next_word(text: str, position: int) -> int:
    """Position of the first character from `position` on that is no white space; the length of the text where there is none."""
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _word_before(text: str, position: int) -> int:
    """End of the last word before `position`; 0 where there is none."""
    while position and text[position - 1].isspace():
        position -= 1
    return position


def _depth(header: Mark) -> int:
    """`2.1` is 3: one more than the parts of the section's number."""
    parts = [part for part in str(header.attributes.get("n") or "1").split(".") if part.strip()]
    return min(1 + max(len(parts), 1), DEEPEST_HEADING)
