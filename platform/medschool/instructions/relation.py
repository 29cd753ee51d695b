"""How a relation between two things of a graph is put into words, asked, and asked as a choice.

PMC-LLaMA asks UMLS for the relation of two entities; its wordings are not published, these are our own. A relation has a
direction, so the answer is a sentence: `Aspirin may treat pain.` Which of the two the question names first is drawn, so that
the order does not give the direction away. In a choice the two stand in the order of the sentence, because that is what is asked.

What it does not know: whether two names of relations mean the same (`treats` and `may_treat`). A wrong option is one that the
graph does not state of these two.
"""

from collections.abc import Collection, Sequence

from medschool.exams.layout import letter
from medschool.rows import Message
from medschool.seed import seed_of

OPTIONS = 4
OPEN = (
    "What is the relation between {first} and {second}?",
    "How are these two related: {first}; {second}?",
    "Say how {first} and {second} are related.",
    "Which medical relation connects {first} and {second}?",
)
CHOICE = (
    "Which relation does {subject} have to {object}?",
    "Choose the relation that leads from {subject} to {object}.",
)
_OWN_WORDS = {"isa": "is a", "is_a": "is a", "inverse_isa": "is the wider term of"}
_PREPOSITIONS = {"of", "by", "to", "with", "from", "in", "for", "at", "on"}
_VERBS = {"is", "may", "can"}


def phrase(relation: str) -> str:
    """Words for the name of a relation: `may_treat` gives `may treat`, `part_of` gives `is part of`."""
    words = relation.replace("_", " ").split()
    lacks_verb = not any(word in _VERBS or (word.endswith("s") and not word.endswith(("is", "ss", "us"))) for word in words)
    plain = " ".join(words)
    return _OWN_WORDS.get(relation.lower()) or (f"is {plain}" if lacks_verb and _PREPOSITIONS & set(words) else plain)


def statement(subject: str, words: str, object_: str) -> str:
    """`Aspirin may treat pain.`"""
    return f"{subject} {words} {object_}."


def asked_openly(subject: str, words: str, object_: str, seed: int, key: str) -> tuple[Message, Message]:
    """The question for the relation, and the sentence that states it."""
    first, second = (subject, object_) if seed_of(seed, key, "order") % 2 else (object_, subject)
    question = OPEN[seed_of(seed, key) % len(OPEN)].format(first=first, second=second)
    return Message("user", question), Message("assistant", statement(subject, words, object_))


def asked_as_choice(subject: str, words: str, object_: str, wrong: Sequence[str], seed: int, key: str) -> tuple[Message, Message]:
    """The question with lettered options, the right one in a drawn place; the letter and the words of the right one."""
    place = seed_of(seed, key, "place") % (len(wrong) + 1)
    options = [*wrong[:place], words, *wrong[place:]]
    lines = "".join(f"\n{letter(index)}. {option}" for index, option in enumerate(options))
    question = CHOICE[seed_of(seed, key) % len(CHOICE)].format(subject=subject, object=object_)
    return Message("user", question + lines), Message("assistant", f"{letter(place)}. {words}")


def distractors(known: Sequence[str], true: Collection[str], seed: int, key: str) -> list[str]:
    """Up to OPTIONS - 1 different wordings out of `known` that are not among the `true` ones, drawn by the seed."""
    left = [words for words in known if words not in true]
    picks = range(min(OPTIONS - 1, len(left)))
    return [left.pop(seed_of(seed, key, "option", pick) % len(left)) for pick in picks]
