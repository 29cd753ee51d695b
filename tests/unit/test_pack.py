"""The ways of packing, against plain loops: where each token goes, what is trained, and that the counts add up."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medschool.seed import seed_of
from medschool.tokens.pack import PADDING, Rows, pack, pack_best_fit, pack_windows

EOS, KIND = 99, np.dtype(np.uint16)
documents = st.lists(st.lists(st.integers(0, 50), max_size=25), max_size=14)


def arrays(texts: list[list[int]]) -> list[np.ndarray]:
    return [np.array(text, dtype=KIND) for text in texts]


def names(texts: list[list[int]]) -> list[str]:
    return [f"d{number}" for number in range(len(texts))]


def pieces(rows: Rows) -> list[tuple[str, list[int], list[bool]]]:
    """(id, tokens, trained) of every piece, row by row."""
    found = []
    for tokens, trained, ids, lengths in zip(rows.tokens, rows.trained, rows.doc_ids, rows.doc_lengths, strict=True):
        assert sum(lengths) == len(tokens) and len(ids) == len(lengths) and all(length > 0 for length in lengths)
        start = 0
        for id_, length in zip(ids, lengths, strict=True):
            found.append((id_, tokens[start : start + length].tolist(), trained[start : start + length].tolist()))
            start += length
    return found


@given(documents, st.integers(1, 9))
def test_concatenating_puts_every_token_into_one_row_but_the_tail(texts: list[list[int]], row_tokens: int) -> None:
    rows = pack(names(texts), arrays(texts), row_tokens, EOS, KIND)
    stream = [(name, token) for name, text in zip(names(texts), texts, strict=True) for token in [*text, EOS]]
    found = [(id_, token) for id_, tokens, _ in pieces(rows) for token in tokens]
    assert found == stream[: len(found)] and len(stream) - len(found) == rows.tail_tokens < row_tokens
    assert rows.trained.all() and rows.padding_tokens == 0 and rows.documents == len(texts)


@given(documents, st.integers(1, 9))
def test_best_fit_cuts_only_what_is_longer_than_a_row_and_loses_nothing(texts: list[list[int]], row_tokens: int) -> None:
    rows = pack_best_fit(names(texts), arrays(texts), row_tokens, EOS, KIND)
    by_document: dict[str, list[list[int]]] = {}
    padding = 0
    for id_, tokens, trained in pieces(rows):
        if id_ == PADDING:
            assert not any(trained)
            padding += len(tokens)
        else:
            assert all(trained)
            by_document.setdefault(id_, []).append(tokens)
    for name, text in zip(names(texts), texts, strict=True):
        whole = [*text, EOS]
        expected = Counter(tuple(whole[start : start + row_tokens]) for start in range(0, len(whole), row_tokens))
        assert Counter(map(tuple, by_document.pop(name))) == expected  # full rows and one rest; short ones in one piece
    assert not by_document
    assert rows.padding_tokens == padding and rows.tail_tokens == 0 and rows.documents == len(texts)
    assert rows.tokens.size == sum(len(text) + 1 for text in texts) + padding


@given(documents, st.integers(2, 9))
def test_best_fit_opens_a_row_only_when_a_piece_fits_nowhere(texts: list[list[int]], row_tokens: int) -> None:
    rows = pack_best_fit(names(texts), arrays(texts), row_tokens, EOS, KIND)
    rests = [size for text in texts if (size := (len(text) + 1) % row_tokens)]
    room: list[int] = []
    for size in sorted(rests, reverse=True):
        fits = [free for free in room if free >= size]
        if fits:
            room.remove(min(fits))
        room.append((min(fits) if fits else row_tokens) - size)
    assert len(rows.tokens) == len(room) + sum((len(text) + 1) // row_tokens for text in texts)


@given(documents, st.integers(1, 9), st.integers(0, 5))
def test_windows_give_one_row_a_document_at_the_drawn_place(texts: list[list[int]], row_tokens: int, seed: int) -> None:
    rows = pack_windows(names(texts), arrays(texts), row_tokens, EOS, KIND, seed)
    assert len(rows.tokens) == len(texts) == rows.documents
    outside = 0
    for number, (name, text) in enumerate(zip(names(texts), texts, strict=True)):
        whole = [*text, EOS]
        start = 0 if len(whole) <= row_tokens else seed_of(seed, "window", name) % (len(whole) - row_tokens + 1)
        window = whole[start : start + row_tokens]
        missing = row_tokens - len(window)
        assert rows.tokens[number].tolist() == window + [EOS] * missing
        assert rows.trained[number].tolist() == [True] * len(window) + [False] * missing
        assert rows.doc_ids[number] == [name] + [PADDING] * (missing > 0)
        outside += len(whole) - len(window)
    assert rows.tail_tokens == outside
    assert rows.tokens.size == sum(len(text) + 1 for text in texts) - outside + rows.padding_tokens


def test_every_place_of_a_window_is_drawn_about_as_often() -> None:
    ids = [f"d{number}" for number in range(4000)]
    rows = pack_windows(ids, [np.arange(9, dtype=KIND)] * len(ids), 3, EOS, KIND, 1)
    starts = Counter(rows.tokens[:, 0].tolist())
    assert set(starts) == set(range(8)) and max(starts.values()) < 1.25 * min(starts.values())
