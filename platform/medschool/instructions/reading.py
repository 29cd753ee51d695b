"""Reading comprehension from raw text: questions whose answers stand in a passage of the corpus, found by patterns.

    document --passages--> passage --patterns--> what could be asked --two of each kind, drawn by the seed--> conversations

The idea is AdaptLLM's (Cheng et al. 2023, arXiv 2309.09530, section 3): training on raw text alone gives knowledge and costs the
ability to answer; questions mined from the same text by regular expressions keep it. The kinds of questions are the paper's;
patterns and wordings are ours.

    kind        found by                                               asked for
    title       the document's title, at its first passage             a title
    terms       TERMS words of TERM_LETTERS letters or more            one sentence of the text that has them
    definition  X is defined as, refers to                             what X is
    inference   Therefore, However, Moreover... between two sentences  whether one entails the other, contradicts it, or neither
    cause       because, owing to, on account of, within a sentence    the cause
    effect      As a result, Consequently... between two sentences     the effect
    paraphrase  In other words, In contrast... between two sentences   whether both say the same
    completion  a passage of three sentences or more                   its last sentence; the passage comes without it

Each question is a conversation of its own with its passage, not one of many after a common text as in the paper: so no answer is
lost where the oldest turns of a long conversation are cut away, and kinds can be counted and sampled. The price is that a passage
is read, not trained, once for each of its questions.

An author's connective is weak evidence. `However` often limits what comes before it and does not contradict it; the answers of
`inference` and `paraphrase` are as good as that. The longest words of a sentence stand for its terms: no list of words is known.
The patterns are English.

Price: about 3,000 abstracts a second and core; each gives five conversations.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from medschool.instructions.passages import Passage, passages, unlabelled
from medschool.rows import Conversation, Document, Message
from medschool.seed import seed_of

PER_KIND = 2
"""Questions of one kind a document, at most; the paper's released program has the same limit for each part of a kind."""
TERMS, TERM_LETTERS = 3, 10
SENTENCE_WORDS = (5, 60)
"""Shortest and longest sentence that a question is asked about."""

READ = (
    "Read this text and answer the question about it.",
    "Here is a part of a text. Do what is asked below it.",
    "Study the text. Then solve the exercise.",
)
CONTINUE = (
    "Here is how a part of a text begins. Write the sentence that comes next.",
    "Complete this text by one sentence.",
    "What would the author say next?",
)
_CONNECTIVES = {
    "entails": "Therefore|Thus|Hence|Accordingly|For this reason",
    "contradicts": "However|On the contrary|Yet",
    "neither": "Moreover|Furthermore|In addition|Additionally",
    "effect": "As a result|Consequently|As a consequence|Because of this",
    "same": "In other words|That is to say|That is|Put differently|Similarly|Likewise",
    "different": "In contrast|By contrast|Conversely|On the other hand",
}
_FOLLOWS = {name: re.compile(rf"(?:{words}),? +(?=\w)") for name, words in _CONNECTIVES.items()}
_DEFINED = re.compile(r"(?:An? |The )?(?P<term>[A-Za-z][\w-]*(?: [\w-]+){0,3}) (?:(?:is|are|was|were) defined as|refers? to) .+")
_CAUSED = re.compile(r"(?P<effect>[^;:]{20,}?),? (?P<link>because of|because|owing to|on account of) (?P<cause>.{8,})[.]")
_TERM = re.compile(rf"\b[a-z]{{{TERM_LETTERS},}}\b")


@dataclass(frozen=True)
class Question:
    """Something that a passage can be asked."""

    kind: str
    text: str
    """What is shown, as a rule the passage."""
    asked: tuple[str, ...]
    """Wordings, of which the seed draws one."""
    answer: str


def reading_comprehension(document: Document, name: str, seed: int, words: int) -> Iterator[Conversation]:
    """The conversations of one document for the set `name`, `<document>:<kind>:<number>`; none where nothing can be asked.

    words: of a passage, at most. The number counts what could be asked in the order of the text, so an id means the same question
    under every seed.
    """
    by_kind: dict[str, list[Question]] = {}
    for place, passage in enumerate(passages(document, words)):
        for question in _questions(passage, document.title if place == 0 else ""):
            by_kind.setdefault(question.kind, []).append(question)
    for kind, found in by_kind.items():
        draw = random.Random(seed_of(seed, "reading", document.id, kind))
        for number in sorted(draw.sample(range(len(found)), min(PER_KIND, len(found)))):
            yield _conversation(document, name, found[number], number, draw)


