"""How a question is put and answered: the layout of the released instruction set, used for tuning and for the exam alike.

    ###Question: Which vitamin...?          ###Answer: OPTION B IS CORRECT.
    ###Options:
    A. ...                                  ###Rationale: ...
    B. ...                                  ###Answer: OPTION B IS CORRECT.

The layout is that of `axiong/pmc_llama_instructions`; the pattern that reads an answer is the one of the original evaluation
script (chaoyi-wu/PMC-LLaMA, SFT/eval/eval_medqa.py at 54fc0d4: the first match of `(?i)OPTION [ABCD] IS CORRECT`), with as many
letters as the question has options. That script leaves answers without a match out of its result, and counts them apart; here
they are answers, and wrong.

No script for PubMedQA was published. Its options are the words yes, no and maybe: where the pattern finds nothing, an answer that
begins with one of them, alone or behind `Answer:` or `The answer is`, is that word. A word further on decides nothing: "there was
no difference" is not a no.
"""

import re
from collections.abc import Sequence
from string import ascii_uppercase

from medschool.rows import ExamItem

DIRECT_INSTRUCTIONS = (
    "Answer this medical question by choosing the best option.",
    "Read the question and its options, then name the correct option.",
    "As a doctor, pick the option that answers the question best.",
    "Choose the right answer to the following exam question.",
)
"""Ways of asking for the answer alone. The first one is the exam's own."""
RATIONALE_INSTRUCTIONS = (
    "Explain your reasoning, then choose the best option.",
    "Think about this medical question step by step, then name the correct option.",
    "Give the rationale first and then the right answer to the following exam question.",
)
ANSWER_STEM = "###Answer: OPTION"
DECISIONS = ("yes", "no", "maybe")
"""The options of PubMedQA."""
_DECISION = re.compile(r"\W*(?:(?:the )?answer(?: is)?\W+)?(yes|no|maybe)\b", re.IGNORECASE)


def letter(index: int) -> str:
    return ascii_uppercase[index]


def question_text(item: ExamItem) -> str:
    """What is to be read before it, where there is something; question and lettered options."""
    lines = "".join(f"{letter(index)}. {option}\n" for index, option in enumerate(item.options))
    context = f"###Context: {item.context}\n" if item.context else ""
    return f"{context}###Question: {item.question}\n###Options:\n{lines}"


def user_text(item: ExamItem, instruction: str) -> str:
    """What the user says: the instruction, then the question."""
    return f"{instruction}\n\n{question_text(item)}"


def answer_text(index: int) -> str:
    """The assistant's direct answer."""
    return f"{ANSWER_STEM} {letter(index)} IS CORRECT."


def answer_pattern(options: int) -> str:
    """Regular expression of an answer that names one of the first `options` letters, in either case of each letter."""
    last = ascii_uppercase[options - 1]
    return rf"(?i:OPTION) ([A-{last}a-{last.lower()}]) (?i:IS CORRECT)"


def parse_answer(text: str, options: int) -> int | None:
    """Index of the first option that `text` names as correct; None when it names none of the `options` there are."""
    found = re.search(answer_pattern(options), text)
    return ascii_uppercase.index(found[1].upper()) if found else None


def read_answer(text: str, options: Sequence[str]) -> int | None:
    """As `parse_answer`; of the options yes, no and maybe also the one that the text begins with."""
    if (found := parse_answer(text, len(options))) is not None or tuple(options) != DECISIONS:
        return found
    word = _DECISION.match(text)
    return DECISIONS.index(word[1].lower()) if word else None
