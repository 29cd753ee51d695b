"""Abstracts whose title asks a question become conversations: the title asks, the authors' conclusion answers.

So PubMedQA made its artificial questions (Jin et al. 2019), from papers with a structured abstract. Each such record gives two
conversations: with the end of the abstract (without the conclusion) as context, and with the question alone. Rows of instruction
tuning are short, so the context is the last whole sentences within CONTEXT_WORDS words, as a rule the results.

The licence is as corpus.medline reads it, `nlm-medline` or `publisher-copyright`. Texts go through all corpus steps and are
cleaned as in the corpus. A set can be made from raw MEDLINE (`medline_conclusion`) or from a corpus of the recipe (`conclusion`,
medschool.instructions.from_corpus), which may hold the same abstracts from any format; both give the same conversations.

Price: that of reading MEDLINE, about 6,000 records a second and core. Few records fit: 1 in 200 of a file of 2021, none of 1979.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

from medschool.corpus.clean import clean_text
from medschool.corpus.medline import medline
from medschool.corpus.steps import run_steps
from medschool.rows import Conversation, Document, Draft, Dropped, Message
from medschool.seed import seed_of

SAMPLE_CHARS = 200
CONTEXT_WORDS = 60
"""With 90 words half of these conversations are longer than 256 tokens, with 60 a seventh."""

WITH_CONTEXT = (
    "Answer the research question from the abstract.",
    "Here is the end of an abstract. What did the authors conclude?",
    "Read this part of an abstract and answer the question of its title.",
)
ALONE = (
    "Answer this question from medical research.",
    "What did the authors of the paper with this title conclude?",
    "A paper asks the following question. Give its conclusion.",
)
_CONCLUSION = re.compile(r"CONCLUSIONS?\b[^:a-z]{0,40}:\s*(.+)", re.DOTALL)
_ABSTRACT = re.compile(r"^## Abstract\n\n(.*?)(?=\n\n## |\Z)", re.DOTALL | re.MULTILINE)
_PART_HEADING = re.compile(r"^### (.+?):?\n\n", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9(\[])")


def medline_conclusion(stream: BinaryIO, uri: str, name: str, seed: int) -> Iterator[Conversation | Dropped]:
    """Two conversations a record, `pmid:<number>:context` and `pmid:<number>:alone`; the first only where there is a context.

    Records whose title is not a question are no part of the set. Of the others, those without a labelled conclusion are Dropped
    (`no_conclusion`), in another language (`language`) and retracted ones (`retracted`) are Dropped, and those that the reader
    drops stay dropped. Raises as the reader.
    """
    for row in medline(stream, uri, name):
        if isinstance(row, Dropped):
            if row.sample.endswith("?"):
                yield row
        elif row.title.endswith("?"):
            yield from _conversations(run_steps(row)[0], seed)


def title_conclusion(document: Document, name: str, seed: int, words: int) -> Iterator[Conversation | Dropped]:
    """The same of a document of the corpus, for the set `name`; none where its title is no question.

    The corpus has cleaned it, and refused retracted publications and, where the recipe says so, other languages. words: of the
    context, at most.
    """
    if document.title.endswith("?"):
        yield from _of_parts(replace(document, source=name), _abstract(document.text.removeprefix(document.title)), seed, words)


def _abstract(text: str) -> str:
    """The abstract of a full text with its headings as MEDLINE's labels; a text without such an abstract as it is."""
    found = _ABSTRACT.search(text)
    return _PART_HEADING.sub(lambda heading: f"{heading[1].upper()}: ", found[1]) if found else text


def _conversations(record: Draft, seed: int) -> Iterator[Conversation | Dropped]:
    record = replace(record, title=" ".join(clean_text(record.title).split()), text=record.text.removeprefix(record.title))
    for refused, step, reason in (
        (record.retracted, "retracted", "the publication was retracted"),
        ("eng" not in record.language, "language", f"language is {record.language or 'not stated'}, not eng"),
    ):
        if refused:
            yield Dropped(record.id, record.source, step, reason, record.title[:SAMPLE_CHARS], record.uri)
            return
    yield from _of_parts(record, clean_text(record.text), seed, CONTEXT_WORDS)


def _of_parts(record: Draft | Document, text: str, seed: int, words: int) -> Iterator[Conversation | Dropped]:
    """What a record gives whose title asks. text: clean, without the title."""
    parts = [part for part in text.split("\n\n") if part]
    found = [match for part in parts if (match := _CONCLUSION.fullmatch(part))]
    if not found:
        reason = "the abstract has no paragraph with the label CONCLUSION"
        yield Dropped(record.id, record.source, "no_conclusion", reason, record.title[:SAMPLE_CHARS], record.uri)
        return
    conclusion = found[-1][1]
    context = _end([part for part in parts if not _CONCLUSION.fullmatch(part)], words)
    if context:
        user = f"{_drawn(WITH_CONTEXT, seed, record.id)}\n\n{context}\n\nQuestion: {record.title}"
        yield _conversation(record, "context", user, conclusion)
    yield _conversation(record, "alone", f"{_drawn(ALONE, seed, record.id)}\n\n{record.title}", conclusion)


def _end(parts: list[str], most: int) -> str:
    """The last whole sentences of `parts` that have `most` words together; the very last one however long it is."""
    sentences = [sentence for part in parts for sentence in _SENTENCE_END.split(part) if sentence]
    kept: list[str] = []
    words = 0
    for sentence in reversed(sentences):
        words += len(sentence.split())
        if kept and words > most:
            break
        kept.insert(0, sentence)
    return " ".join(kept)


def _drawn(phrases: tuple[str, ...], seed: int, record: str) -> str:
    return phrases[seed_of(seed, record) % len(phrases)]


def _conversation(record: Draft | Document, variant: str, user: str, assistant: str) -> Conversation:
    messages = (Message("user", user), Message("assistant", assistant))
    return Conversation(f"{record.id}:{variant}", record.source, "conversation", messages, record.licence, record.uri, record.id)
