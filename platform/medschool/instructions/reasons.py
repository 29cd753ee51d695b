"""Asks a teacher why the right option of an exam question is right, and keeps only what agrees with the key.

The two prompts are those of PMC-LLaMA's supplement: one shows two worked questions and ends in `The answer is ..., so the
analysis is`, the other one asks for every option to be judged. Its two worked questions are not ours to copy; WORKED holds two of
our own in the same form. Ours end by naming the answer again, so that what a teacher writes after them can be checked.

The teacher is told the key and still gets some of it wrong: it argues for another option, or for none. The paper does not say
what was done about that. Here such an answer is rejected, and the teacher is asked again, up to `tries` times:

    general    the options that it calls the answer or correct must be the key, and nothing else
    options    exactly one option is called TRUE, the key, and each of the others FALSE

That an answer agrees does not make its reasons true; nobody has checked them.
"""

import re
from string import ascii_uppercase
from typing import Literal

from medschool.exams.layout import letter

Way = Literal["general", "options"]

WORKED = """\
# Instruction
Provide analysis about the question, take the following two questions as examples

Question: A runner has a dull pain behind the kneecap, worst on stairs and after sitting for long. Which joint is overloaded?
A. Hip joint
B. Patellofemoral joint
C. Proximal tibiofibular joint
D. Ankle joint
The answer is Option B Patellofemoral joint, so the analysis is: Stairs and a long time with the knee bent press the \
kneecap against the femur, and the pain is felt behind the kneecap. The hip and the ankle would hurt elsewhere, and the proximal \
tibiofibular joint lies at the outer side below the knee. The answer is Option B.

Question: Which electrolyte is lost most with gastric juice in repeated vomiting?
A. Calcium
B. Magnesium
C. Chloride
D. Phosphate
The answer is Option C Chloride, so the analysis is: Gastric juice is rich in hydrochloric acid, so vomiting takes away \
hydrogen and chloride, and a metabolic alkalosis with low chloride follows. Calcium, magnesium and phosphate are found in \
gastric juice in small amounts only. The answer is Option C.

Now help me with another question
"""

_NAMED = (
    r"(?i:\banswer)(?:\s+(?!(?i:not|never|neither)\b)\w+){0,2}?(?:\s+(?i:is)|\s*:)\s*"  # the answer here is
    r"(?:(?:(?i:therefore|thus|hence|clearly|indeed|most|likely|probably)[\s,]+)*[\"'*(\[]*(?i:option|choice)\s+[\"'*(\[]*([A-Z])\b"
    r"|[\"'*(\[]*([A-Z])(?=[\s\"'*)\]]*(?:[.,:;\n]|$|(?i:because|since|as|and|for)\b)))",
    r"(?i:option|choice)\s+[\"'*(\[]*([A-Z])\b[\"'*)\]]*\s+(?i:is|was)\s+(?i:the\s+)?(?i:correct|right|best|answer)\b",
)
"""`The answer is Option B`, `Answer: B.`, `Option B is correct`; not `the answer is A deficiency`, `Option B is not correct`."""
_JUDGED = re.compile(r"(?i:\boption)\s+[\"'*(]*([A-Z])\b[\"'*)]*\s*(?:(?i:is)|:)\s*[\"'*(]*(TRUE|FALSE|True|False)\b")


def prompt(way: Way, question: str, options: tuple[str, ...], answer: int) -> str:
    """The paper's prompt (supplement, `general-wise` and `optional-wise`) for a question with its options already in the text."""
    if way == "general":
        return f"{WORKED}{question}\nThe answer is Option {letter(answer)} {options[answer]}, so the analysis is"
    verdicts = (
        f"Option {name} is {'FALSE' if place else 'TRUE'}. [option analysis for {name}]"
        for place, name in enumerate(ascii_uppercase[: len(options)])
    )
    return f"{question}\nAnswer: {letter(answer)}\nAnalyze each option in detail in the format of\n" + "\n".join(verdicts)


def verdict(way: Way, text: str, options: int) -> str:
    """What a rationale says is right: a letter, several (`A, C`) or `none`; with `, without D` where an option is not judged."""
    if way == "general":
        found = {name for pattern in _NAMED for match in re.finditer(pattern, text) for name in match.groups() if name}
        return ", ".join(sorted(found)) or "none"
    judged = {(name, word.upper()) for name, word in _JUDGED.findall(text)}
    true = ", ".join(sorted(name for name, word in judged if word == "TRUE")) or "none"
    missing = set(ascii_uppercase[:options]) - {name for name, word in judged if word == "FALSE"} - set(true.split(", "))
    twice = {name for name, word in judged if word == "FALSE"} & set(true.split(", "))
    without = f", without {', '.join(sorted(missing))}" if missing else ""
    return true + without + (f", both ways {', '.join(sorted(twice))}" if twice else "")
