"""Pages of RedPajama, as JSON lines: version 1 (`text`, `meta`, `red_pajama_subset`) and version 2 (`raw_content`, `doc_id`).

Version 1 names where a text comes from in `meta`, an object or, as the Hugging Face loader gives it, the text of one. Version 2
is web text; its quality signals, where a file carries them, are not read: the recipe's own filters judge the text.
The year is that of publication, which only books and arXiv papers state; the day on which a page was crawled is none.

Source: github.com/togethercomputer/RedPajama-Data, branch rp_v1 and main. Price: 100 MB a second and core; memory of one line.
"""

import ast
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from medschool.corpus.jsonlines import Malformed, Record, rows, strict
from medschool.corpus.stated import licence_of, words_of, year_of
from medschool.rows import Draft, Dropped

WEB = "web"
META_CHARS = 100_000


def redpajama(stream: BinaryIO, uri: str, source: str) -> Iterator[Draft | Dropped]:
    """One row a line. Dropped: `malformed` lines, records with an empty text. Raises InputError for an empty file."""
    return rows(stream, uri, source, _row)


def _row(record: Record, uri: str, source: str) -> Draft | Dropped:
    values = record.values
    text = values["text"] if "text" in values else values.get("raw_content")
    if not isinstance(text, str):
        raise Malformed("without text or raw_content" if text is None else f"the text is {text!r:.60}")
    about = {**values, **_meta(values.get("meta"))}
    page_id = words_of(about, "doc_id", "id", "arxiv_id", "digest") or f"{uri}:{record.line}"
    if not text.strip():
        return Dropped(page_id, source, "no_text", "the text is empty", record.sample, uri)
    title, subset = words_of(about, "title", "short_book_title"), words_of(values, "red_pajama_subset") or WEB
    language = "" if subset == "github" else words_of(about, "language")
    licence = licence_of(words_of(about, "license", "licence"))
    return Draft(page_id, source, text, title, licence, _year(about), subset, uri, (), language)


def _meta(found: Any) -> dict[str, Any]:
    """Version 1's `meta`. Raises Malformed where it is neither an object nor the text of one, in JSON or as Python prints it."""
    if not isinstance(found, str):
        meta = found or {}
    elif found.lstrip().startswith("{'"):
        meta = _literal(found)
    else:
        meta = strict(found) if found.strip() else {}
    if not isinstance(meta, dict):
        raise Malformed(f"meta is {found!r:.60}, not an object")
    return meta


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text if len(text) <= META_CHARS else "")
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as error:
        raise Malformed(f"meta cannot be read ({error})") from error


def _year(about: dict[str, Any]) -> int | None:
    """Of a book's publication date, or of the month `yymm` in which arXiv received a paper (it was founded in 1991)."""
    month = re.fullmatch(r"(\d\d)\d\d", words_of(about, "yymm"))
    if month is None:
        return year_of(words_of(about, "publication_date"))
    return int(month[1]) + (1900 if month[1] >= "91" else 2000)
