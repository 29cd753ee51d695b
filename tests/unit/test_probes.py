"""Probes of invented documents: whole sentences only, true endings, honest distractors, twins that nobody saw; and their scores."""

import dataclasses
import itertools
import random
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import GENERAL_WORDS, PAPER_WORDS, words, write_model

from medschool.corpus.books import hpo
from medschool.errors import InputError, StageError
from medschool.evaluate.probes import Piece, make_probes, score_probes, split_names, whole_sentences
from medschool.instructions.template import ChatTemplate
from medschool.rows import PROBE_SCHEMA, Draft, Probe, table
from medschool.train.model import load_model

CLOZE = "cloze/papers"


def sentence(draw: random.Random, count: int) -> str:
    return words(draw, PAPER_WORDS, count)


def document(number: int) -> str:
    """A title and two paragraphs of four sentences."""
    draw = random.Random(number)
    paragraphs = [" ".join(sentence(draw, draw.randint(8, 24)) for _ in range(4)) for _ in range(2)]
    return "\n\n".join([f"Trial {number}", *paragraphs])


def paper_pieces(trained: int = 40, heldout: int = 20, seeds: tuple[int, ...] = (0, 1)) -> list[Piece]:
    seen = [Piece("papers", f"p{number}", document(number), seed) for number in range(trained) for seed in seeds]
    return seen + [Piece("papers", f"h{number}", document(1000 + number), None) for number in range(heldout)]


# ---- sentences ----------------------------------------------------------------------------------------------------------------

