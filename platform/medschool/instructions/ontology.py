"""Terms of an ontology, from an OBO file or from OBO Graphs JSON, in one form.

OBO is the text format of the OBO Foundry (OBO Flat File Format 1.4, owlcollab.github.io/oboformat); OBO Graphs is its JSON
(github.com/geneontology/obographs). Read are: names, definitions, exact synonyms, `is_a`, `relationship` and what is obsolete. A
relation is called as its own entry ([Typedef], or a node of type PROPERTY) calls it.

Memory: the file and its terms; of JSON also its values, some ten times the file. Price: 40,000 terms of OBO a second and core.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from medschool.corpus.books import Term, definition, stanzas, synonyms
from medschool.corpus.jsonlines import Malformed, strict
from medschool.errors import InputError


@dataclass(frozen=True)
class Node:
    """One term."""

    id: str
    """Such as `MONDO:0005148`; empty where the file gives none."""
    name: str
    place: str
    """Where it stands in the file, for messages."""
    meaning: str = ""
    obsolete: bool = False
    synonyms: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    """Ids of the terms that it is a kind of."""
    related: tuple[tuple[str, str], ...] = ()
    """(id of the relation, id of the other term) of its other relations."""


@dataclass
class Ontology:
    """What one file holds."""

    nodes: list[Node] = field(default_factory=list)
    relations: dict[str, str] = field(default_factory=dict)
    """Name of each relation that has an entry of its own, by id."""
    foreign: dict[str, str] = field(default_factory=dict)
    """Names of terms of other ontologies, by id, as the comments behind `!` give them."""

    def names(self) -> dict[str, str]:
        """Name of every term that is not obsolete, by id."""
        stated = {node.id: node.name for node in self.nodes if not node.obsolete}
        gone = {node.id for node in self.nodes if node.obsolete}
        return {**{key: name for key, name in self.foreign.items() if key not in gone}, **stated}


# ---- OBO ----------------------------------------------------------------------------------------------------------------------


def read_obo(data: bytes, uri: str) -> Ontology:
    """Raises as corpus.books.stanzas does."""
    found = Ontology()
    for stanza in stanzas(data, uri):
        if stanza.kind == "[Term]":
            found.nodes.append(_obo_node(stanza, found.foreign))
        elif stanza.kind == "[Typedef]":
            found.relations[stanza.first("id")] = stanza.first("name")
    return found


def _obo_node(term: Term, foreign: dict[str, str]) -> Node:
    name = term.first("name")
    formal, plain = synonyms(term, name)
    related = []
    for value in term.tags.get("relationship", []):
        head, _, comment = value.partition(" ! ")
        relation, _, rest = head.partition(" ")
        if other := rest.split()[:1]:
            related.append((relation, other[0]))
            if comment.strip():
                foreign[other[0]] = comment.strip()
    return Node(
        term.first("id"),
        name,
        f"[Term] at line {term.line}",
        definition(term),
        term.first("is_obsolete") == "true",
        tuple(dict.fromkeys((*formal, *plain))),
        tuple(value.split()[0] for value in term.tags.get("is_a", []) if value.strip()),
        tuple(related),
    )


# ---- OBO Graphs ---------------------------------------------------------------------------------------------------------------


def read_obographs(data: bytes, uri: str) -> Ontology:
    """Raises InputError when the file is not JSON, or no OBO Graphs with a node."""
    try:
        whole = strict(data.decode("utf-8"))
    except (Malformed, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read as JSON ({' '.join(str(error).split())[:200]})", "fetch the file again", uri) from error
    graphs = [_object(graph) for graph in _list(_object(whole).get("graphs"))]
    nodes = [_object(node) for graph in graphs for node in _list(graph.get("nodes"))]
    if not nodes:
        raise InputError("holds no node in `graphs`", "check the `format` of this file in the recipe", uri)
    found = Ontology()
    outgoing: dict[str, list[tuple[str, str]]] = {}
    for edge in (_object(edge) for graph in graphs for edge in _list(graph.get("edges"))):
        subject, relation, other = (_short(edge.get(key)) for key in ("sub", "pred", "obj"))
        outgoing.setdefault(subject, []).append((relation, other))
    for number, node in enumerate(nodes, start=1):
        if node.get("type") == "PROPERTY":
            found.relations[_short(node.get("id"))] = _words(node.get("lbl"))
        else:
            found.nodes.append(_json_node(node, number, outgoing))
    return found


def _json_node(node: Mapping[str, Any], number: int, outgoing: Mapping[str, list[tuple[str, str]]]) -> Node:
    node_id, name, meta = _short(node.get("id")), _words(node.get("lbl")), _object(node.get("meta"))
    edges = outgoing.get(node_id, [])
    return Node(
        node_id,
        name,
        f"node {number}",
        _words(_object(meta.get("definition")).get("val")),
        meta.get("deprecated") is True,
        tuple(dict.fromkeys(word for word in _exact(meta.get("synonyms")) if word.lower() != name.lower())),
        tuple(other for relation, other in edges if relation == "is_a"),
        tuple(edge for edge in edges if edge[0] != "is_a"),
    )


def _exact(values: Any) -> Iterator[str]:
    for value in map(_object, _list(values)):
        if value.get("pred") == "hasExactSynonym" and (word := _words(value.get("val"))):
            yield word


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _words(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


def _short(iri: Any) -> str:
    """`MONDO:0005148` of `http://purl.obolibrary.org/obo/MONDO_0005148`, `part_of` of `http://.../mondo#part_of`."""
    tail = _words(iri).rpartition("/")[2].rpartition("#")[2]
    prefix, _, number = tail.partition("_")
    return f"{prefix}:{number}" if prefix.isupper() and number else tail
