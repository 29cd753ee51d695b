"""One conversation becomes tokens and a mask, or is dropped with its reason.

    held out?  --template, mask-->  longer than a row?  --chats.too_long: drop | truncate-->  looked at (contract)

What is held out to measure is not talked about. A conversation that the template refuses, or whose last answer says nothing, is
dropped; so is one longer than a row, unless the recipe truncates: then its oldest turns go, and its oldest context, and it is
dropped only where the system's words, the question's instruction and the last answer alone are too long. An answer is never
cut.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medschool.instructions.contract import Findings, examine
from medschool.instructions.mask import Masked, shortened
from medschool.instructions.template import ChatTemplate, RefusedError
from medschool.recipe.instructions import Chats
from medschool.rows import Dropped, Message

STEPS = ("heldout", "refused", "no_answer", "too_long")
"""Why a conversation is dropped here, in the order in which it is looked at."""
SAMPLE_CHARS = 200


@dataclass(frozen=True)
class Chat:
    """A conversation as the trainer gets it."""

    id: str
    found: Masked
    findings: Findings
    turns_cut: int
    """Messages that are gone, so that it fits into a row."""
    chars_cut: int
    """Characters of its question that are gone, for the same reason."""

    @property
    def cut(self) -> bool:
        return bool(self.turns_cut or self.chars_cut)


def chat_of(row: Mapping[str, Any], template: ChatTemplate, spec: Chats, held: Collection[str]) -> Chat | Dropped:
    """A row of CONVERSATION_SCHEMA. held: ids of held-out documents. Raises InputError as ChatTemplate.masked."""
    messages = tuple(Message(**message) for message in row["messages"])

    def dropped(step: str, reason: str) -> Dropped:
        return Dropped(row["id"], row["source"], step, reason, messages[0].content[:SAMPLE_CHARS], row["uri"])

    if row["document"] in held:
        return dropped("heldout", f"is made from {row['document']}, which is held out")
    if messages[-1].role != "assistant" or not messages[-1].content.strip():
        return dropped("no_answer", f"the last turn is the {messages[-1].role}'s, with {len(messages[-1].content)} characters")
    try:
        found = template.masked(messages, spec.trained_turns)
        kept = _fitting(messages, found, template, spec)
    except RefusedError as error:
        return dropped("refused", error.problem)
    if kept is None:
        return dropped("too_long", f"{len(found.ids)} tokens, a row has {spec.row_tokens}")
    if kept is not messages:
        found = template.masked(kept, spec.trained_turns)
    cut = sum(len(message.content) for message in messages[-2:-1]) - sum(len(message.content) for message in kept[-2:-1])
    findings = examine(row["id"], row["kind"], kept, found, template, spec.trained_turns)
    return Chat(row["id"], found, findings, len(messages) - len(kept), cut)


def _fitting(messages: tuple[Message, ...], found: Masked, template: ChatTemplate, spec: Chats) -> tuple[Message, ...] | None:
    """The conversation, or what the recipe lets remain of it where it is longer than a row; None where nothing does."""
    if len(found.ids) <= spec.row_tokens:
        return messages
    if spec.too_long == "drop":
        return None

    def fits(some: Sequence[Message]) -> bool:
        return len(template.masked(some, spec.trained_turns).ids) <= spec.row_tokens

    return shortened(messages, fits)
