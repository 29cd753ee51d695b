"""Questions from open ontologies in OBO and OBO Graphs JSON. All texts here are invented."""

import json
from io import BytesIO
from typing import Any

import pytest

from medschool.errors import InputError
from medschool.instructions.formats import INSTRUCTION_FORMATS
from medschool.rows import Conversation, Dropped

OBO = """format-version: 1.4

[Term]
id: MONDO:0000001
name: disease

[Term]
id: MONDO:0000002
name: red rust
def: "Rust that is \\"red\\"." [x:1]
synonym: "iron red" EXACT []
synonym: "RR" EXACT [x:1]
synonym: "wide rust" BROAD []
synonym: "Red Rust" EXACT []
is_a: MONDO:0000001 ! disease
relationship: has_location UBERON:0000005 {source="x:1"} ! left hinge
relationship: RO:0000009 MONDO:0000003 ! wet rust
relationship: part_of MONDO:0000004 ! gone
relationship: part_of XX:1

[Term]
id: MONDO:0000003
name: wet rust

[Term]
id: MONDO:0000004
name: gone
is_obsolete: true

[Typedef]
id: RO:0000009
name: disease causes feature

[Instance]
id: x
"""
SHORT = "http://purl.obolibrary.org/obo/"


def node(number: int, label: str | None, **meta: Any) -> dict[str, Any]:
    return {"id": f"{SHORT}MONDO_{number:07}", "lbl": label, "type": "CLASS", "meta": meta}


def edge(subject: int, relation: str, other: str) -> dict[str, str]:
    return {"sub": f"{SHORT}MONDO_{subject:07}", "pred": relation, "obj": f"{SHORT}{other}"}


def graphs() -> dict[str, Any]:
    synonyms = [
        ("hasExactSynonym", "iron red"),
        ("hasExactSynonym", "RR"),
        ("hasBroadSynonym", "wide rust"),
        ("hasExactSynonym", "Red Rust"),
    ]
    nodes = [
        node(1, "disease"),
        node(
            2,
            "red rust",
            definition={"val": 'Rust that is "red".'},
            synonyms=[{"pred": pred, "val": val} for pred, val in synonyms],
        ),
        node(3, "wet rust"),
        node(4, "gone", deprecated=True),
        {"id": f"{SHORT}UBERON_0000005", "lbl": "left hinge", "type": "CLASS"},
        {"id": f"{SHORT}RO_0000009", "lbl": "disease causes feature", "type": "PROPERTY"},
    ]
    edges = [
        edge(2, "is_a", "MONDO_0000001"),
        edge(2, f"{SHORT}mondo#has_location", "UBERON_0000005"),
        edge(2, f"{SHORT}RO_0000009", "MONDO_0000003"),
        edge(2, f"{SHORT}BFO_0000050", "MONDO_0000004"),
    ]
    return {"graphs": [{"nodes": nodes, "edges": edges}]}


def make(name: str, data: str | bytes, seed: int = 7) -> list[Conversation | Dropped]:
    stream = BytesIO(data.encode() if isinstance(data, str) else data)
    return list(INSTRUCTION_FORMATS[name](stream, "raw/f", "set", seed))  # type: ignore[arg-type]


def answers(rows: list[Conversation | Dropped]) -> dict[str, str]:
    return {row.id: row.messages[1].content for row in rows if isinstance(row, Conversation)}


def drops(rows: list[Conversation | Dropped]) -> list[tuple[str, str, str]]:
    return [(row.id, row.step, row.reason) for row in rows if isinstance(row, Dropped)]


SAID = {
    "MONDO:0000002:entity": 'Rust that is "red".',
    "MONDO:0000002:relation:1": "red rust is a kind of disease.",
    "MONDO:0000002:has_location:UBERON:0000005": "red rust has location left hinge.",
    "MONDO:0000002:RO:0000009:MONDO:0000003": "red rust disease causes feature wet rust.",
    "MONDO:0000002:synonyms": "red rust is also called iron red and RR.",
}


def test_an_ontology_gives_what_it_states() -> None:
    rows = make("obo_graph", OBO)
    assert answers(rows) == SAID
    assert drops(rows) == [
        ("MONDO:0000001:entity", "parse", "no definition"),
        ("MONDO:0000002:part_of:MONDO:0000004", "no_name", "MONDO:0000004 is obsolete or has no name in this file"),
        ("MONDO:0000002:part_of:XX:1", "no_name", "XX:1 is obsolete or has no name in this file"),
        ("MONDO:0000003:entity", "parse", "no definition"),
        ("MONDO:0000004", "obsolete", "the term is obsolete"),
    ]
    assert {(row.kind, row.document) for row in rows if isinstance(row, Conversation)} == {("graph", "MONDO:0000002")}


