"""Patterns for text that came without marks: plain books, web pages, tables of texts.

They are narrow on purpose: what stays by mistake costs a few tokens, what goes by mistake is lost. "[12]" behind a word is a
citation, and so is "[3, 5-7]"; but "years [13-60]" is a range, "95% CI [2, 5]" an interval, "return [1, 2]" a program. A figure
or table goes only where it is alone in its brackets.

Every function takes a text and gives the places that go, in order. Each looks first for words without which there is none.
"""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TypeAlias

from medschool.corpus.marked import Hole

Search: TypeAlias = Callable[[str], Iterator[Hole]]

_ADDRESS = r"(?:(?:https?|ftp)://|www\.)[^\s<>\"()\[\]]*[^\s<>\"()\[\].,;:!?]/?"
_URL = re.compile(rf"\({_ADDRESS}\)|\[{_ADDRESS}\]|<{_ADDRESS}>|\b{_ADDRESS}", re.IGNORECASE)
_COPYRIGHT = re.compile(
    r"^(?:copyright\s*(?:©|\(c\)|(?:1[89]|20)\d\d)|©|\(c\)\s*(?:1[89]|20)\d\d)[^\n]{0,200}$", re.IGNORECASE | re.MULTILINE
)
_BEHIND_A_WORD = r"(?:(?<=[a-z]{2}[.,]\[)|(?<=[A-Za-z]{2} \[)|(?<=[).%] \[))"
_NOT_CITED = "CI|CrI|IQR|SD|SE|range|interval|between|in|to|of|and|or|from|return|yield|else|print"
_NUMBER = r"[1-9]\d{0,2}"
_CITATION = re.compile(
    r"\["
    + _BEHIND_A_WORD
    + "".join(rf"(?<!\b{word} \[)" for word in _NOT_CITED.split("|"))
    + rf"({_NUMBER}(?:\s*[,;\u2013-]\s*{_NUMBER})*)\](?=[\s.,;:)]|$)"
)
_ITEM = r"S?\d{1,3}(?:\s?[A-Za-z]\b)?"
NUMBERS_NEARBY_CHARS = 40


def urls(text: str) -> Iterator[Hole]:
    """Addresses, with brackets that hold nothing else."""
    if "://" in text or "www." in text.lower():
        yield from _places(_URL, text)


def copyright_lines(text: str) -> Iterator[Hole]:
    """Lines that begin with a claim of copyright."""
    if "©" in text or "(c)" in text or "(C)" in text or "copyright" in text.lower():
        yield from _places(_COPYRIGHT, text)


def citations(text: str) -> Iterator[Hole]:
    """`[12]` and `[3, 5-7]`, where they follow words; two numbers only where no other number is near before them."""
    for found in _CITATION.finditer(text):
        numbers = list(map(int, re.findall(r"\d+", found[1])))
        rising = all(low < high for low, high in pairwise(numbers))
        before = text[max(0, found.start() - NUMBERS_NEARBY_CHARS) : found.start()]
        if rising and (len(numbers) != 2 or not re.search(r"\d|\b(?:age[ds]?|years?|months?|days?)\b", before)):
            yield found.span()


def asides(words: str, hints: tuple[str, ...]) -> Search:
    """A search for `(see Figs. 1A and 2)`. words: pattern of what is mentioned; hints: one of these is in each."""
    item = rf"(?:(?:{words})\.?\s?)?{_ITEM}"
    more = rf"(?:\s*(?:,|;|&|and|to|\u2013|-)\s*{item}|[\u2013-][A-Za-z]\b)*"
    pattern = re.compile(rf"[(\[](?:see\s+)?(?:also\s+)?(?:{words})\.?\s?{_ITEM}{more}[)\]]", re.IGNORECASE)

    def search(text: str) -> Iterator[Hole]:
        if any(hint in text for hint in hints):
            yield from _places(pattern, text)

    return search


figures = asides("figs?|figures?", ("Fig", "fig", "FIG"))
tables = asides("tables?|tabs?", ("Tab", "tab", "TAB"))


def _places(pattern: re.Pattern[str], text: str) -> Iterator[Hole]:
    return (found.span() for found in pattern.finditer(text))