def _conversation(document: Document, name: str, question: Question, number: int, draw: random.Random) -> Conversation:
    head = draw.choice(CONTINUE if question.kind == "completion" else READ)
    asked = "\n\n".join(filter(None, (head, question.text, draw.choice(question.asked))))
    messages = (Message("user", asked), Message("assistant", question.answer))
    id_ = f"{document.id}:{question.kind}:{number}"
    return Conversation(id_, name, f"reading/{question.kind}", messages, document.licence, document.uri, document.id)


def _questions(passage: Passage, title: str) -> Iterator[Question]:
    """All that the passage can be asked, in the order of the text. title: of its document, where it is the first passage."""
    text, sound = passage.text, [said for sentence in passage.sentences if _is_sound(said := unlabelled(sentence))]
    if len(title.split()) >= 3 and title.rstrip(".").casefold() not in text.casefold():
        asked = ("Give the text a title.", "What is this text about? Answer with a title.", "Sum up the text in one line.")
        yield Question("title", text, asked, title)
    for sentence in sound:
        for ask in (_terms, _definition, _cause):
            if found := ask(text, sentence):
                yield found
    for before, after in passage.pairs:
        before = unlabelled(before)
        if _is_sound(before) and _is_sound(after):
            yield from _of_pair(text, before, after)
    if len(passage.sentences) >= 3 and _is_sound(passage.sentences[-1]):
        *first, last = passage.paragraphs
        shown = Passage((*first, last[:-1]) if last[1:] else tuple(first))
        yield Question("completion", shown.text, ("",), unlabelled(last[-1]))


def _is_sound(sentence: str) -> bool:
    shortest, longest = SENTENCE_WORDS
    return sentence[:1].isupper() and sentence[-1:] in ".!?" and shortest <= len(sentence.split()) <= longest


def _terms(text: str, sentence: str) -> Question | None:
    terms = list(dict.fromkeys(_TERM.findall(sentence)))
    longest = sorted(terms, key=len, reverse=True)[:TERMS]
    if len(longest) < TERMS:
        return None
    listed = ", ".join(term for term in terms if term in longest)
    asked = (f"Write one sentence on this text with the words: {listed}.", f"What does the text say with these words: {listed}?")
    return Question("terms", text, asked, sentence)


def _definition(text: str, sentence: str) -> Question | None:
    if not (found := _DEFINED.fullmatch(sentence)):
        return None
    asked = (f"How does the text define this: {found['term']}?", f"According to the text, what is meant by: {found['term']}?")
    return Question("definition", text, asked, sentence)


def _cause(text: str, sentence: str) -> Question | None:
    if not (found := _CAUSED.fullmatch(sentence)):
        return None
    asked = (f"According to the text, why is this so: {found['effect']}?", f"Which cause does the text name: {found['effect']}?")
    return Question("cause", text, asked, f"{found['link'].capitalize()} {found['cause']}.")


def _of_pair(text: str, before: str, after: str) -> Iterator[Question]:
    """What two sentences in a row can be asked by the connective of the second one."""
    for link, pattern in _FOLLOWS.items():
        if match := pattern.match(after):
            bare = after[match.end() :]
            yield _PAIRED[link](text, before, bare[:1].upper() + bare[1:])
            return


def _inference(answer: str) -> Callable[[str, str, str], Question]:
    def ask(text: str, before: str, after: str) -> Question:
        two = f"1. {before}\n2. {after}"
        asked = (
            f"{two}\nDoes the first sentence entail the second, contradict it, or neither?",
            f"{two}\nTaking the first as true, is the second entailed, contradicted, or neither?",
        )
        return Question("inference", text, asked, answer)

    return ask


def _paraphrase(answer: str) -> Callable[[str, str, str], Question]:
    def ask(text: str, before: str, after: str) -> Question:
        two = f"1. {before}\n2. {after}"
        asked = (f"{two}\nDo both say much the same, or different things?", f"{two}\nAre these two alike in meaning?")
        return Question("paraphrase", text, asked, answer)

    return ask


def _effect(text: str, before: str, after: str) -> Question:
    asked = (f"According to the text, what is the effect of this: {before}", f"What does the text say comes of this: {before}")
    return Question("effect", text, asked, after)


_PAIRED: dict[str, Callable[[str, str, str], Question]] = {
    "entails": _inference("It is entailed."),
    "contradicts": _inference("It is contradicted."),
    "neither": _inference("Neither."),
    "effect": _effect,
    "same": _paraphrase("They say much the same."),
    "different": _paraphrase("They say different things."),
}
