"""Asks a teacher for other wordings of an instruction, and keeps only those that still demand the same.

The paper has GPT-4 rewrite its instructions, and draws one at random for each conversation. Its prompt is printed as an image;
the text here is what is remembered of it and is not verified: "Rewrite 10 sentences that convey similar meanings to what I've
stated: {instruction seeds}".

A wording is rejected where it is

    repeat      the instruction, or a wording that is already there, but for case and marks
    demand      asking for another form: other numbers, other quoted or capital words, or another kind of answer (DEMANDS)
    length      more than LONGER times as long as the instruction, or less than a third of it: an answer to it, or a scrap

The check is of words: it does not know whether two sentences mean the same.
"""

import re
from collections.abc import Iterable

LONGER = 3
SHORT_CHARS = 60
"""Instructions shorter than this may grow to LONGER times this length."""
DEMANDS = (
    {"explain", "explanation", "reason", "reasons", "reasoning", "rationale", "why", "justify", "justification", "step", "steps"},
    {"only", "directly", "alone", "solely", "merely", "simply", "nothing"},
    {"brief", "briefly", "short", "concise", "concisely", "succinct", "succinctly"},
    {"list", "lists", "bullet", "bullets", "enumerate"},
    {"table"},
    {"sentence", "sentences"},
    {"paragraph", "paragraphs"},
    {"letter", "letters"},
    {"yes"},
    {"maybe"},
    {"first", "then", "before", "after"},
)
"""Words that say what form an answer has; those of one group say the same."""
NUMBERS = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LITERAL = re.compile(r"\"[^\"]+\"|`[^`]+`|###\w+|\{\w+\}|<\w+>|\b[A-Z]{2,}\b")
_NUMBERING = re.compile(r"^\s*(?:\(?\d{1,2}[.):]\s+|[-*\u2022]\s+)")


def prompt(instruction: str, count: int) -> str:
    """The request for `count` wordings; the second sentence is ours, so that the answer can be read."""
    return (
        f"Rewrite {count} sentences that convey similar meanings to what I've stated: {instruction}\n"
        "Write each of them on one line."
    )


def lines_of(answer: str) -> list[str]:
    """The wordings in an answer: its lines without numbering and quotes around them, and without a line that announces them."""
    lines = [_NUMBERING.sub("", line).strip() for line in answer.splitlines()]
    bare = [line[1:-1].strip() if len(line) > 1 and line[0] == line[-1] == '"' else line for line in lines]
    return [line for line in bare if line and not line.endswith(":")]


def verdict(instruction: str, wording: str, known: Iterable[str]) -> str:
    """`kept`, or why a wording is rejected."""
    if _plain(wording) in {_plain(other) for other in (instruction, *known)}:
        return "repeat"
    if not len(instruction) / LONGER <= len(wording) <= LONGER * max(len(instruction), SHORT_CHARS):
        return "length"
    return "kept" if demands(wording) == demands(instruction) else "demand"


def demands(text: str) -> tuple[list[str], list[str], list[int]]:
    """What a text asks for in form: its numbers, its literal words, and the groups of DEMANDS that it names."""
    words = [word.lower() for word in _WORD.findall(text)]
    numbers = _NUMBER.findall(text) + [NUMBERS[word] for word in words if word in NUMBERS]
    groups = [place for place, group in enumerate(DEMANDS) if group & set(words)]
    return sorted(numbers), sorted(set(_LITERAL.findall(text))), groups


def _plain(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))
