"""What pretraining put in: facts that were in a training batch, and twins of the same kind that no variant saw.

    pieces of documents --make_probes--> probes --score_probes--> probabilities of the true ending, share of right choices

Two kinds of fact. `cloze/<source>` is a sentence without its last two to five words, behind the sentence before it where there is
room; any prose has them. `graph/<source>` is a line "<name> is a kind of <parent>.", which the reader of the ontology writes as
the last paragraph of a term (medschool.corpus.books); the term's name must be the first line of the piece.

Distractors are endings of other facts of the same group: kind, and training seed or held out. So all endings of a trained fact
were trained on and none of a twin's, and a model gains nothing by only recognising words it was trained on.

Which facts are taken is a pure function of the set of pieces and the recipe's seed: facts are ranked by a hash, never by order.
Probes are plain text without the chat template. Price of making: 0.3 s for 1,000 documents, and one search of the training text
for each twin that is tried.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from medschool.errors import StageError
from medschool.evaluate.choices import choice_log_probs, tokenized
from medschool.evaluate.exams import best
from medschool.rows import Probe
from medschool.seed import seed_of

SENTENCE_WORDS = (10, 40)
"""Fewest and most words of a sentence that becomes a cloze."""
ENDING_WORDS = (2, 5)
"""Fewest and most words of a cloze's ending."""
PROMPT_WORDS = 40
"""With more words than this in the prompt, the sentence before is left out."""

