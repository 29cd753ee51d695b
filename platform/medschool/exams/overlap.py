"""Does a text hold an exam question? The check that keeps exams out of what is trained on.

Two steps, over lower-case words without the marks of a question's layout (`(A)`, `A.` at the start of a line, `###Question:`):

    1. a shared 8-gram of words with the question and its options makes the item a candidate (Brown et al. 2020 use 8 to 13);
    2. of a candidate, the matching blocks of five words and more are added up (difflib) in a window around the shared grams; the
       text holds the item when they are at least half of the item's words.

Two additions, for what has no 8-gram to share. The whole question, word for word, with every option somewhere near it, is a hit
too: that finds a short question whose options were put into another order. An item of less than eight words is found by its
question alone.

Price: about 2 microseconds a word of text against 1,000 items, 25 where every text holds one. difflib runs only in windows that
share enough runs of five words with the item, and no window is longer than a few times the item; so time and memory grow in step
with the text, and a phrase that comes back in every chapter of a book does not make the book one window.
It does not find a question that was put in other words.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from medschool.rows import ExamItem

GRAM_WORDS = 8
BLOCK_WORDS = 5
HELD_SHARE = 0.5
WINDOW_ITEMS = 4
"""The shared grams of one window lie at most so many lengths of the item apart."""

_MARKS = re.compile(r"###\w+:|\([A-Z]\)|^\s*[A-Z][.)](?=\s)", re.MULTILINE)
_WORD = re.compile(r"[^\W_]+")

Words = tuple[str, ...]


@dataclass(frozen=True)
class Hit:
    """An exam item that a text holds."""

    exam: str
    """ExamItem.exam."""
    item: str
    """ExamItem.id, unique in the exam."""
    share: float
    """Part of the item's words that the text has in blocks of BLOCK_WORDS and more; 1 where it has question and options whole."""
    hits: int
    """Places in the text that made the item a candidate."""


@dataclass(frozen=True)
class _Item:
    exam: str
    id: str
    question: Words
    options: tuple[Words, ...]
    words: Words


class ExamIndex:
    """Finds the questions of `items` in texts."""

    def __init__(self, items: Iterable[ExamItem]) -> None:
        self._items = [_item(item) for item in items]
        self._keys: dict[Words, list[int]] = {}
        for number, item in enumerate(self._items):
            for key in _keys(item):
                self._keys.setdefault(key, []).append(number)
        self._sizes = sorted({len(key) for key in self._keys})

    def find(self, text: str) -> Hit | None:
        """The item that `text` holds most of, or None when it holds none."""
        return max(self.find_all(text), key=lambda hit: hit.share, default=None)

    def find_all(self, text: str) -> list[Hit]:
        """Every item that `text` holds, in the order in which the text first shows a sign of them."""
        words = _words(text)
        places = self._candidates(words)
        numbers = sorted(places, key=lambda number: (places[number][0], number))
        return [hit for number in numbers if (hit := _judge(self._items[number], places[number], words))]

    def _candidates(self, words: Words) -> dict[int, list[int]]:
        """Numbers of the items that share a key with `words`, and where, ascending."""
        places: dict[int, list[int]] = {}
        for size in self._sizes:
            for at in range(len(words) - size + 1):
                for number in self._keys.get(words[at : at + size], ()):
                    places.setdefault(number, []).append(at)
        return {number: sorted(found) for number, found in places.items()}


def _words(text: str) -> Words:
    return tuple(_WORD.findall(_MARKS.sub(" ", text).lower()))


def _item(item: ExamItem) -> _Item:
    question, options = _words(item.question), tuple(map(_words, item.options))
    return _Item(item.exam, item.id, question, options, sum(options, question))


def _keys(item: _Item) -> set[Words]:
    """All 8-grams of the item, and the whole question where it is shorter than that."""
    grams = {item.words[at : at + GRAM_WORDS] for at in range(len(item.words) - GRAM_WORDS + 1)}
    return grams | {item.question} if 0 < len(item.question) < GRAM_WORDS else grams


def _judge(item: _Item, places: list[int], words: Words) -> Hit | None:
    """What the best window of the text holds of the item, if that is enough."""
    share = max(_held(item, words[start:stop]) for start, stop in _windows(places, len(item.words)))
    return Hit(item.exam, item.id, share, len(places)) if share >= HELD_SHARE else None


def _windows(places: list[int], size: int) -> Iterator[tuple[int, int]]:
    """Stretches of words in which a copy of an item of `size` words can lie, given the places of its grams, ascending.

    A gap of more than two lengths ends a stretch, and so do WINDOW_ITEMS lengths. The stretch reaches a length to the left of its
    first gram and two to the right of its last: a copy without gaps lies whole in one of them.
    """
    before, behind = size, 2 * size + GRAM_WORDS
    first = last = places[0]
    for at in places[1:]:
        if at - last > behind or at - first > WINDOW_ITEMS * size:
            yield max(0, first - before), last + behind
            first = at
        last = at
    yield max(0, first - before), last + behind


def _held(item: _Item, window: Words) -> float:
    """Part of the item that a window holds; 0 where the runs of BLOCK_WORDS that they share show that it cannot be enough."""
    if _holds_whole(item, window):
        return 1.0
    return _share(item, window) if _most(item, window) >= HELD_SHARE else 0.0


def _most(item: _Item, window: Words) -> float:
    """No less than `_share`, and a tenth of its price: every block that counts is made of runs that are in both."""
    runs = {window[at : at + BLOCK_WORDS] for at in range(len(window) - BLOCK_WORDS + 1)}
    starts = [at for at in range(len(item.words) - BLOCK_WORDS + 1) if item.words[at : at + BLOCK_WORDS] in runs]
    return len({at + offset for at in starts for offset in range(BLOCK_WORDS)}) / len(item.words)


def _holds_whole(item: _Item, words: Words) -> bool:
    parts = [item.question, *(item.options if len(item.words) >= GRAM_WORDS else ())]
    text = f" {' '.join(words)} "
    return bool(item.question) and all(f" {' '.join(part)} " in text for part in parts if part)


def _share(item: _Item, words: Sequence[str]) -> float:
    """Part of the item's words in matching blocks. autojunk is off: it would ignore common words in texts of 200 and more."""
    blocks = SequenceMatcher(None, words, item.words, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks if block.size >= BLOCK_WORDS) / len(item.words)
