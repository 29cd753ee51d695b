"""Open ontologies become conversations: what a term is, how it relates to others, and what else it is called.

PMC-LLaMA asks the first two of UMLS, which not everybody may use: an entity's description, and the relation between two entities.
These are asked of ontologies that anybody can have: diseases (MONDO, DOID), phenotypes (HPO), or any other in OBO or OBO Graphs
JSON. The file's own words are the answer. A relation has a direction: the narrower term is a kind of the wider one, in whichever
order the question names them, and the question's order is drawn by the seed so that it does not give the answer away.

    <term>:entity                       its definition
    <term>:relation:<number>            each parent (`is_a`) but the one that all terms of HPO share
    <term>:<relation>:<other term>      every other relation (`relationship`), named as the file names it
    <term>:synonyms                     its exact synonyms

`hpo_graph` asks the first two only, in the same words, so that what was made with it stays what it was.

The licence goes by the prefix of the term: HP `hpo` (hpo.jax.org/app/license: free to use, cite it, show its version, do not
alter it), MONDO `cc-by` (CC BY 4.0, mondo.monarchinitiative.org), DOID `cc0` (CC0 1.0, disease-ontology.org), others `unstated`.

Price: 1 s for the whole of HPO, 40,000 conversations.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from medschool.corpus.books import listed, sentence
from medschool.instructions.ontology import Node, Ontology, read_obo, read_obographs
from medschool.instructions.relation import asked_openly, phrase
from medschool.rows import Conversation, Dropped, Message
from medschool.seed import seed_of

ENTITY = (
    "What is {name}?",
    "Describe this {noun}: {name}.",
    "How does the {ontology} define {name}?",
    "What do doctors mean by {name}?",
)
RELATION = (
    "What is the relation between {first} and {second}?",
    "How are these two {noun}s related: {first}; {second}?",
    "Which one is a kind of the other: {first}, or {second}?",
)
SYNONYMS = (
    "What else is {name} called?",
    "Give other names of {name}.",
    "By which other names is this {noun} known: {name}?",
)
_ROOT = "All"


@dataclass(frozen=True)
class _About:
    ontology: str
    noun: str
    licence: str


_KNOWN = {
    "HP": _About("Human Phenotype Ontology", "phenotype", "hpo"),
    "MONDO": _About("Mondo Disease Ontology", "disease", "cc-by"),
    "DOID": _About("Human Disease Ontology", "disease", "cc0"),
}


@dataclass(frozen=True)
class _Set:
    """A file that is asked about."""

    found: Ontology
    names: dict[str, str]
    uri: str
    name: str
    seed: int

    def drawn(self, phrases: tuple[str, ...], key: str, **words: str) -> str:
        about = _about(key)
        return phrases[seed_of(self.seed, key) % len(phrases)].format(noun=about.noun, ontology=about.ontology, **words)

    def conversation(self, key: str, user: str, assistant: str) -> Conversation:
        messages = (Message("user", user), Message("assistant", assistant))
        term = ":".join(key.split(":")[:2])
        return Conversation(key, self.name, "graph", messages, _about(key).licence, self.uri, document=term)


Asker = Callable[[Node, _Set], Iterator[Conversation | Dropped]]


def _about(key: str) -> _About:
    prefix = key.partition(":")[0]
    return _KNOWN.get(prefix, _About(f"ontology {prefix}", "term", "unstated"))


def _graph(
    data: bytes, uri: str, name: str, seed: int, read: Callable[[bytes, str], Ontology], askers: tuple[Asker, ...]
) -> Iterator[Conversation | Dropped]:
    """The conversations about every term, in the order of the file.

    Dropped: obsolete terms, terms without id or name, what a term without a definition cannot be asked, and relations to a term
    that is obsolete or has no name. Raises as `read` does.
    """
    found = read(data, uri)
    asked = _Set(found, found.names(), uri, name, seed)
    for node in found.nodes:
        place = node.id or f"{uri}#{node.place.split()[-1]}"
        if not node.id or not node.name:
            yield Dropped(place, name, "parse", f"{node.place} without id or name", node.name, uri)
        elif node.obsolete:
            yield Dropped(place, name, "obsolete", "the term is obsolete", node.name, uri)
        else:
            for asker in askers:
                yield from asker(node, asked)


def _entity(node: Node, asked: _Set) -> Iterator[Conversation | Dropped]:
    key = f"{node.id}:entity"
    if node.meaning:
        yield asked.conversation(key, asked.drawn(ENTITY, key, name=node.name), sentence(node.meaning))
    else:
        yield Dropped(key, asked.name, "parse", "no definition", node.name, asked.uri)


def _parents(node: Node, asked: _Set) -> Iterator[Conversation]:
    wider = [asked.names[parent] for parent in node.parents if asked.names.get(parent, _ROOT) != _ROOT]
    for number, wide in enumerate(wider, start=1):
        key = f"{node.id}:relation:{number}"
        first, second = (node.name, wide) if seed_of(asked.seed, key, "order") % 2 else (wide, node.name)
        question = asked.drawn(RELATION, key, first=first, second=second)
        yield asked.conversation(key, question, f"{node.name} is a kind of {wide}.")


def _related(node: Node, asked: _Set) -> Iterator[Conversation | Dropped]:
    for relation, other in dict.fromkeys(node.related):
        key = f"{node.id}:{relation}:{other}"
        if name := asked.names.get(other):
            words = phrase(asked.found.relations.get(relation) or relation)
            user, assistant = asked_openly(node.name, words, name, asked.seed, key)
            yield asked.conversation(key, user.content, assistant.content)
        else:
            reason = f"{other} is obsolete or has no name in this file"
            yield Dropped(key, asked.name, "no_name", reason, node.name, asked.uri)


def _synonyms(node: Node, asked: _Set) -> Iterator[Conversation]:
    if node.synonyms:
        key = f"{node.id}:synonyms"
        answer = f"{node.name} is also called {listed(list(node.synonyms))}."
        yield asked.conversation(key, asked.drawn(SYNONYMS, key, name=node.name), answer)


hpo_graph = partial(_graph, read=read_obo, askers=(_entity, _parents))
"""HPO in OBO: what a phenotype is, and what it is a kind of."""
obo_graph = partial(_graph, read=read_obo, askers=(_entity, _parents, _related, _synonyms))
"""Any ontology in OBO."""
obographs = partial(_graph, read=read_obographs, askers=(_entity, _parents, _related, _synonyms))
"""Any ontology in OBO Graphs JSON."""
