"""Quality filters with published thresholds, as datatrove implements them, judging one text at a time.

    gopher    Rae et al. 2021, arXiv:2112.11446, section A1.1 and table A1: number and length of words, symbols, stop words, and
              how much of the text repeats lines, paragraphs and n-grams (GopherQualityFilter and GopherRepetitionFilter)
    c4        Raffel et al. 2020, JMLR 21(140), section 2.2: at least five sentences in lines that end like sentences, no curly
              bracket, no lorem ipsum (C4QualityFilter)
    fineweb   Penedo et al. 2024, arXiv:2406.17557, section 3.6: lines that end in punctuation, not mostly short, not repeated
              (FineWebQualityFilter)

The thresholds are datatrove's defaults, which are the published ones. They were set on web pages: `gopher` wants 50 words, and
`c4` drops whatever holds a `{`. Two things differ from a run of datatrove. Its own word splitter (spaCy's) is not needed: words
and sentences are cut here by the expressions below. And a filter judges the document; it never rewrites it (C4's does).

Price: 0.8 s once a process to import datatrove, then about 9 ms an abstract for `gopher` (its n-grams), 1 ms for each other.
Of 1,500 abstracts of PubMed's file 20n0014, `gopher` refuses 13% (most because numbers and marks are over a fifth of the words),
`c4` 19% (fewer than five sentences) and `fineweb` none: for papers the first two are a strict choice.
"""

import functools
import re
from collections.abc import Iterable
from typing import Any

FILTERS = ("gopher", "c4", "fineweb")
_WORD = re.compile(r"\w+(?:['\u2019.,/-]\w+)*|\.{3}|[^\w\s]")
"""A word with its inner hyphens, points and apostrophes, an ellipsis, or one mark of punctuation."""
_SENTENCE_END = re.compile(r"[.!?]+[\"'\u201d\u2019)\]]*(?=\s+[\"'\u201c\u2018(\[]*[A-Z0-9])")


def poor_quality(text: str, names: Iterable[str]) -> str:
    """Which filter of `names` refuses `text` and why, as in `gopher: gopher_short_doc`; empty where all accept it."""
    from datatrove.data import Document

    for name in names:
        for judge in _filters()[name]:
            verdict = judge.filter(Document(text=text, id=""))
            if verdict is not True:
                return f"{name}: {verdict[1] if isinstance(verdict, tuple) else 'refused'}"
    return ""


def words_of(text: str) -> list[str]:
    """`text` in words and marks of punctuation, as the filters count them."""
    return _WORD.findall(text)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence, in characters: an end mark, white space, and a capital letter or a digit behind it."""
    ends = [*(mark.end() for mark in _SENTENCE_END.finditer(text)), len(text)]
    return list(zip([0, *ends[:-1]], ends, strict=True)) if text else []


@functools.cache
def _filters() -> dict[str, tuple[Any, ...]]:
    """The filters of each name; datatrove and its word splitter's base class are imported here, on first use."""
    from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Splitter(WordTokenizer):  # type: ignore[misc]
        def word_tokenize(self, text: str) -> list[str]:
            return words_of(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [text[start:end].strip() for start, end in sentence_spans(text)]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return sentence_spans(text)

    split: Any = Splitter()
    return {
        "gopher": (GopherQualityFilter(language=split), GopherRepetitionFilter(language=split)),
        "c4": (C4QualityFilter(language=split),),
        "fineweb": (FineWebQualityFilter(language=split),),
    }