SENTENCE = st.builds(lambda seed, count: sentence(random.Random(seed), count), st.integers(0, 999), st.integers(1, 6))
PARAGRAPHS = st.lists(st.lists(SENTENCE, min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=300, deadline=None)
@given(PARAGRAPHS, st.data())
def test_of_a_cut_document_exactly_the_sentences_with_text_around_them(paragraphs: list[list[str]], data: Any) -> None:
    text = "\n\n".join(" ".join(paragraph) for paragraph in paragraphs)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    expected, place = [], 0
    for paragraph in paragraphs:
        for at, words_ in enumerate(paragraph):
            stop = place + len(words_)
            opened = place >= start + 2  # both the end of what stands before and the space or break are in the piece
            if opened and stop + 2 <= end:
                before = paragraph[at - 1] if at and place - 1 - len(paragraph[at - 1]) >= start + 2 else ""
                expected.append((before, words_))
            place = stop + (1 if at + 1 < len(paragraph) else 2)
    found = list(whole_sentences(text[start:end]))
    # the rest of a cut word may look like an abbreviation, as `t.` of `cohort.`: then the sentence behind it is lost too
    shortened = [words_ for _, words_ in found] == [words_ for _, words_ in expected][1:]
    assert found == expected or (start > 0 and text[start - 1].isalpha() and shortened)


@pytest.mark.parametrize(
    "paragraph",
    [
        "Cells were grown as by Smith et al. Later they were counted.",
        "It was higher, cf. Table two and Fig. Three of the paper.",
        "Strains of C. Difficile were grown.",
        "The p value was 0.05 in all.",
    ],
)
def test_an_abbreviation_ends_no_sentence(paragraph: str) -> None:
    assert [found for _, found in whole_sentences(f"Title\n\n{paragraph}\n\nEnd")] == [paragraph]


def test_headings_items_verse_and_lists_of_names_are_no_sentences() -> None:
    text = "\n\n".join(
        [
            "Title",
            "## A heading. Of two.",
            "- An item. Of a list.",
            "* Another item.",
            "Lines of verse.\nThat go on.",
            "A cyst is a kind of Hole in the kidney.",
            "It is a hole. Also called Cave and Pit. In plain words: Gap.",
            "End",
        ]
    )
    assert [found for _, found in whole_sentences(text)] == ["It is a hole."]


# ---- making -------------------------------------------------------------------------------------------------------------------


def test_a_cloze_is_a_sentence_of_its_document_and_the_true_ending_its_last_words() -> None:
    texts = {piece.document: piece.text for piece in paper_pieces()}
    probes = make_probes(paper_pieces(), 30, 4, 7)
    assert {probe.kind for probe in probes} == {CLOZE}
    for probe in probes:
        ending = probe.candidates[probe.answer]
        assert f"{probe.prompt}{ending}" in texts[probe.document]
        assert ending.startswith(" ") and ending.endswith(".") and 2 <= len(ending.split()) <= 5
        whole = f"{probe.prompt}{ending}".split(". ")
        assert 10 <= len(whole[-1].split()) <= 40 and len(whole) <= 2
        assert len(probe.prompt.split()) <= 40
        assert whole[0][0].isupper()
    assert any(". " in probe.prompt for probe in probes), "some have the sentence before"
    assert table(probes, PROBE_SCHEMA).num_rows == len(probes)


def test_so_many_a_kind_and_seed_as_many_twins_one_a_document() -> None:
    probes = make_probes(paper_pieces(), 15, 4, 7)
    assert Counter(probe.seed for probe in probes) == {0: 15, 1: 15, None: 15}
    assert len({probe.id for probe in probes}) == len(probes)
    assert max(Counter((probe.seed, probe.document) for probe in probes).values()) == 1
    facts = {seed: {probe.prompt for probe in probes if probe.seed == seed} for seed in (0, 1)}
    assert facts[0] == facts[1], "the same text under two seeds gives the same facts"
    assert Counter(probe.seed for probe in make_probes(paper_pieces(trained=6), 15, 4, 7)) == {0: 6, 1: 6, None: 6}


def test_the_answer_stands_in_any_place() -> None:
    answers = Counter(probe.answer for probe in make_probes(paper_pieces(trained=80), 80, 4, 7))
    assert set(answers) == {0, 1, 2, 3}
    assert max(answers.values()) < sum(answers.values()) / 2


def test_distractors_come_from_the_same_side_and_other_documents() -> None:
    pieces = paper_pieces()
    for probe in make_probes(pieces, 30, 5, 7):
        assert len(set(probe.candidates)) == 5
        side = [piece for piece in pieces if piece.seed == probe.seed and piece.document != probe.document]
        for place, ending in enumerate(probe.candidates):
            assert place == probe.answer or any(ending in piece.text for piece in side)


def test_distractors_have_as_many_words_where_there_are_any() -> None:
    probes = make_probes(paper_pieces(trained=80, heldout=80), 60, 4, 7)
    assert all(len({len(ending.split()) for ending in probe.candidates}) == 1 for probe in probes)


@settings(max_examples=15, deadline=None)
@given(st.randoms())
def test_neither_order_nor_repetition_of_pieces_matters(draw: Any) -> None:
    whole = paper_pieces(trained=12, heldout=6)
    pieces = whole + [dataclasses.replace(piece, text=piece.text[:at]) for piece in whole for at in (400, 700)]
    mixed = pieces + pieces[:5]
    draw.shuffle(mixed)
    assert make_probes(iter(mixed), 5, 3, 7) == make_probes(pieces, 5, 3, 7)


def test_another_seed_draws_other_facts() -> None:
    drawn = [{probe.prompt for probe in make_probes(paper_pieces(), 5, 4, seed)} for seed in (7, 8)]
    assert drawn[0] != drawn[1]


def test_what_training_text_says_too_is_no_twin() -> None:
    pieces = paper_pieces()
    heldout = [piece for piece in pieces if piece.seed is None]
    said = [Piece("other", f"copy of {piece.document}", f"Again\n\n{piece.text}\n\nEnd", 0) for piece in heldout[:15]]
    probes = make_probes([*pieces, *said], 30, 4, 7)
    twins = {probe.document for probe in probes if probe.seed is None}
    assert twins == {piece.document for piece in heldout[15:]}


def test_a_kind_without_trained_facts_has_no_twins() -> None:
    foreign = [dataclasses.replace(piece, source="general") for piece in paper_pieces() if piece.seed is None]
    trained = [piece for piece in paper_pieces() if piece.seed is not None]
    assert {(probe.kind, probe.seed) for probe in make_probes([*trained, *foreign], 5, 4, 7)} == {(CLOZE, 0), (CLOZE, 1)}


def test_a_document_on_both_sides_is_refused() -> None:
    pieces = paper_pieces()
    with pytest.raises(StageError, match="h3"):
        make_probes([*pieces, Piece("papers", "h3", "Something else", 1)], 5, 4, 7)


@pytest.mark.parametrize("pieces", [[], [Piece("papers", "p", "Short. Text.", 0)], paper_pieces(trained=2, heldout=2)])
def test_nothing_to_ask_is_an_error(pieces: list[Piece]) -> None:
    with pytest.raises(StageError, match="no probe"):
        make_probes(pieces, 5, 4, 7)


# ---- the graph ----------------------------------------------------------------------------------------------------------------

TERMS = {
    "Body": (),
    "Organ": ("Body",),
    "Hand, left and right": ("Body",),
    "Kidney": ("Organ",),
    "Heart": ("Organ",),
    "Small kidney": ("Kidney", "Hand, left and right", "Heart"),
    "Big kidney": ("Kidney",),
    "Cold heart": ("Heart", "Hand, left and right"),
    "Lung": ("Organ",),
    "Big lung": ("Lung",),
    "Warm hand": ("Hand, left and right", "Organ"),
}


def ontology() -> dict[str, Draft]:
    """TERMS as the real reader writes them, by name."""
    ids = {name: f"HP:{number:07}" for number, name in enumerate(TERMS)}
    stanzas = [
        f'[Term]\nid: {ids[name]}\nname: {name}\ndef: "What it is." []\n'
        + "".join(f"is_a: {ids[parent]}\n" for parent in parents)
        for name, parents in TERMS.items()
    ]
    rows = hpo(BytesIO(("format-version: 1.2\n\n" + "\n".join(stanzas)).encode()), "hp.obo", "books")
    return {row.title: row for row in rows if isinstance(row, Draft)}


def true_ancestors(name: str) -> set[str]:
    return set(TERMS[name]).union(*(true_ancestors(parent) for parent in TERMS[name]))


@pytest.mark.parametrize("side", [0, None])
def test_a_graph_fact_asks_for_the_first_parent_and_never_offers_an_ancestor(side: int | None) -> None:
    documents = ontology()
    pieces = [Piece("books", document.id, document.text, 0) for document in documents.values()]
    if side is None:  # the same terms, held out, beside others that were trained on
        trained = [Piece("books", f"t{at}", f"T{at}\n\nT{at} is a kind of U{at}.", 0) for at in range(20)]
        pieces = [dataclasses.replace(piece, seed=None) for piece in pieces] + trained
    probes = [probe for probe in make_probes(pieces, 20, 2, 7) if probe.seed == side]
    names = {document.id: name for name, document in documents.items()}
    assert {names[probe.document] for probe in probes} == {name for name, parents in TERMS.items() if parents}
    for probe, ending in itertools.product(probes, (0, 1)):
        name, stated = names[probe.document], probe.candidates[ending].removeprefix(" ").removesuffix(".")
        assert (probe.kind, probe.prompt) == ("graph/books", f"{name} is a kind of")
        assert stated == TERMS[name][0] if ending == probe.answer else stated not in true_ancestors(name) | {name}


def test_endings_that_begin_alike_compete() -> None:
    kinds = [f"{colour} {size}" for colour in ("Red", "Blue") for size in ("one", "two", "three", "four")]
    pieces = [Piece("books", f"t{at}", f"T{at}\n\nT{at} is a kind of {kind}.", 0) for at, kind in enumerate(kinds)]
    for probe in make_probes(pieces, 20, 4, 7):
        assert len({ending.split()[0] for ending in probe.candidates}) == 1


def test_a_line_that_is_cut_or_not_of_the_pieces_own_term_is_no_fact() -> None:
    whole = [Piece("books", f"t{at}", f"T{at}\n\nIt is.\n\nT{at} is a kind of U{at}.", 0) for at in range(4)]
    cut = [
        Piece("books", "end", "Lung\n\nIt is.\n\nLung is a kind of Org", 0),
        Piece("books", "start", "ng\n\nIt is.\n\nLung is a kind of Organ.", 0),
        Piece("books", "middle", "It is.\n\nLung is a kind of Organ.", 0),
        Piece("general", "prose", "She said that\n\nCharity is a kind of Love.", 0),
    ]
    assert {probe.document for probe in make_probes([*whole, *cut], 20, 2, 7)} == {"t0", "t1", "t2", "t3"}


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("A", ["A"]),
        ("A and B", ["A", "B"]),
        ("A, B and C", ["A", "B", "C"]),
        ("A, x and B", ["A, x", "B"]),
        ("C and A and D", ["C", "A and D"]),
        ("A and unknown", []),
        ("unknown", []),
    ],
)
def test_the_longest_known_names(listed: str, names: list[str]) -> None:
    assert split_names(listed, {"A", "B", "C", "A, x", "A and D"}) == names


