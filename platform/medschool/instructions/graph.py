"""The Human Phenotype Ontology becomes conversations: what a phenotype is, and how two phenotypes are related.

PMC-LLaMA asks the same two things of UMLS: an entity's description, and the relation between two entities. The file's own words
are the answer. A relation has a direction: the narrower phenotype is a kind of the wider one, in whichever order the question
names them, and the question's order is drawn by the seed so that it does not give the answer away.

The licence is `hpo` (hpo.jax.org/app/license): free to use, cite it, show its version, do not alter it.

Price: 1 s for the whole of the ontology, 40,000 conversations.
"""

from collections.abc import Iterator

from medschool.corpus.books import Term, definition, parents, sentence, terms
from medschool.rows import Conversation, Dropped, Message
from medschool.seed import seed_of

LICENCE = "hpo"

ENTITY = (
    "What is {name}?",
    "Describe this phenotype: {name}.",
    "How does the Human Phenotype Ontology define {name}?",
    "What do doctors mean by {name}?",
)
RELATION = (
    "What is the relation between {first} and {second}?",
    "How are these two phenotypes related: {first}; {second}?",
    "Which one is a kind of the other: {first}, or {second}?",
)


def hpo_graph(data: bytes, uri: str, name: str, seed: int) -> Iterator[Conversation | Dropped]:
    """One conversation a definition, `HP:0000003:entity`, and one a parent, `HP:0000003:relation:1`.

    Dropped: obsolete terms, terms without id or name, and what a term without a definition cannot be asked. Raises as
    corpus.books.hpo does.
    """
    found = list(terms(data, uri))
    names = {term.first("id"): term.first("name") for term in found if term.first("is_obsolete") != "true"}
    for term in found:
        term_id, phenotype = term.first("id"), term.first("name")
        place = term_id or f"{uri}#{term.line}"
        if not term_id or not phenotype:
            yield Dropped(place, name, "parse", f"[Term] at line {term.line} without id or name", phenotype, uri)
        elif term_id not in names:
            yield Dropped(place, name, "obsolete", "the term is obsolete", phenotype, uri)
        else:
            yield _entity(term, uri, name, seed)
            yield from _relations(term, names, uri, name, seed)


def _entity(term: Term, uri: str, name: str, seed: int) -> Conversation | Dropped:
    phenotype, meaning = term.first("name"), definition(term)
    key = f"{term.first('id')}:entity"
    if not meaning:
        return Dropped(key, name, "parse", "no definition", phenotype, uri)
    question = ENTITY[seed_of(seed, key) % len(ENTITY)].format(name=phenotype)
    return _conversation(key, question, sentence(meaning), uri, name)


def _relations(term: Term, names: dict[str, str], uri: str, name: str, seed: int) -> Iterator[Conversation]:
    narrow = term.first("name")
    for number, wide in enumerate(parents(term, names), start=1):
        key = f"{term.first('id')}:relation:{number}"
        first, second = (narrow, wide) if seed_of(seed, key, "order") % 2 else (wide, narrow)
        question = RELATION[seed_of(seed, key) % len(RELATION)].format(first=first, second=second)
        yield _conversation(key, question, f"{narrow} is a kind of {wide}.", uri, name)


def _conversation(key: str, user: str, assistant: str, uri: str, name: str) -> Conversation:
    messages = (Message("user", user), Message("assistant", assistant))
    return Conversation(key, name, "graph", messages, LICENCE, uri, document=":".join(key.split(":")[:2]))
