"""Near-duplicates: signatures against exact Jaccard and datasketch, pairs against brute force, the choice against a plain loop."""

import random
from itertools import combinations, pairwise

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.duplicates import candidates
from medschool.duplicates.candidates import PAIR, RECORD, candidate_pairs, distinct, rank_of, verified
from medschool.duplicates.components import choose, clusters_table, removals_table, size_counts
from medschool.duplicates.minhash import (
    Banding,
    band_hashes,
    banding,
    needed_places,
    shingles,
    signatures,
    similarity,
)

PERMUTATIONS, NGRAM = 128, 5
VOCABULARY = [f"w{number}" for number in range(5000)]


def arrow(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def signed(texts: list[str], ngram: int = NGRAM) -> np.ndarray:
    return signatures(*shingles(arrow(texts), ngram), PERMUTATIONS)


def plain_shingles(text: str, ngram: int) -> set[tuple[str, ...]]:
    words = ["".join(letter for letter in word if letter.isalnum()) for word in text.lower().split()]
    words = [word for word in words if word]
    return {tuple(words[at : at + ngram]) for at in range(max(1, len(words) - ngram + 1))} if words else set()


def jaccard(one: str, other: str) -> float:
    return overlap(plain_shingles(one, NGRAM), plain_shingles(other, NGRAM))


def overlap(first: set[tuple[str, ...]], second: set[tuple[str, ...]]) -> float:
    return len(first & second) / len(first | second)


def prose(draw: random.Random, words: int) -> list[str]:
    return [draw.choice(VOCABULARY) for _ in range(words)]


def edited(draw: random.Random, words: list[str], edits: int) -> list[str]:
    """A copy with `edits` words replaced: each spoils up to NGRAM shingles of each side."""
    copy = list(words)
    for at in draw.sample(range(len(words)), edits):
        copy[at] = "new" + str(draw.random())
    return copy


def found_pairs(texts: list[str], threshold: float) -> set[tuple[int, int]]:
    """The whole way in plain order: signatures, records, candidates, verification."""
    made = signed(texts)
    offsets = shingles(arrow(texts), NGRAM)[1]
    records = [
        (bucket, rank_of("s", str(number), len(text)), number)
        for number, text in enumerate(texts)
        if offsets[number + 1] > offsets[number]
        for bucket in band_hashes(made[number : number + 1], banding(threshold, PERMUTATIONS))[0]
    ]
    arrays = candidate_pairs(np.array(records, RECORD))
    pairs = [verified(some, lambda which: made[which.astype(int)], needed_places(threshold, PERMUTATIONS)) for some in arrays]
    found = distinct(np.concatenate([np.empty(0, PAIR), *pairs]))
    return {(min(pair), max(pair)) for pair in found[["first", "second"]].tolist()}


texts_of_words = st.lists(
    st.sampled_from(["alpha", "Beta", "beta,", "--", "gamma", "d", "co-trial", "Ärzte\u2019s", "3.5%", "é\u0301", "(x)"]),
    max_size=12,
).map(" ".join)


@settings(max_examples=50, deadline=None)
@given(st.lists(texts_of_words, max_size=8), st.integers(1, 4))
def test_shingles_are_the_word_ngrams_of_each_text(texts: list[str], ngram: int) -> None:
    hashes, offsets = shingles(arrow(texts), ngram)
    sets = [set(hashes[start:stop].tolist()) for start, stop in pairwise(offsets)]
    expected = [plain_shingles(text, ngram) for text in texts]
    assert [len(one) for one in sets] == [len(one) for one in expected]
    for (mine, plain), (other, other_plain) in combinations(zip(sets, expected, strict=True), 2):
        assert len(mine & other) == len(plain & other_plain)


def test_a_slice_of_an_arrow_array_gives_the_shingles_of_the_slice() -> None:
    texts = [f"one two three four {number}" for number in range(5)]
    whole, part = shingles(arrow(texts)[2:4], 2), shingles(arrow(texts[2:4]), 2)
    assert np.array_equal(whole[0], part[0]) and np.array_equal(whole[1], part[1])


def test_estimates_are_unbiased_and_as_close_as_datasketch_s() -> None:
    draw = random.Random(5)
    pairs = [(words, edited(draw, words, draw.randrange(0, 30))) for words in (prose(draw, 150) for _ in range(120))]
    texts = [" ".join(words) for pair in pairs for words in pair]
    made = signed(texts)
    exact = np.array([jaccard(one, other) for one, other in zip(texts[::2], texts[1::2], strict=True)])
    mine = similarity(made[::2], made[1::2])

    def sketch(text: str) -> MinHash:
        found = MinHash(PERMUTATIONS)
        found.update_batch([" ".join(words).encode() for words in plain_shingles(text, NGRAM)])
        return found

    sketches = [sketch(text) for text in texts]
    theirs = np.array([one.jaccard(other) for one, other in zip(sketches[::2], sketches[1::2], strict=True)])
    assert exact.min() < 0.4 and exact.max() == 1
    assert abs((mine - exact).mean()) < 4 * np.sqrt(0.25 / PERMUTATIONS / len(pairs))
    assert np.sqrt(((mine - exact) ** 2).mean()) < 1.15 * np.sqrt(((theirs - exact) ** 2).mean())
    assert np.abs(mine - theirs).max() < 0.25


def test_signatures_of_this_rensa_are_those_that_removals_were_made_with() -> None:
    """In any process and on any machine; another version of rensa must come with another version of the stage."""
    assert signed(["the cat sat on the mat"])[0, :4].tolist() == [3751277966, 3984084660, 3228236337, 3636995377]


def test_banding_finds_what_is_similar_enough() -> None:
    cut = banding(0.8, 128)
    assert cut == Banding(14, 9)
    assert cut.found(0.9) > 0.99 > cut.found(0.8) > 0.8 and cut.found(0.3) < 0.001
    assert Banding(9, 13).found(0.8) < 0.41  # RedPajama's, equal weights
    for threshold in (0.1, 0.5, 0.99):
        assert banding(threshold, 64).bands * banding(threshold, 64).rows <= 64


def test_needed_places_round_up() -> None:
    assert [needed_places(similar, 128) for similar in (0.8, 0.5, 0.501)] == [103, 64, 65]
    assert needed_places(0.7, 10) == 7  # not 8, for 0.7 * 10 is 7.000000000000001 in binary


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=14), st.randoms(use_true_random=False))
def test_identical_documents_are_always_found(kinds: list[int], draw: random.Random) -> None:
    texts = [" ".join(prose(random.Random(kind), 40)) for kind in kinds]
    texts = [text.upper() if draw.random() < 0.5 else text.replace(" ", "\n, ") for text in texts]
    expected = {pair for pair in combinations(range(len(kinds)), 2) if kinds[pair[0]] == kinds[pair[1]]}
    assert found_pairs(texts, 0.8) == expected


