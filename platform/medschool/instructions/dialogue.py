"""The ICD-10-CM tabular list becomes short talks of a patient, a doctor and a coder about diagnosis codes.

Each code is asked about once: what it stands for and includes, or which code stands for a diagnosis. The seed decides which, and
in which words. A diagnosis that several codes have as their title is asked about from the code only, because its question would
have several answers. The answers hold nothing that the file does not say.

The licence is `public-domain`: the list is a work of the US government (National Center for Health Statistics).

Price: 1 s for the whole list, 47,000 conversations.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from lxml import etree

from medschool.corpus.books import sentence, words_of
from medschool.corpus.xml import elements
from medschool.rows import Conversation, Dropped, Message
from medschool.seed import seed_of

LICENCE = "public-domain"

FROM_CODE = (
    "What does the ICD-10-CM code {code} stand for, and what does it include?",
    "My hospital letter shows the ICD-10-CM code {code}. What does it mean?",
    "Doctor, what does the diagnosis code {code} on my bill stand for?",
    "Explain the ICD-10-CM code {code} to a new coder.",
)
TO_CODE = (
    "Which ICD-10-CM code stands for {title}?",
    "The doctor wrote: {title}. Which ICD-10-CM code do I enter?",
    "Please code this diagnosis in ICD-10-CM: {title}.",
    "I need the ICD-10-CM code for {title}.",
)
_INCLUDED = ("includes", "inclusionTerm")


@dataclass(frozen=True)
class _Code:
    code: str
    title: str
    included: tuple[str, ...]


def icd10cm_dialogue(stream: BinaryIO, uri: str, name: str, seed: int) -> Iterator[Conversation | Dropped]:
    """One conversation a code, `icd10cm:E11.9`, in the order of the list. Dropped: a code without name or description.

    Raises as corpus.xml.elements.
    """
    codes = [_read(node) for section in elements(stream, uri, "section") for node in section.iter("diag")]
    times = Counter(code.title.casefold() for code in codes)
    for position, code in enumerate(codes, start=1):
        if code.code and code.title:
            yield _conversation(code, times[code.title.casefold()] == 1, uri, name, seed)
        else:
            sample = f"{code.code} {code.title}".strip()
            yield Dropped(f"{uri}#{position}", name, "parse", "<diag> without name or desc", sample, uri)


def _read(node: etree._Element) -> _Code:
    notes = [" ".join("".join(note.itertext()).split()) for tag in _INCLUDED for note in node.iterfind(f"{tag}/note")]
    return _Code(words_of(node, "name"), words_of(node, "desc"), tuple(note for note in dict.fromkeys(notes) if note))


def _conversation(code: _Code, unique: bool, uri: str, name: str, seed: int) -> Conversation:
    key = f"icd10cm:{code.code}"
    phrases = TO_CODE if unique and seed_of(seed, key, "direction") % 2 else FROM_CODE
    question = phrases[seed_of(seed, key) % len(phrases)].format(code=code.code, title=code.title)
    answer = f"{code.code} stands for {sentence(code.title)}"
    if phrases is FROM_CODE and code.included:
        answer += f" It includes: {sentence('; '.join(code.included))}"
    messages = (Message("user", question), Message("assistant", answer))
    return Conversation(key, name, "conversation", messages, LICENCE, uri, document=key.partition(".")[0])
