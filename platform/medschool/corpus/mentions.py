"""Mentions inside sentences: "[1, 2]", "(Smith 2003)", "(see Fig. 1A)", and what goes with them.

A citation leaves with the brackets that it empties. A figure or a table leaves only where nothing but mentions was in the
bracket: "Table 2 shows" stays, because a sentence without its subject teaches nothing, and so does "(Table 2; p = 0.1)". An
author as a word of the sentence stays too: "Lee et al. (2004) found".

Marks are found again in a *mask*: the text with every mark overwritten, character by character, by one that stands for its class.
The mask is as long as the text, so what a pattern finds in it is a place in the text.
"""

import re
from collections.abc import Iterable, Iterator

from medschool.corpus.marked import Hole
from medschool.rows import Draft, Span

CITATION, FIGURE_MENTION, TABLE_MENTION, FOOTNOTE_MARK = "citation", "figure_mention", "table_mention", "footnote_mark"
FOOTNOTE_SIGN_CHARS = 3
MENTIONS = frozenset({CITATION, FIGURE_MENTION, TABLE_MENTION, FOOTNOTE_MARK})

_NUMBER, _WORD, _OTHER = "\ue000", "\ue001", "\ue002"
"""Classes: a mark to take that is no word of the sentence, one that may be, and a mark of another kind."""
_OWN = f"[{_NUMBER}{_WORD}]+"
_RUN = rf"{_OWN}(?:(?:\s*[,;\u2013-]\s*|\s+){_OWN})*"
_PRIVATE = re.compile("[\ue000-\uf8ff]")
_BRACKET = re.compile(r"[(\[]([^()\[\]]*)[)\]]")
_ASIDE = re.compile(rf"(?:\b(?:see|and|in)\s+)?{_RUN}")
_NUMBERS = re.compile(rf"{_NUMBER}+(?:[^\S\n]*[,;\u2013-][^\S\n]*{_NUMBER}+)*")
_BETWEEN = r"\s*(?:[,;&]|\band\b|\bor\b)\s*"
_LISTED = re.compile(rf"{_BETWEEN}{_RUN}(?:[A-Za-z]\b)?|{_RUN}(?:[A-Za-z]\b)?(?:{_BETWEEN})?")
_FILLER = re.compile(
    r"\b(?:see|also|and|or|in|e\.?g|refs?|references?|reviewed|figs?|figures?|tables?|panels?|additional files?|[a-z])\b\.?",
    re.IGNORECASE,
)


def is_word(kind: str, mark: str) -> bool:
    """Whether a mark can be a word of its sentence: "Lee et al. (2004)", "Fig. 1"; not "12" nor the sign of a footnote, "a"."""
    letters = sum(map(str.isalpha, mark))
    return kind in MENTIONS and letters > (FOOTNOTE_SIGN_CHARS if kind == FOOTNOTE_MARK else 0)


def mention_holes(draft: Draft, kind: str) -> Iterator[Hole]:
    """Where the marks of `kind` go, and the brackets with them. Marks that are words of a sentence have no hole."""
    marks = [span for span in draft.spans if span.kind in MENTIONS]
    if not any(span.kind == kind for span in marks):
        return
    mask = _mask(draft.text, marks, kind)
    before = ""
    while mask != before:
        before, holes = mask, list(_emptied(mask))
        yield from holes
        mask = _overwritten(mask, ((start, end, _NUMBER) for start, end in holes))
    if kind in (CITATION, FOOTNOTE_MARK):
        for bracket in _brackets(mask):
            yield from _within(_ASIDE, mask, bracket)
        yield from (found.span() for found in _NUMBERS.finditer(mask))
    else:
        for bracket in filter(_only_mentions, _brackets(mask)):
            yield from _within(_LISTED, mask, bracket)


def _brackets(mask: str) -> Iterator[re.Match[str]]:
    """The innermost brackets with a mark that goes, if it is no word of a sentence."""
    return (found for found in _BRACKET.finditer(mask) if _NUMBER in found[1] or _WORD in found[1])


def _emptied(mask: str) -> Iterator[Hole]:
    """Brackets that hold nothing but what goes."""
    return (found.span() for found in _brackets(mask) if _OTHER not in found[1] and _only_mentions(found))


def _only_mentions(bracket: re.Match[str]) -> bool:
    """Whether only marks, filler words and separators are in the bracket."""
    return not re.search(r"\w", _FILLER.sub("", _PRIVATE.sub(" ", bracket[1])))


def _within(pattern: re.Pattern[str], mask: str, bracket: re.Match[str]) -> Iterator[Hole]:
    return (found.span() for found in pattern.finditer(mask, bracket.start(1), bracket.end(1)))


def _mask(text: str, marks: Iterable[Span], kind: str) -> str:
    """`text` with its marks overwritten. Characters that the mask uses for itself become letters first."""

    def overwritten(span: Span) -> tuple[int, int, str]:
        start, end = _unbracketed(text, span)
        return start, end, _OTHER if span.kind != kind else _WORD if is_word(kind, text[start:end]) else _NUMBER

    return _overwritten(_PRIVATE.sub("x", text), map(overwritten, marks))


def _overwritten(mask: str, parts: Iterable[tuple[int, int, str]]) -> str:
    pieces, done = [], 0
    for start, end, letter in sorted(parts):
        if end > done:
            start = max(start, done)
            pieces += [mask[done:start], letter * (end - start)]
            done = end
    return "".join([*pieces, mask[done:]])


def _unbracketed(text: str, span: Span) -> Hole:
    """The mark without the brackets around it, also where it has only one of the two: "[1]", "(Smith 2003;", "Roy 2004)"."""
    start, end = span.start, span.end
    while start < end and text[start] in "([":
        start += 1
    while start < end and text[end - 1] in ")]" and _closes_more(text[start:end]):
        end -= 1
    return start, end


def _closes_more(words: str) -> bool:
    return words.count(")") > words.count("(") or words.count("]") > words.count("[")