def test_a_pair_at_nine_tenths_goes_and_one_at_a_half_stays() -> None:
    draw = random.Random(3)
    close, far = set(), set()
    texts: list[str] = []
    for _ in range(40):
        words = prose(draw, 300)
        variants = [words, edited(draw, words, 3), edited(draw, words, 20)]
        texts += [" ".join(variant) for variant in variants]
        base = len(texts) - 3
        assert jaccard(texts[base], texts[base + 1]) > 0.88 and 0.35 < jaccard(texts[base], texts[base + 2]) < 0.65
        close.add((base, base + 1))
        far |= {(base, base + 2), (base + 1, base + 2)}
    found = found_pairs(texts, 0.8)
    assert found == close and not found & far


def test_pairs_are_those_of_brute_force_but_for_the_border() -> None:
    draw = random.Random(11)
    texts: list[str] = []
    for _ in range(25):
        words = prose(draw, 120)
        texts += [" ".join(edited(draw, words, edits)) for edits in (0, 1, 2, 4, 8, 16)]
    found = found_pairs(texts, 0.8)
    sets = [plain_shingles(text, NGRAM) for text in texts]
    exact = {pair: overlap(sets[pair[0]], sets[pair[1]]) for pair in combinations(range(len(texts)), 2)}
    similar = {pair for pair, value in exact.items() if value >= 0.8}
    assert len(similar) > 40
    assert {pair for pair in found if exact[pair] < 0.69} == set()  # three standard errors
    assert {pair for pair, value in exact.items() if value >= 0.91} <= found
    assert len(found & similar) > 0.75 * len(similar)


def test_a_document_without_a_word_is_like_no_other() -> None:
    assert found_pairs(["--- !", "...", "", "--- !"], 0.8) == set()


def test_a_large_bucket_costs_a_window_and_still_leaves_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "WINDOW", 4)
    monkeypatch.setattr(candidates, "PAIRS_AT_ONCE", 37)
    records = np.zeros(500, RECORD)
    records["bucket"], records["document"] = 7, np.arange(500)
    records["rank"] = np.random.default_rng(0).permutation(500)
    arrays = list(candidate_pairs(records))
    assert all(len(some) <= len(records) for some in arrays) and sum(map(len, arrays)) <= 5 * 500
    pairs = distinct(np.concatenate([verified(some, lambda which: np.zeros((len(which), 8)), 8) for some in arrays]))
    choice = choose(pairs)
    assert choice.kept.sum() == 1 and choice.documents[0] == np.argmin(records["rank"]) and choice.kept[0]


