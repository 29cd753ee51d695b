"""Questions as lm-evaluation-harness 0.4.13 puts them, so that a score can be set beside those that are published with it.

    description, worked questions, the question up to `Answer:`  ->  " A" | " B" | " C" | " D", or " yes" | " no" | " maybe"

One layout for each of its tasks that ask what our readers read. A layout is text alone: no chat template, no instruction. It is
made of the texts exactly as the file has them, with double spaces and all, which is why a reader lays a question out while it has
the record at hand (`ExamItem.asked`).

    task      lm-evaluation-harness (lm_eval/tasks)      worked questions
    medqa     medqa_4options                             the first of their file
    medmcqa   medmcqa                                    the first of their file
    pubmedqa  pubmedqa                                   the first of their file
    mmlu      mmlu_<subject>, with a description         the first of their subject, as MMLU's development set has them

The harness draws the worked questions of the first three at random, anew for each item; with its sampler `first_n` it takes the
first ones, as here. Without worked questions there is no difference.
"""

from collections.abc import Sequence

from medschool.exams.layout import letter
from medschool.rows import ExamItem

MMLU, MEDQA, MEDMCQA, PUBMEDQA = TASKS = ("mmlu", "medqa", "medmcqa", "pubmedqa")
BETWEEN = "\n\n"
"""The harness's `fewshot_delimiter`; its `target_delimiter` is one space."""


def mmlu_asked(question: str, options: Sequence[str]) -> str:
    """tasks/mmlu/default/_default_template_yaml"""
    return f"{question.strip()}\n{_lettered(options)}Answer:"


def medqa_asked(question: str, options: Sequence[str]) -> str:
    """tasks/medqa/preprocess_medqa.py"""
    return f"Question: {question}\n{_lettered(options)}Answer:"


def medmcqa_asked(question: str, options: Sequence[str]) -> str:
    """tasks/medmcqa/utils_medmcqa.py"""
    return f"Question: {question}\nChoices:\n{_lettered(options)}Answer:"


def pubmedqa_asked(question: str, contexts: Sequence[str]) -> str:
    """tasks/pubmedqa/preprocess_pubmedqa.py"""
    abstract = "\n".join(contexts)
    return f"Abstract: {abstract}\nQuestion: {question}\nAnswer:"


def _lettered(options: Sequence[str]) -> str:
    return "".join(f"{letter(index)}. {option}\n" for index, option in enumerate(options))


def endings(item: ExamItem) -> tuple[str, ...]:
    """What may follow `Answer:` and a space: the words of PubMedQA, else the letters."""
    return item.options if item.task == PUBMEDQA else tuple(letter(index) for index in range(len(item.options)))


def context(item: ExamItem, shots: Sequence[ExamItem]) -> str:
    """All that stands before the ending: MMLU's description, the worked questions with their answers, the question."""
    worked = "".join(f"{shot.asked} {endings(shot)[shot.answer]}{BETWEEN}" for shot in shots)
    return f"{_description(item)}{worked}{item.asked}"


def shots_of(item: ExamItem, shots: Sequence[ExamItem], count: int) -> list[ExamItem]:
    """The first `count` worked questions that belong before `item`, or as many as there are: of MMLU those of its subject."""
    return [shot for shot in shots if item.task != MMLU or shot.subject == item.subject][:count]


def _description(item: ExamItem) -> str:
    """tasks/mmlu/default/mmlu_<subject>.yaml; no other task has one."""
    known = f"The following are multiple choice questions (with answers) about {item.subject}.{BETWEEN}"
    return known if item.task == MMLU else ""
