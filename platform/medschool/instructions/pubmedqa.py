"""PubMedQA (Jin et al. 2019): the question and the abstract, answered by yes, no or maybe, or in the words of the conclusion.

One JSON object by PMID, read a record at a time: ori_pqal.json, ori_pqau.json, and ori_pqaa.json with 211 thousand records in
half a gigabyte. MedC-I asks the last one for its conclusions too. The instruction is drawn by the seed. Such a talk names its
abstract as `document`, so that one that is held out is not talked about. The licence is `mit`, that of the set; the abstracts are
their publishers'.

Memory: one record, and 100 bytes for each PMID.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

from medschool.corpus.jsonlines import Malformed, json_object, sample_of
from medschool.corpus.jsonstream import object_members
from medschool.exams.pubmedqa import pubmedqa_row
from medschool.exams.records import one_line, paragraphs
from medschool.instructions.exam import twice
from medschool.instructions.fields import TURN_CHARS, Refused, malformed, text_of
from medschool.rows import Conversation, Dropped, Message
from medschool.seed import seed_of

LICENCE = "mit"
SAMPLE_CHARS = 200
INSTRUCTIONS = (
    "Read the abstract and answer the question of its authors.",
    "Answer this research question from the context.",
    "What do the results below say to the question?",
    "As a doctor, answer the question with the evidence given.",
)


def pubmedqa_direct(stream: BinaryIO, uri: str, name: str, seed: int) -> Iterator[Conversation | Dropped]:
    """Two conversations a decided question, as medschool.instructions.exam makes them. Raises InputError as `pubmedqa_answer`."""
    rows = (record if isinstance(record, Dropped) else pubmedqa_row(*record, uri, name) for record in _records(stream, uri, name))
    yield from twice(rows, seed, LICENCE)


def pubmedqa_answer(stream: BinaryIO, uri: str, name: str, seed: int) -> Iterator[Conversation | Dropped]:
    """One conversation a record, `pmid:<number>:answer`. One without a long answer is dropped as `no_answer`.

    Raises InputError where the file is no JSON object, or breaks off.
    """
    for record in _records(stream, uri, name):
        if isinstance(record, Dropped):
            yield record
            continue
        pmid, values = record
        try:
            yield _conversation(pmid, values, uri, name, seed)
        except Refused as error:
            yield _dropped(pmid, error.step, error.reason, str(values.get("QUESTION"))[:SAMPLE_CHARS], uri, name)


def _records(stream: BinaryIO, uri: str, name: str) -> Iterator[tuple[str, dict[str, Any]] | Dropped]:
    """PMID and values of every record that is a JSON object, the first one of each PMID."""
    seen: set[str] = set()
    for pmid, text in object_members(stream, uri):
        try:
            if pmid in seen:
                raise Malformed("the file has this PMID twice")
            seen.add(pmid)
            yield pmid, json_object(text)
        except Malformed as error:
            yield _dropped(pmid, "malformed", str(error), sample_of(text), uri, name)


def _dropped(pmid: str, step: str, reason: str, sample: str, uri: str, name: str) -> Dropped:
    return Dropped(f"{uri}:{pmid}", name, step, f"record {pmid}: {reason}", sample, uri)


def _conversation(pmid: str, record: dict[str, Any], uri: str, name: str, seed: int) -> Conversation:
    question, contexts = text_of(record, "QUESTION"), record.get("CONTEXTS")
    if not isinstance(contexts, list) or not contexts:
        raise malformed(f"CONTEXTS is {contexts!r:.60}, not a list of texts")
    parts = [text_of({"": part}, "", f"CONTEXTS[{number}]") for number, part in enumerate(contexts)]
    if sum(map(len, parts)) > TURN_CHARS:
        raise Refused("too_long", f"CONTEXTS has {sum(map(len, parts))} characters, a turn has at most {TURN_CHARS}")
    if not record.get("LONG_ANSWER"):
        raise Refused("no_answer", "LONG_ANSWER is missing or empty")
    key = f"pmid:{pmid}"
    instruction = INSTRUCTIONS[seed_of(seed, key) % len(INSTRUCTIONS)]
    context = "\n".join(map(paragraphs, parts))
    asked = f"{instruction}\n\n###Context: {context}\n###Question: {one_line(question)}\n"
    messages = (Message("user", asked), Message("assistant", one_line(text_of(record, "LONG_ANSWER"))))
    return Conversation(f"{key}:answer", name, "conversation", messages, LICENCE, uri, document=key)
