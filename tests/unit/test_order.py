"""Mixture, order and packing against plain loops that are obviously right."""

from collections import Counter
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.tokens.mixture import Mixture
from medschool.tokens.order import Order
from medschool.tokens.pack import pack
from medschool.tokens.stream import rank_rows, rank_slice

weights = st.dictionaries(st.sampled_from(["books", "papers", "general", "notes"]), st.integers(1, 30), min_size=1)


def test_the_paper_s_batch_splits_exactly() -> None:
    mixture = Mixture({"books": 15, "papers": 4, "general": 1}, 3200)
    assert all(mixture.rows_in(batch) == {"books": 2400, "papers": 640, "general": 160} for batch in (0, 1, 4069))


@given(weights, st.integers(1, 64), st.integers(0, 60))
def test_every_batch_is_full_and_no_source_drifts(parts: dict[str, int], rows: int, batches: int) -> None:
    mixture = Mixture(parts, rows)
    total: Counter[str] = Counter()
    for batch in range(batches):
        assert sum(mixture.rows_in(batch).values()) == rows
        total.update(mixture.rows_in(batch))
    assert all(mixture.rows_before(batches)[name] == total[name] for name in parts)
    for name, part in parts.items():
        assert abs(total[name] - Fraction(part * rows * batches, sum(parts.values()))) < len(parts)


@given(weights, st.integers(1, 64), st.integers(1, 500))
def test_the_number_of_batches_for_some_rows_is_the_smallest(parts: dict[str, int], rows: int, wanted: int) -> None:
    mixture, name = Mixture(parts, rows), next(iter(parts))
    batches = mixture.batches_for(name, wanted)
    assert mixture.rows_before(batches)[name] >= wanted
    assert mixture.rows_before(batches - 1)[name] < wanted


shards = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)


@settings(deadline=None)
@given(shards, st.integers(0, 99))
def test_an_epoch_holds_every_row_once_and_epochs_differ(sizes: tuple[int, ...], seed: int) -> None:
    order = Order({"books": 1}, 4, {"books": sizes}, seed)
    everything = {(shard, row) for shard, size in enumerate(sizes) for row in range(size)}
    epochs = [[order.locate("books", epoch * sum(sizes) + k) for k in range(sum(sizes))] for epoch in range(3)]
    for number, epoch in enumerate(epochs):
        assert {number} == {place[0] for place in epoch}
        assert {place[1:] for place in epoch} == everything
    if sum(sizes) > 12:
        assert [place[1:] for place in epochs[0]] != [place[1:] for place in epochs[1]]


@settings(deadline=None)
@given(weights, st.integers(1, 12), st.integers(1, 9), st.integers(0, 20))
def test_any_world_size_sees_the_same_batches_in_equal_slices(parts: dict[str, int], rows: int, world: int, batch: int) -> None:
    order = Order(parts, rows, {name: (5, 3) for name in parts}, 1)
    slices = [rank_slice(order, batch, rank, world) for rank in range(world)]
    assert [ref for part in slices for ref in part] == order.batch(batch)
    assert all(len(part) <= rank_rows(rows, world) for part in slices)
    assert [ref.global_index for ref in order.batch(batch)] == list(range(batch * rows, (batch + 1) * rows))


def test_the_order_is_the_same_in_every_version() -> None:
    order = Order({"books": 3, "papers": 1}, 8, {"books": (5, 7), "papers": (4,)}, 1)
    assert [(ref.source, ref.epoch, ref.shard, ref.row) for ref in order.batch(3)] == [
        ("books", 1, 1, 2),
        ("books", 1, 1, 1),
        ("papers", 1, 0, 2),
        ("books", 1, 1, 5),
        ("books", 1, 1, 4),
        ("papers", 1, 0, 0),
        ("books", 1, 1, 0),
        ("books", 1, 1, 6),
    ]


documents = st.lists(st.lists(st.integers(0, 50), max_size=20), max_size=12)


@given(documents, st.integers(1, 9))
def test_packing_equals_a_plain_loop(texts: list[list[int]], row_tokens: int) -> None:
    ids = [f"d{number}" for number in range(len(texts))]
    rows = pack(ids, [np.array(text, dtype=np.uint16) for text in texts], row_tokens, 99, np.dtype(np.uint16))
    stream = [(token, name) for name, text in zip(ids, texts, strict=True) for token in [*text, 99]]
    count = len(stream) // row_tokens
    assert rows.tail_tokens == len(stream) - count * row_tokens
    assert rows.tokens.shape == (count, row_tokens)
    for row in range(count):
        expected = stream[row * row_tokens : (row + 1) * row_tokens]
        assert rows.tokens[row].tolist() == [token for token, _ in expected]
        owners = [name for name, length in zip(rows.doc_ids[row], rows.doc_lengths[row], strict=True) for _ in range(length)]
        assert owners == [name for _, name in expected]
        assert all(length > 0 for length in rows.doc_lengths[row])