def test_the_json_of_the_same_ontology_says_the_same() -> None:
    rows = make("obographs", json.dumps(graphs()))
    assert answers(rows) == SAID
    assert drops(rows) == [
        ("MONDO:0000001:entity", "parse", "no definition"),
        ("MONDO:0000002:BFO:0000050:MONDO:0000004", "no_name", "MONDO:0000004 is obsolete or has no name in this file"),
        ("MONDO:0000003:entity", "parse", "no definition"),
        ("MONDO:0000004", "obsolete", "the term is obsolete"),
        ("UBERON:0000005:entity", "parse", "no definition"),
    ]


def test_a_question_names_the_thing_it_asks_about() -> None:
    for seed in range(30):
        for row in make("obo_graph", OBO, seed):
            if isinstance(row, Conversation):
                assert "red rust" in row.messages[0].content and "{" not in row.messages[0].content
                assert "phenotype" not in row.messages[0].content


@pytest.mark.parametrize(
    ("prefix", "licence", "words"),
    [
        ("HP", "hpo", {"Human Phenotype Ontology", "phenotype"}),
        ("MONDO", "cc-by", {"Mondo Disease Ontology", "disease:"}),
        ("DOID", "cc0", {"Human Disease Ontology", "disease:"}),
        ("GO", "unstated", {"ontology GO", "term:"}),
    ],
)
def test_licence_and_words_go_by_the_prefix(prefix: str, licence: str, words: set[str]) -> None:
    text = f'format-version: 1.2\n[Term]\nid: {prefix}:0000002\nname: rust\ndef: "Red." []\n'
    rows = [row for seed in range(30) for row in make("obo_graph", text, seed) if isinstance(row, Conversation)]
    assert {row.licence for row in rows} == {licence}
    assert all(any(word in row.messages[0].content for row in rows) for word in words)


def test_hpo_is_asked_for_meanings_and_parents_only() -> None:
    known = {key: text for key, text in SAID.items() if key.split(":")[2] in ("entity", "relation")}
    assert answers(make("hpo_graph", OBO)) == known


@pytest.mark.parametrize("name", ["obo_graph", "obographs"])
def test_the_seed_changes_words_and_orders_but_no_ids(name: str) -> None:
    data = OBO if name == "obo_graph" else json.dumps(graphs())
    first = make(name, data, 1)
    assert make(name, data, 1) == first and len({row.id for row in first}) == len(first)
    others = [make(name, data, seed) for seed in range(2, 8)]
    assert all([row.id for row in other] == [row.id for row in first] for other in others)
    assert any(other != first for other in others)


def test_nodes_of_another_shape_are_dropped_with_their_place() -> None:
    broken = graphs()
    broken["graphs"][0]["nodes"] += [
        node(9, None),
        {"lbl": 3, "meta": 4},
        node(10, "rot", definition="x", synonyms=[3, {"pred": 1}]),
    ]
    rows = make("obographs", json.dumps(broken))
    assert drops(rows)[-3:] == [
        ("MONDO:0000009", "parse", "node 7 without id or name"),
        ("raw/f#8", "parse", "node 8 without id or name"),
        ("MONDO:0000010:entity", "parse", "no definition"),
    ]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "cannot be read as JSON"),
        (b"<html>", "cannot be read as JSON"),
        (b'{"graphs": [{"nodes": [{"id": "x"', "cannot be read as JSON"),
        (b'{"graphs": [{"nodes": [{"id": "\xff"}]}]}', "cannot be read as JSON"),
        (b"[1, 2]", "holds no node"),
        (b'{"graphs": NaN}', "cannot be read as JSON"),
        (b'{"graphs": [{"nodes": []}]}', "holds no node"),
        (b'{"graphs": 3}', "holds no node"),
    ],
)
def test_json_that_is_no_ontology_is_an_error(data: bytes, problem: str) -> None:
    with pytest.raises(InputError, match=f"raw/f.*{problem}"):
        make("obographs", data)


def test_a_broken_line_in_any_stanza_is_an_error_with_its_line() -> None:
    with pytest.raises(InputError, match=r"raw/f:36"):
        make("obo_graph", OBO + "cut sho\n")
