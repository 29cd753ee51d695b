"""A protocol: all that decides a score beside the model, under one short hash.

    prompt, worked questions, extraction, policy, exam revision  --sha256-->  12 hex digits, in every row of a score

Scores are comparable when they were made in the same way. Papers say "MedQA, zero-shot" of numbers that differ by tens of points
for one model, so nothing here rests on a name or on a version that somebody must remember to raise. The prompt enters as the text
that the code makes of an invented question: whoever changes a line break changes the hash.

Scores of two hashes are never put in one row: the verdict refuses them. The model's weights, precision and tokenizer do not
enter: they are what is compared.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import pyarrow as pa

from medschool.artifact import digest_of
from medschool.exams.harness import MMLU, PUBMEDQA, context, endings, medmcqa_asked, medqa_asked, mmlu_asked, pubmedqa_asked
from medschool.exams.layout import (
    ANSWER_STEM,
    DECISIONS,
    DIRECT_INSTRUCTIONS,
    RATIONALE_INSTRUCTIONS,
    answer_pattern,
    letter,
    user_text,
)
from medschool.exams.make import revision
from medschool.recipe.evaluation import Exam
from medschool.rows import ExamItem

GENERATED = "generated"
"""The name of the paper's protocol, by which an answer in words is asked for and read (evaluate.answer)."""
THOUGHT = "chain_of_thought"

_QUESTION, _OPTIONS = " Which  one?", ("a  b", " c", "d", "e ")
_SPECIMEN = ExamItem("s:1", "exam", "a subject", "Which one?", ("a", "b", "c", "d"), 2, "", "", "Read this.")
_PUT = user_text(_SPECIMEN, DIRECT_INSTRUCTIONS[0])
_THOUGHT_ABOUT = user_text(_SPECIMEN, RATIONALE_INSTRUCTIONS[0])
_ASKED = {
    "mmlu": mmlu_asked(_QUESTION, _OPTIONS),
    "medqa": medqa_asked(_QUESTION, _OPTIONS),
    "medmcqa": medmcqa_asked(_QUESTION, _OPTIONS),
    "pubmedqa": pubmedqa_asked(_QUESTION, _OPTIONS),
}
"""The invented question in each layout of lm-evaluation-harness."""


@dataclass(frozen=True)
class Protocol:
    """How an exam is scored."""

    prompt: str
    """What is put before the model for an invented question, and the endings it chooses from."""
    shots: str
    """Revision and number of the worked questions; empty where there are none."""
    extraction: str
    """How the option is read from log-probabilities or from a text."""
    policy: str
    """What becomes of an answer or an item that does not fit."""
    exam: str
    """Revision of the questions that are asked (exams.make.revision)."""

    @property
    def hash(self) -> str:
        """12 hex digits."""
        return digest_of(asdict(self))[:12]


@dataclass(frozen=True)
class Sitting:
    """How one exam of a recipe is sat."""

    kind: Literal["letters", "lm_eval", "chain_of_thought"]
    revision: str
    """Of the items that are asked."""
    written_revision: str
    """Of those that are also answered in words."""
    tasks: tuple[str, ...]
    """Layouts of lm-evaluation-harness among them."""
    shots: tuple[ExamItem, ...]
    shot_count: int
    thought_tokens: int | None = None
    """Longest answer of a chain of thought, in tokens."""

    def protocol(self, template: str) -> Protocol:
        """Of the score. `template`: the Jinja text of a conversation."""
        if self.kind == "letters":
            stems = "".join(f"\n{ANSWER_STEM} {letter(index)}" for index in range(4))
            extraction, policy = "highest log-probability; of equal ones by a hash", "an item longer than the context is refused"
            return Protocol(f"{template}\n{_PUT}{stems}", "", extraction, policy, self.revision)
        if self.thought_tokens is not None:
            return _spoken(f"{template}\n{_THOUGHT_ABOUT}", self.thought_tokens, self.revision)
        return Protocol(
            prompt="\n".join(_laid_out(task) for task in self.tasks if task in _ASKED),
            shots=f"{self.shot_count} of {revision(self.shots)}" if self.shot_count else "",
            extraction="highest log-probability, and highest a character; the first of equal ones",
            policy="a context that is too long is cut from the left",
            exam=self.revision,
        )

    def written(self, template: str, answer_tokens: int) -> Protocol:
        """Of answers in words (evaluate.answer)."""
        return _spoken(f"{template}\n{_PUT}", answer_tokens, self.written_revision)


def sitting(spec: Exam, items: Sequence[ExamItem], shots: Sequence[ExamItem]) -> Sitting:
    """How an exam is sat with these items, in this order, and these worked questions."""
    tasks, count = tuple(sorted({item.task for item in items})), spec.shots.count if spec.shots else 0
    written = revision(items[: spec.generated_items])
    return Sitting(spec.protocol, revision(items), written, tasks, tuple(shots), count, spec.thought_tokens)


def protocol_name(spec: Exam) -> str:
    """How people call the protocol of an exam: `letters`, `lm_eval, 3 worked`, `chain_of_thought`."""
    return f"{spec.protocol}, {spec.shots.count} worked" if spec.shots else spec.protocol


def _spoken(prompt: str, most_tokens: int, items: str) -> Protocol:
    extraction = f"{answer_pattern(4)}; of yes, no and maybe also the word it begins with"
    policy = f"greedy, at most {most_tokens} tokens; an answer that cannot be read is wrong"
    return Protocol(prompt, "", extraction, policy, items)


def _laid_out(task: str) -> str:
    """The invented question as its own worked question and once more, with its endings."""
    options = DECISIONS if task == PUBMEDQA else _OPTIONS
    subject = "a subject" if task == MMLU else ""
    item = ExamItem("s:1", "exam", subject, _QUESTION, options, 2, "", "", task=task, asked=_ASKED[task])
    return context(item, [item]) + "".join(f"\n {ending}" for ending in endings(item))


def hashes(scores: pa.Table) -> dict[str, str]:
    """The protocol's hash of each exam in a table of scores with the columns exam and protocol."""
    rows = scores.group_by("exam").aggregate([("protocol", "min")]).sort_by("exam").to_pylist()
    return {row["exam"]: row["protocol_min"] for row in rows}
