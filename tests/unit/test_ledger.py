"""The ledger and the questions asked of it, against a walk over every batch and every row of small runs."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.errors import InputError, StageError
from medschool.ledger import Ledger, go_on, ledger_bytes, parse_ledger
from medschool.tokens.order import Order
from medschool.tokens.stream import rank_slice
from medschool.trace.compare import consumed, first_difference

ROW_TOKENS = 8
ORDER = Order(
    {"books": 3, "papers": 1}, 7, {"books": (9, 5, 11), "papers": (6, 4)}, 4,
    {"books": {1: (0, 3)}, "papers": {}}, {9: {"papers": 1}, 14: {"books": 1, "papers": 2}},
)  # fmt: skip
FRESH = Ledger(ORDER, ROW_TOKENS, {"books": "b", "papers": "p"}, "m")


def trained(fresh: Ledger, batches: list[int], world: int = 1) -> Ledger:
    """The ledger of a worker group that trained on these batches: each rank counts what the order deals to it."""
    ranks = [fresh if rank == 0 else fresh.of_all([]) for rank in range(world)]
    for batch in batches:
        fed = [Counter(ref.source for ref in rank_slice(fresh.order, batch, rank, world)) for rank in range(world)]
        ranks = [ledger.after(batch, rows) for ledger, rows in zip(ranks, fed, strict=True)]
    return ranks[0].of_all([ledger.rows for ledger in ranks])


batch_lists = st.lists(st.integers(0, 25), unique=True, max_size=20).map(sorted)
few = settings(deadline=None, max_examples=40)


@few
@given(batch_lists, st.integers(1, 4))
def test_a_ledger_equals_a_walk_and_skipped_batches_stand_in_it(batches: list[int], world: int) -> None:
    ledger = trained(FRESH, batches, world)
    walk = Counter(ref.source for batch in batches for ref in ORDER.batch(batch))
    assert ledger.steps == len(batches) and list(ledger.trained_batches()) == batches
    assert list(ledger.skipped) == sorted(set(range(max(batches, default=-1) + 1)) - set(batches))
    assert [ledger.step_of(batch) for batch in batches] == list(range(1, len(batches) + 1))
    assert {ledger.step_of(batch) for batch in ledger.skipped} <= {None}
    assert ledger.planned_rows() == {name: walk[name] for name in ORDER.sources}
    if batches:
        assert ledger.tokens == {name: walk[name] * ROW_TOKENS for name in ORDER.sources}
        ledger.check(len(batches), "run")
    assert parse_ledger(ledger_bytes(ledger), "x") == ledger


@few
@given(st.integers(1, 24), st.integers(1, 4), st.integers(1, 4))
def test_a_run_that_is_interrupted_has_the_ledger_of_one_that_is_not(middle: int, world: int, later_world: int) -> None:
    every = [batch for batch in range(25) if batch not in (3, 17)]
    saved = trained(FRESH, [batch for batch in every if batch < middle], world).before(middle)
    stored = parse_ledger(ledger_bytes(saved), "x")
    resumed = go_on(FRESH, stored, middle, stored.steps, "x")
    whole = trained(resumed, [batch for batch in every if batch >= middle], later_world)
    assert ledger_bytes(whole) == ledger_bytes(trained(FRESH, every)) and whole.skipped == (3, 17)


def test_a_run_that_consumed_other_tokens_than_planned_is_no_success() -> None:
    ledger = trained(FRESH, list(range(5)))
    wrong = replace(ledger, rows={**ledger.rows, "books": ledger.rows["books"] + 1})
    planned = {name: rows * ROW_TOKENS for name, rows in ledger.rows.items()}
    with pytest.raises(StageError) as raised:
        wrong.check(5, "knowledge")
    assert str(wrong.tokens) in raised.value.problem and str(planned) in raised.value.problem
    with pytest.raises(StageError, match=r"in 5 steps, planned were .* in 6"):
        ledger.check(6, "knowledge")


def test_a_ledger_of_another_run_or_place_is_refused() -> None:
    ledger = trained(FRESH, list(range(5)))
    other = replace(FRESH, order=replace(ORDER, seed=5))
    for fresh, place in ((other, (5, 5)), (FRESH, (6, 5)), (FRESH, (5, 4)), (replace(FRESH, digests={"books": "c"}), (5, 5))):
        with pytest.raises(InputError, match="stands at batch 5, step 5"):
            go_on(fresh, ledger, *place, "x")
    raw = json.loads(ledger_bytes(ledger))
    for damage in ({"steps": 4}, {"format": 2}, {"tokens": {}}, {"order": {}}, {"skipped": [2]}, {"trained": [[0, 4]]}):
        with pytest.raises(InputError, match="not a ledger"):
            parse_ledger(json.dumps(raw | damage).encode(), "x")
    with pytest.raises(InputError, match="not a ledger"):
        parse_ledger(b"[]", "x")


@few
@given(batch_lists)
def test_rows_counted_by_shard_equal_a_walk(batches: list[int]) -> None:
    ledger = trained(FRESH, batches)
    walk = Counter((ref.source, ref.shard, ref.row) for batch in batches for ref in ORDER.batch(batch))
    for source in ORDER.sources:
        for shard, counts in enumerate(consumed(ledger, source)):
            assert counts.tolist() == [walk[source, shard, row] for row in range(ORDER.shard_rows[source][shard])]


ledgers = st.builds(
    lambda seed, later, withheld, digest, batches: trained(
        replace(FRESH, digests={"books": "b", "papers": digest},
                order=replace(ORDER, seed=seed, weights_from=later, withheld=withheld)), batches),
    st.sampled_from([4, 4, 5]), st.sampled_from([{}, {9: {"papers": 1}}, {9: {"papers": 1}, 12: {"books": 1}}]),
    st.sampled_from([{}, {"papers": {0: (1,)}}]), st.sampled_from(["p", "q"]), batch_lists,
)  # fmt: skip


@few
@given(ledgers, ledgers)
def test_the_first_step_that_differs_equals_a_walk(a: Ledger, b: Ledger) -> None:
    contents = [
        [[(r.source, x.digests[r.source], r.shard, r.row) for r in x.order.batch(n)] for n in x.trained_batches()] for x in (a, b)
    ]
    walk = next((step for step, (of_a, of_b) in enumerate(zip(*contents, strict=False), 1) if of_a != of_b), None)
    assert first_difference(a, b) == walk
