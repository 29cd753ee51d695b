"""Mixture, order and packing against plain loops that are obviously right."""

from collections import Counter
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.tokens.mixture import Mixture, Schedule
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


curricula = st.dictionaries(st.integers(1, 40), weights, max_size=3)


def walked(parts: dict[str, int], later: dict[int, dict[str, int]], rows: int, batches: int) -> list[dict[str, int]]:
    """Rows of each source in every batch, by a plain loop: largest remainder, owed as fractions, forgotten where weights change."""
    found, owed = [], dict[str, Fraction]()
    for batch in range(batches):
        if batch == 0 or batch in later:
            now = later.get(batch, parts)
            owed = {name: Fraction(0) for name in now}
        for name, part in now.items():
            owed[name] += Fraction(part * rows, sum(now.values()))
        counts = {name: max(0, int(owe // 1)) for name, owe in owed.items()}
        names = list(now)
        for name in sorted(names, key=lambda name: (counts[name] - owed[name], names.index(name)))[: rows - sum(counts.values())]:
            counts[name] += 1
        for name in names:
            owed[name] -= counts[name]
        found.append(counts)
    return found


@given(weights, curricula, st.integers(1, 64), st.integers(0, 60))
def test_a_curriculum_equals_a_walk_over_its_batches(
    parts: dict[str, int], later: dict[int, dict[str, int]], rows: int, batches: int
) -> None:
    schedule, total = Schedule(parts, rows, later), Counter[str]()
    assert set(schedule.sources) == {*parts, *(name for found in later.values() for name in found)}
    for batch, counts in enumerate(walked(parts, later, rows, batches)):
        assert schedule.rows_before(batch) == {name: total[name] for name in schedule.sources}
        assert {name: count for name, count in schedule.rows_in(batch).items() if count} == {n: c for n, c in counts.items() if c}
        total.update(counts)
    assert schedule.rows_before(batches) == {name: total[name] for name in schedule.sources}


@given(weights, curricula, st.integers(1, 64), st.integers(1, 500))
def test_a_curriculum_reaches_some_rows_at_the_first_batch_that_has_them(
    parts: dict[str, int], later: dict[int, dict[str, int]], rows: int, wanted: int
) -> None:
    schedule = Schedule(parts, rows, later)
    for name in schedule.sources:
        batches = schedule.batches_for(name, wanted)
        if batches is None:
            assert schedule.rows_before(10**6)[name] < wanted and name not in later[max(later)]
        else:
            assert schedule.rows_before(batches)[name] >= wanted > schedule.rows_before(batches - 1)[name]


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Small orders with a curriculum and withheld rows; every source keeps at least one row."""
    parts, later = draw(weights), draw(curricula)
    names = Schedule(parts, 1, later).sources
    sizes = {name: draw(shards) for name in names}
    withheld = {}
    for name in names:
        every = [(shard, row) for shard, size in enumerate(sizes[name]) for row in range(size)]
        out = draw(st.lists(st.sampled_from(every), unique=True, max_size=len(every) - 1))
        withheld[name] = {shard: tuple(sorted(r for s, r in out if s == shard)) for shard, _ in out}
    return Order(parts, draw(st.integers(1, 9)), sizes, draw(st.integers(0, 99)), withheld, later)


@settings(deadline=None)
@given(orders())
def test_an_epoch_holds_every_row_but_the_withheld_once(order: Order) -> None:
    for name in order.sources:
        out = {(shard, row) for shard, rows in order.withheld[name].items() for row in rows}
        every = {(shard, row) for shard, size in enumerate(order.shard_rows[name]) for row in range(size)}
        for epoch in range(2):
            seen = order.take(name, epoch * len(every - out), len(every - out))
            assert {place[0] for place in seen} == {epoch}
            assert len(seen) == len(every - out) and {place[1:] for place in seen} == every - out


@settings(deadline=None)
@given(orders(), st.integers(1, 7), st.integers(0, 45))
def test_batches_follow_the_walk_for_any_world_size(order: Order, world: int, batch: int) -> None:
    counts = walked(dict(order.weights), {step: dict(w) for step, w in order.weights_from.items()}, order.batch_rows, batch + 1)
    found = order.batch(batch)
    assert Counter(ref.source for ref in found) == Counter(counts[batch])
    for name in order.sources:
        start = sum(before.get(name, 0) for before in counts[:batch])
        places = [(ref.epoch, ref.shard, ref.row) for ref in found if ref.source == name]
        assert sorted(places) == sorted(order.locate(name, start + k) for k in range(counts[batch].get(name, 0)))
    assert [ref for rank in range(world) for ref in rank_slice(order, batch, rank, world)] == found


@settings(deadline=None, max_examples=50)
@given(orders(), st.integers(0, 30))
def test_the_way_back_from_a_row_equals_a_search_of_all_batches(order: Order, stop: int) -> None:
    held: dict[tuple[str, int, int], list[int]] = {}
    for batch in range(stop):
        for ref in order.batch(batch):
            held.setdefault((ref.source, ref.shard, ref.row), []).append(batch)
    for name in order.sources:
        for shard, size in enumerate(order.shard_rows[name]):
            for row in range(size):
                assert list(order.batches_of(name, shard, row, stop)) == held.get((name, shard, row), [])


def test_without_withheld_rows_and_curriculum_the_order_is_as_it_was() -> None:
    plain = Order({"books": 3, "papers": 1}, 8, {"books": (5, 7), "papers": (4,)}, 1)
    other = Order({"books": 3, "papers": 1}, 8, {"books": (5, 7), "papers": (4,)}, 1, {"books": {1: (0,)}}, {5: {"papers": 1}})
    assert plain.batch(3) != other.batch(3) and plain == Order(plain.weights, 8, plain.shard_rows, 1, {}, {})
    assert {ref.source for ref in other.batch(5)} == {"papers"} and {ref.source for ref in plain.batch(5)} == {"books", "papers"}


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