PROBE_SCORES_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("seed", pa.int64()),
        ("answer", pa.int32()),
        ("chosen", pa.int32()),
        ("correct", pa.bool_()),
        ("log_prob", pa.float64()),
        ("tokens", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Piece:
    """A piece of a document as text without control tokens; it may begin and end anywhere, also inside a word."""

    source: str
    document: str
    text: str
    seed: int | None
    """Training seed under which the piece was in a batch; None for text that was held out."""


@dataclass(frozen=True)
class _Fact:
    """One thing that a piece states: its text holds `prompt` and then `ending`."""

    kind: str
    seed: int | None
    document: str
    prompt: str
    ending: str
    stem: str
    """The prompt without the sentence before. Text that holds it gives the fact away."""
    true_too: frozenset[str] = frozenset()
    """Other endings that are no distractors."""


_Rank = Callable[[_Fact], tuple[int, str]]

# ---- probes from pieces -------------------------------------------------------------------------------------------------------


def make_probes(pieces: Iterable[Piece], count: int, candidates: int, seed: int) -> list[Probe]:
    """At most `count` facts of each kind and training seed, as many twins of each kind, each with `candidates` endings; by id.

    A document gives at most one fact to each kind and training seed. A group with fewer different endings than `candidates`
    gives none. The order of `pieces` and repeated pieces do not matter.

    Raises StageError when a document was trained on and held out, or when no probe can be made at all.
    """
    pieces = list(dict.fromkeys(pieces))
    _check_apart(pieces)
    trained_texts = {piece.text for piece in pieces if piece.seed is not None}

    def rank(fact: _Fact) -> tuple[int, str]:
        return seed_of(seed, "probe", fact.kind, fact.document, fact.stem), fact.prompt

    groups = _grouped([*_clozes(pieces, seed), *_graph_facts(pieces)], rank)
    probes = []
    for kind in sorted({kind for kind, _ in groups}):
        trained = {key: facts for key, facts in groups.items() if key[0] == kind and key[1] is not None}
        made = [_probes(facts, facts, count, candidates, seed) for facts in trained.values()]
        twins = groups.get((kind, None), [])
        unseen = (fact for fact in twins if not any(fact.stem in text for text in trained_texts))
        made.append(_probes(unseen, twins, max(map(len, made), default=0), candidates, seed))
        probes += [probe for group in made for probe in group]
    if not probes:
        problem = f"no probe can be made from {len(pieces)} pieces: too few whole sentences of {_span(SENTENCE_WORDS)} words"
        raise StageError(problem, "leave out `probes`, or train on documents of prose", "probes")
    return sorted(probes, key=lambda probe: probe.id)


def _check_apart(pieces: Sequence[Piece]) -> None:
    trained = {(piece.source, piece.document) for piece in pieces if piece.seed is not None}
    both = sorted(trained & {(piece.source, piece.document) for piece in pieces if piece.seed is None})
    if both:
        source, document = both[0]
        raise StageError(
            f"{len(both)} documents were trained on and held out, {document} first",
            "make the tokens of this source again: a held-out document must not reach training",
            source,
        )


def _grouped(facts: Iterable[_Fact], rank: _Rank) -> dict[tuple[str, int | None], list[_Fact]]:
    """Facts by (kind, training seed), in order of rank, the first one of each document."""
    first: dict[tuple[str, int | None, str], _Fact] = {}
    for fact in sorted(facts, key=rank, reverse=True):
        first[fact.kind, fact.seed, fact.document] = fact
    groups = defaultdict(list)
    for fact in sorted(first.values(), key=rank):
        groups[fact.kind, fact.seed].append(fact)
    return groups


def _probes(facts: Iterable[_Fact], group: list[_Fact], count: int, candidates: int, seed: int) -> list[Probe]:
    """Probes from the first `count` facts for which `group` has enough distractors."""
    probes: list[Probe] = []
    for fact in facts:
        if len(probes) == count:
            break
        endings = [fact.ending, *_distractors(fact, group, candidates - 1, seed)]
        if len(endings) == candidates:
            probes.append(_probe(fact, endings, seed))
    return probes


def _distractors(fact: _Fact, group: list[_Fact], count: int, seed: int) -> list[str]:
    """At most `count` different endings of the other facts, those first that grammar alone does not rule out.

    That is: the closest in number of words, of these the ones that begin with the same word, of these by a hash.
    """
    own = fact.ending.split()
    found = {other.ending for other in group} - fact.true_too - {fact.ending}

    def order(ending: str) -> tuple[int, bool, int]:
        words = ending.split()
        return abs(len(words) - len(own)), words[0] != own[0], seed_of(seed, fact.kind, fact.document, ending)

    return sorted(found, key=order)[:count]


def _probe(fact: _Fact, endings: list[str], seed: int) -> Probe:
    mixed = sorted(endings, key=lambda ending: seed_of(seed, "order", fact.document, ending))
    name = f"{fact.kind}:{'heldout' if fact.seed is None else fact.seed}:{fact.document}"
    return Probe(name, fact.kind, fact.seed, fact.prompt, tuple(mixed), mixed.index(fact.ending), fact.document)


def _span(limits: tuple[int, int]) -> str:
    return f"{limits[0]} to {limits[1]}"


# ---- sentences ----------------------------------------------------------------------------------------------------------------

_BOUNDARY = re.compile(r"[.!?][)\]\"]? (?=[\"(\[]?[A-Z])")
_ABBREVIATION = re.compile(r"\b(?:[a-z]|al|approx|ca|cf|dr|eq|etc|figs?|mrs?|nos?|prof|refs?|spp?|st|var|viz|vol|vs)\.$", re.I)
_NO_PROSE = re.compile(r"#|[-*•] |.* is a kind of ")
_NO_SENTENCE = re.compile(r"Also called |In plain words: ")


def whole_sentences(text: str) -> Iterator[tuple[str, str]]:
    """(sentence before it in the paragraph or "", sentence) of those sentences of a piece that are whole for certain.

    What stands first or last in a piece may be cut off, so it is never given out, nor is it a sentence before. Headings, list
    items, paragraphs of several lines (verse, tables), an ontology's graph and its synonyms are no sentences.
    """
    paragraphs = text.split("\n\n")
    for number, paragraph in enumerate(paragraphs):
        parts = _split_sentences(paragraph)
        first, last = (1 if number == 0 else 0), len(parts) - (1 if number == len(paragraphs) - 1 else 0)
        if "\n" in paragraph.strip("\n") or _NO_PROSE.match(paragraph):
            continue
        for place in range(first, last):
            if not _NO_SENTENCE.match(parts[place]):
                yield (parts[place - 1] if place > first else ""), parts[place]


def _split_sentences(paragraph: str) -> list[str]:
    """Parts that joined by one space give the paragraph; a capital after a full stop begins one, but not after `et al.`."""
    ends = [mark.end() for mark in _BOUNDARY.finditer(paragraph) if not _ABBREVIATION.search(paragraph, 0, mark.start() + 1)]
    return [paragraph[start:end].rstrip(" ") for start, end in zip([0, *ends], [*ends, len(paragraph)], strict=True)]


def _clozes(pieces: Iterable[Piece], seed: int) -> Iterator[_Fact]:
    fewest, most = SENTENCE_WORDS
    for piece in pieces:
        for before, sentence in whole_sentences(piece.text):
            words = sentence.split(" ")
            if not fewest <= len(words) <= most or not sentence.endswith("."):
                continue
            low, high = ENDING_WORDS
            cut = len(words) - low - seed_of(seed, "ending", piece.document, sentence) % (high - low + 1)
            stem, ending = " ".join(words[:cut]), "".join(f" {word}" for word in words[cut:])
            roomy = before and len(before.split(" ")) + cut <= PROMPT_WORDS
            prompt = f"{before} {stem}" if roomy else stem
            yield _Fact(f"cloze/{piece.source}", piece.seed, piece.document, prompt, ending, stem)


# ---- the graph of an ontology -------------------------------------------------------------------------------------------------

_SEPARATOR = re.compile(r", | and ")


def _graph_facts(pieces: Iterable[Piece]) -> Iterator[_Fact]:
    """`<name> is a kind of` with ` <first parent>.`; a name's ancestors, as far as the pieces tell them, are no distractors."""
    stated = [(piece, *line) for piece in pieces if (line := _graph_line(piece.text))]
    known = {name for _, name, _ in stated} | {listed for _, _, listed in stated if not _SEPARATOR.search(listed)}
    parents = {name: split_names(listed, known) for _, name, listed in stated}
    for piece, name, _ in stated:
        if parents[name]:
            prompt = f"{name} is a kind of"
            true_too = frozenset(f" {ancestor}." for ancestor in {name} | _ancestors(name, parents))
            ending = f" {parents[name][0]}."
            yield _Fact(f"graph/{piece.source}", piece.seed, piece.document, prompt, ending, prompt, true_too)


def _graph_line(text: str) -> tuple[str, str] | None:
    """(name, listed parents) of a piece that begins with a name and has a whole line `<name> is a kind of <parents>.`"""
    name = text.partition("\n")[0]
    found = re.search(rf"\n{re.escape(name)} is a kind of ([^\n]+)\.(?:\n|\Z)", text) if name else None
    return (name, found[1]) if found else None


def split_names(listed: str, known: set[str]) -> list[str]:
    """The names in `A, B and C`, each time the longest known one (names hold commas too); empty when a part is not known."""
    names = []
    while listed:
        ends = [len(listed), *(mark.start() for mark in _SEPARATOR.finditer(listed))]
        end = max((end for end in ends if listed[:end] in known), default=0)
        if not end:
            return []
        names.append(listed[:end])
        listed = _SEPARATOR.sub("", listed[end:], count=1)
    return names


def _ancestors(name: str, parents: dict[str, list[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = set(parents.get(waiting.pop(), ())) - found
        found |= new
        waiting += new
    return found


# ---- scores -------------------------------------------------------------------------------------------------------------------


def score_probes(model: Any, encode: Callable[[str], Sequence[int]], probes: Sequence[Probe]) -> pa.Table:
    """One row a probe, in the order of `probes`: PROBE_SCORES_SCHEMA.

    chosen: the ending with the highest log-probability per character, without its leading space, so that long endings are not
    at a disadvantage (the convention `acc_norm` of EleutherAI's lm-evaluation-harness; a character, unlike a token, is the same
    for every tokenizer). log_prob, tokens: of the true ending, in nats, not divided.

    encode: text to token ids without special tokens. Raises InputError when it does not tell two endings apart.
    """
    choices = [tokenized(encode, probe.prompt, probe.candidates) for probe in probes]
    rows = []
    for probe, choice, found in zip(probes, choices, choice_log_probs(model, choices), strict=True):
        shares = [score / len(ending.strip()) for score, ending in zip(found, probe.candidates, strict=True)]
        chosen = best(probe.id, shares)
        rows.append(
            {
                "id": probe.id,
                "kind": probe.kind,
                "seed": probe.seed,
                "answer": probe.answer,
                "chosen": chosen,
                "correct": chosen == probe.answer,
                "log_prob": found[probe.answer],
                "tokens": len(choice.endings[probe.answer]),
            }
        )
    return pa.Table.from_pylist(rows, PROBE_SCORES_SCHEMA)
