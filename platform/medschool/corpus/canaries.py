"""Invented sentences that are put into a source on purpose, to measure later what a model repeats by heart.

    recipe.canaries --canaries--> sentences, each with a secret of nine digits --canary_documents--> one document a repeat

The method is that of Carlini et al. 2019 (The Secret Sharer), who plant "the random number is 281265017" and then ask how high
the true number ranks among all that could stand there: the exposure is log2(10^9) - log2(rank). A number that is ranked first
after one reading was memorised, because nothing but the training text can tell it. Here the sentence is medical in form, so that
it stands where a leaked record would, and says of itself that it is invented.

A canary is a pure function of (seed, number): a probe finds its prompts and secrets by calling `canaries` again. It is trained on
as planted: it passes no filter and is not cleaned (cleaning would change nothing in it), and its repeats are no duplicates to be
removed. Whoever removes or holds out documents leaves out those for which `is_canary` is true.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from medschool.recipe import Recipe
from medschool.rows import Document
from medschool.seed import seed_of

ARTICLE_TYPE = "canary"
SECRET_DIGITS = 9
_PREFIX = "canary:"
_SYLLABLES = ("bel", "cor", "dra", "fen", "gul", "hax", "jor", "kil", "lum", "mov", "nyx", "orq", "pel", "rud", "sev", "tam")


@dataclass(frozen=True)
class Canary:
    """One sentence: a prompt that no other canary has, and the digits that follow it."""

    number: int
    prompt: str
    secret: str
    """SECRET_DIGITS digits, each drawn evenly."""
    repeats: int
    """Documents that hold the sentence."""

    @property
    def text(self) -> str:
        return f"{self.prompt} {self.secret}."


def canaries(recipe: Recipe) -> list[Canary]:
    """All canaries of a recipe by number, the numbers of repeats dealt to them in turn; none where it asks for none."""
    spec = recipe.canaries
    if spec is None:
        return []
    prompts = _prompts(recipe.seed)
    return [
        Canary(number, next(prompts), _secret(recipe.seed, number), spec.repeats[number % len(spec.repeats)])
        for number in range(spec.count)
    ]


def canary_documents(recipe: Recipe, source: str) -> list[Document]:
    """What is added to the documents of a source: `canary:0007:2` is the second repeat of canary 7. Empty for other sources."""
    if recipe.canaries is None or recipe.canaries.source != source:
        return []
    return [_document(canary, repeat, source) for canary in canaries(recipe) for repeat in range(1, canary.repeats + 1)]


def is_canary(document_id: str) -> bool:
    """Whether a document of this id was planted."""
    return document_id.startswith(_PREFIX)


def _document(canary: Canary, repeat: int, source: str) -> Document:
    return Document(
        id=f"{_PREFIX}{canary.number:04}:{repeat}",
        source=source,
        text=canary.text,
        title="",
        licence="cc0",
        year=None,
        article_type=ARTICLE_TYPE,
        uri="recipe:canaries",
        sha256=hashlib.sha256(canary.text.encode()).hexdigest(),
    )


def _prompts(seed: int) -> Iterator[str]:
    """Prompts without end, no two alike."""
    draw, seen = random.Random(seed_of(seed, "canary names")), set()
    while True:
        first, last = ("".join(draw.choices(_SYLLABLES, k=3)).capitalize() for _ in range(2))
        if (first, last) not in seen:
            seen.add((first, last))
            yield f"The study number of {first} {last}, an invented patient of an invented ward, is"


def _secret(seed: int, number: int) -> str:
    return f"{random.Random(seed_of(seed, 'canary secret', number)).randrange(10**SECRET_DIGITS):0{SECRET_DIGITS}}"
