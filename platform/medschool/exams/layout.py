"""How a question is put and answered: the layout of the released instruction set, used for tuning and for the exam alike.

    ###Question: Which vitamin...?          ###Answer: OPTION B IS CORRECT.
    ###Options:
    A. ...                                  ###Rationale: ...
    B. ...                                  ###Answer: OPTION B IS CORRECT.

The layout is that of `axiong/pmc_llama_instructions`; the pattern that reads an answer is the one of the original evaluation
script (chaoyi-wu/PMC-LLaMA, SFT/eval/eval_medqa.py), widened from A-D to any letter.
"""

import re
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
_ANSWER = re.compile(r"OPTION ([A-Z]) IS CORRECT", re.IGNORECASE)


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


def parse_answer(text: str, options: int) -> int | None:
    """Index of the first option that `text` names as correct; None when it names none of the `options` there are."""
    found = _ANSWER.search(text)
    index = ascii_uppercase.index(found[1].upper()) if found else options
    return index if index < options else None