pair_lists = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(100, 128)), max_size=30)


def as_pairs(rows: list[tuple[int, int, int]], ranks: list[int]) -> np.ndarray:
    """Distinct PAIRs of `rows` (document, document, equal), the preferred document first."""
    agreed = {(min(a, b), max(a, b)): equal for a, b, equal in rows if a != b}
    made = np.zeros(len(agreed), PAIR)
    for at, ((a, b), equal) in enumerate(agreed.items()):
        first, second = sorted((a, b), key=lambda document: ranks[document])
        made[at] = (first, second, ranks[first], ranks[second], equal)
    return made


@settings(max_examples=50, deadline=None)
@given(pair_lists, st.permutations(range(13)), st.randoms(use_true_random=False))
def test_the_choice_is_that_of_a_plain_loop_and_no_order_matters(
    rows: list[tuple[int, int, int]], ranks: list[int], draw: random.Random
) -> None:
    pairs = as_pairs(rows, list(ranks))
    similar = {frozenset((int(pair["first"]), int(pair["second"]))): int(pair["equal"]) for pair in pairs}
    involved = sorted({document for pair in similar for document in pair}, key=lambda document: ranks[document])
    kept: list[int] = []
    twins: dict[int, int] = {}
    for document in involved:
        partners = [keeper for keeper in kept if frozenset((document, keeper)) in similar]
        if partners:
            twins[document] = min(partners, key=lambda keeper: (-similar[frozenset((document, keeper))], ranks[keeper]))
        else:
            kept.append(document)
    shuffled = pairs[draw.sample(range(len(pairs)), len(pairs))]
    for given_pairs in (pairs, shuffled):
        choice = choose(given_pairs)
        assert choice.documents.tolist() == involved
        assert choice.documents[choice.kept].tolist() == kept
        goes = np.flatnonzero(~choice.kept)
        assert {int(choice.documents[at]): int(choice.documents[choice.twin[at]]) for at in goes} == twins
        assert [int(choice.equal[at]) for at in goes] == [
            similar[frozenset((int(choice.documents[at]), twins[int(choice.documents[at])]))] for at in goes
        ]
        graph = {document: {document} for document in involved}
        for _ in involved:
            for pair in similar:
                union = set().union(*(graph[document] for document in pair))
                graph |= dict.fromkeys(union, union)
        for one, other in combinations(range(len(involved)), 2):
            together = int(choice.documents[other]) in graph[int(choice.documents[one])]
            assert (choice.cluster[one] == choice.cluster[other]) == together


def test_tables_are_sorted_and_say_who_stays_for_whom() -> None:
    ranks = [0, 1, 2, 3, 4, 5]
    choice = choose(as_pairs([(0, 1, 120), (1, 2, 110), (3, 4, 128)], ranks))  # 0 and 2 are like 1, not like each other
    names = ["b", "a", "e", "z", "y"]
    sources, ids = pa.array(["papers", "general", "papers", "books", "papers"]), pa.array(names)
    removals = removals_table(choice, sources, ids, 128).to_pylist()
    assert [(row["source"], row["id"], row["kept_source"], row["kept_id"]) for row in removals] == [
        ("general", "a", "papers", "b"), ("papers", "y", "books", "z"),
    ]  # fmt: skip
    assert [row["similarity"] for row in removals] == [0.9375, 1.0]
    clusters = clusters_table(choice, sources, ids)
    assert [tuple(row.values()) for row in clusters.to_pylist()] == [
        (0, "general", "a", False), (0, "papers", "b", True), (0, "papers", "e", True), (1, "books", "z", True), (1, "papers", "y", False),
    ]  # fmt: skip
    assert size_counts(clusters) == {"2": 1, "3-4": 1}
    sizes = pa.table({"cluster": pa.array(np.repeat(np.arange(6), [2, 3, 4, 5, 16, 17]), pa.int32())})
    assert size_counts(sizes) == {"2": 1, "3-4": 2, "5-8": 1, "9-16": 1, "17-32": 1}


def test_nothing_similar_gives_empty_tables() -> None:
    choice = choose(np.empty(0, PAIR))
    none = pa.array([], pa.string())
    assert removals_table(choice, none, none, 128).num_rows == 0 == clusters_table(choice, none, none).num_rows
    assert list(candidate_pairs(np.empty(0, RECORD))) == []
