"""The UMLS Metathesaurus becomes conversations: what a concept is, and how two concepts are related.

PMC-LLaMA asks these two things of UMLS: an entity's description, and the relation between two entities (section 3.2, "medical
knowledge graph prompting"). Which concepts and relations it took is not published; here they are balanced.

The four files of a release stand in one folder, and the set names them all, or the folder. Each is one task, as any raw file:

    MRDEF     one conversation a concept that it defines, `umls:C0000039:entity`
    MRREL     one conversation a relation that has a name (RELA), `umls:C0000039:may_treat:C0000041`
    MRCONSO   names of the concepts, MRSTY their types: no conversations; their malformed rows and their counts are told here

MRDEF and MRREL open MRCONSO and MRSTY beside them, so each may be named alone; but then a change of the others is not noticed.

Direction: a relation is what CUI2 is to CUI1 (UMLS Reference Manual, chapter 3.3.9): `C1|...|RO|C2|...|may_treat` says that C2
may treat C1. So the answer is `<C2> may treat <C1>.` One in CHOICE_EVERY is asked as a choice of four; its wrong options are
relations that the file does not state of the two.

Balance: at most PER_PAIR relations of one name between two semantic groups, at most PER_RELATION of one name, and at most
PER_GROUP descriptions of one group, all drawn by the seed. What was left out is told by number, as LeftOut: it is no fault.

The licence is `umls`: free of charge, but each user signs it (uts.nlm.nih.gov), and many vocabularies have terms of their own.

Price: 370,000 names or types a second and core, 55,000 relations, so a quarter of an hour for the 45 million of a full release.
Memory: that of instructions.concepts, and 600 bytes a relation within PER_PAIR.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from sys import intern
from typing import BinaryIO, TypeAlias

from medschool import storage
from medschool.corpus.books import sentence
from medschool.instructions.balance import Balanced
from medschool.instructions.concepts import Concepts
from medschool.instructions.relation import OPTIONS, asked_as_choice, asked_openly, distractors, phrase
from medschool.instructions.rrf import beside, columns, rows, table_of
from medschool.rows import Conversation, Dropped, LeftOut, Message
from medschool.seed import seed_of

LICENCE = "umls"
PER_GROUP = 10_000
PER_PAIR = 100
PER_RELATION = 500
CHOICE_EVERY = 4
ENTITY = (
    "What is {name}?",
    "Describe this medical concept: {name}.",
    "How is {name} defined in medicine?",
    "What do doctors mean by {name}?",
)
WHY = {
    "name": "names of concepts: read beside MRDEF and MRREL, nothing is asked about them",
    "type": "semantic types of concepts: read beside MRDEF and MRREL, nothing is asked about them",
    "unknown_type": "semantic types that are in none of the 15 groups",
    "suppressed": "SUPPRESS is not N",
    "not_english": "LAT is not ENG, or the vocabulary has no English names",
    "no_name": "a concept has no English name that is not suppressed",
    "no_relation_name": "RELA is empty",
    "same_concept": "the relation is between two names of one concept",
    "same_name": "two concepts have the same name, so a question would not tell them apart",
    "repeated": "the same relation from another vocabulary, or another definition of the concept",
    "balance": f"over {PER_GROUP} descriptions a group, {PER_PAIR} relations a name and pair of groups, or {PER_RELATION} a name",
}
_RELATION = columns("MRREL", "CUI2", "RELA", "CUI1", "SUPPRESS")
_DEFINITION = columns("MRDEF", "CUI", "SAB", "DEF", "SUPPRESS")
Rows: TypeAlias = Iterator[Conversation | Dropped | LeftOut]
Stated: TypeAlias = tuple[str, str, str]
"""(subject, relation, object), as in C0000039 may_treat C0000041."""


def umls(stream: BinaryIO, uri: str, name: str, seed: int) -> Rows:
    """What one file of a release gives, as said above; `stream.name` is where the file is.

    Dropped: malformed rows. LeftOut: every other row of which no conversation is made, by number. Raises InputError when the file
    has another name or is empty, and when MRCONSO or MRSTY is not beside it.
    """
    return _MAKERS[table_of(uri)](_File(stream, uri, name, seed))


@dataclass(frozen=True)
class _File:
    stream: BinaryIO
    uri: str
    name: str
    """Of the set."""
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    """Rows by what became of them."""

    def put(self, put: Callable[[list[str]], str]) -> Iterator[Dropped]:
        """Give every good row to `put` and count what it says; yield the others."""
        for row in rows(self.stream, self.uri, self.name):
            if isinstance(row, Dropped):
                yield row
            else:
                self.counts[put(row)] += 1

    def left_out(self) -> Iterator[LeftOut]:
        for step in sorted(self.counts):
            if self.counts[step]:
                yield LeftOut(self.name, step, self.counts[step], WHY[step], self.uri)

    def conversation(self, key: str, messages: tuple[Message, ...]) -> Conversation:
        return Conversation(key, self.name, "graph", messages, LICENCE, self.uri)


def _names(file: _File) -> Rows:
    yield from file.put(Concepts().put_atom)
    yield from file.left_out()


def _types(file: _File) -> Rows:
    yield from file.put(Concepts().put_type)
    yield from file.left_out()


def _concepts(file: _File) -> Concepts:
    """Names and groups from the files beside this one; what is malformed in them is told where they are read for themselves."""
    concepts = Concepts()
    for table, put in (("MRCONSO", concepts.put_atom), ("MRSTY", concepts.put_type)):
        stream, uri = beside(file.stream, file.uri, table)
        with stream:
            for _ in _File(stream, uri, file.name, file.seed).put(put):
                pass
    return concepts


# ---- what a concept is --------------------------------------------------------------------------------------------------------


def _entities(file: _File) -> Rows:
    concepts, order = _concepts(file), count()
    chosen = Balanced[tuple[int, str, str]](PER_GROUP)

    def put(row: list[str]) -> str:
        cui, vocabulary, meaning, suppressed = _DEFINITION(row)
        for refused, step in (
            (suppressed != "N", "suppressed"),
            (not concepts.is_english(vocabulary), "not_english"),
            (not concepts.has_name(cui), "no_name"),
        ):
            if refused:
                return step
        item = (next(order), cui, meaning)
        return "balance" if chosen.put(concepts.group(cui), seed_of(file.seed, cui), item) else "repeated"

    yield from file.put(put)
    for _, cui, meaning in sorted(item for _, item in chosen.items()):
        file.counts["balance"] -= 1
        key = f"umls:{cui}:entity"
        question = ENTITY[seed_of(file.seed, key) % len(ENTITY)].format(name=concepts.name(cui))
        answer = sentence(" ".join(meaning.split()))
        yield file.conversation(key, (Message("user", question), Message("assistant", answer)))
    yield from file.left_out()


# ---- how two concepts are related ---------------------------------------------------------------------------------------------


def _relations(file: _File) -> Rows:
    concepts, order = _concepts(file), count()
    chosen = Balanced[tuple[int, Stated]](PER_PAIR)

    def put(row: list[str]) -> str:
        subject, relation, object_, suppressed = _RELATION(row)
        for refused, step in (
            (suppressed != "N", "suppressed"),
            (not relation, "no_relation_name"),
            (subject == object_, "same_concept"),
            (not (concepts.has_name(subject) and concepts.has_name(object_)), "no_name"),
        ):
            if refused:
                return step
        kind = (relation, concepts.group(subject), concepts.group(object_))
        item = (next(order), (subject, intern(relation), object_))
        return "balance" if chosen.put(kind, seed_of(file.seed, subject, relation, object_), item) else "repeated"

    yield from file.put(put)
    kept = _per_relation(chosen)
    true, known = _true(kept, file), sorted({phrase(relation) for _, relation, _ in kept})
    for stated in kept:
        names = [concepts.name(cui) for cui in stated[::2]]
        file.counts["balance"] -= 1
        if names[0].casefold() == names[1].casefold():
            file.counts["same_name"] += 1
        else:
            yield _asked(stated, names, true, known, file)
    yield from file.left_out()


def _per_relation(chosen: Balanced[tuple[int, Stated]]) -> list[Stated]:
    """Those within PER_RELATION, in the order of the file."""
    capped = Balanced[tuple[int, Stated]](PER_RELATION)
    for rank, item in chosen.items():
        capped.put(item[1][1], rank, item)
    return [stated for _, stated in sorted(item for _, item in capped.items())]


def _key(stated: Stated) -> str:
    return f"umls:{':'.join(stated)}"


def _is_choice(stated: Stated, seed: int) -> bool:
    return seed_of(seed, _key(stated), "form") % CHOICE_EVERY == 0


def _true(kept: list[Stated], file: _File) -> dict[tuple[str, ...], set[str]]:
    """Of each two concepts that are asked about as a choice: all that the file states of them, suppressed or not, in words."""
    found: dict[tuple[str, ...], set[str]] = {stated[::2]: set() for stated in kept if _is_choice(stated, file.seed)}
    with storage.open_raw(file.stream.name, file.uri) as again:
        for row in rows(again, file.uri, file.name):
            if not isinstance(row, Dropped):
                subject, relation, object_, _ = _RELATION(row)
                if relation and (pair := found.get((subject, object_))) is not None:
                    pair.add(phrase(relation))
    return found


def _asked(
    stated: Stated, names: list[str], true: dict[tuple[str, ...], set[str]], known: list[str], file: _File
) -> Conversation:
    """One relation, as a choice where that was drawn and there are enough wrong options, else openly."""
    key, words = _key(stated), (names[0], phrase(stated[1]), names[1])
    wrong = distractors(known, true[stated[::2]], file.seed, key) if _is_choice(stated, file.seed) else []
    if len(wrong) < OPTIONS - 1:
        return file.conversation(key, asked_openly(*words, file.seed, key))
    return file.conversation(key, asked_as_choice(*words, wrong, file.seed, key))


_MAKERS = {"MRCONSO": _names, "MRSTY": _types, "MRDEF": _entities, "MRREL": _relations}