# ---- scores -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ChatTemplate]:
    folder: Path = tmp_path_factory.mktemp("tiny")
    write_model(folder)
    return load_model(folder, "fp32").eval(), ChatTemplate(folder)


def test_scores_are_those_of_the_plain_text(checkpoint: tuple[Any, ChatTemplate]) -> None:
    model, template = checkpoint
    draw = random.Random(5)
    probes = [
        Probe(f"id{at}", CLOZE, at or None, words(draw, GENERAL_WORDS, 9)[:-1], tuple(f" {words(draw, PAPER_WORDS, size)}" for size in (1, 2, 5)), at % 3, "d")
        for at in range(12)
    ]  # fmt: skip
    scored = score_probes(model, template.encode, probes)
    for probe, row in zip(probes, scored.to_pylist(), strict=True):
        found = []
        for ending in probe.candidates:
            before, ids = len(template.encode(probe.prompt)), template.encode(probe.prompt + ending)
            with torch.inference_mode():
                log_probs = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
            found.append((sum(float(log_probs[at - 1, ids[at]]) for at in range(before, len(ids))), len(ids) - before))
        per_char = [score / (len(ending) - 1) for (score, _), ending in zip(found, probe.candidates, strict=True)]
        assert row["chosen"] == per_char.index(max(per_char))
        assert row["correct"] == (row["chosen"] == probe.answer)
        assert row["log_prob"] == pytest.approx(found[probe.answer][0], abs=1e-4)
        assert row["tokens"] == found[probe.answer][1]
        assert (row["id"], row["kind"], row["seed"], row["answer"]) == (probe.id, CLOZE, probe.seed, probe.answer)
    assert len({row["chosen"] for row in scored.to_pylist()}) > 1


def test_a_tokenizer_that_drops_what_it_does_not_know_is_refused(checkpoint: tuple[Any, ChatTemplate]) -> None:
    probe = Probe("id", CLOZE, 0, "The rabbit", (" ran.", " went."), 0, "d")
    with pytest.raises(InputError, match="apart"):
        score_probes(checkpoint[0], lambda text: [1 for letter in text if letter == "T"], [probe])
