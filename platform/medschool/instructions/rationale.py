"""Worked exam questions become conversations: the assistant explains, then names the option.

The files are those of lm-evaluation-harness, lm_eval/tasks/mmlu/flan_cot_fewshot/mmlu_<subject>.yaml, licence MIT: for each
subject a few questions of MMLU's development set, with rationales written for chain-of-thought prompts. What is the same in every
rationale (`Let's think step by step.`, `We refer to Wikipedia articles on X for help.`, `The answer is (B).`) is not kept. The
rationales are as the files have them, a few of them wrong in a step. A few of the questions are also test questions of MMLU under
another subject, so the overlap check is not optional here.

Price: 1,500 questions a second and core, nearly all of it YAML.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from medschool.errors import InputError
from medschool.exams.layout import letter
from medschool.exams.records import decoded, equal_options, one_line, subject_key, subject_name
from medschool.instructions.exam import with_rationale
from medschool.rows import Conversation, Dropped, ExamItem

SAMPLE_CHARS = 200
LICENCE = "mit"

_OPTIONS = re.compile(r"(.*\S)\s*\(A\)(.*)\(B\)(.*)\(C\)(.*)\(D\)(.*)", re.DOTALL)
_ANSWER = re.compile(r"The answer is \(([A-D])\)\.?\s*$")
_BOILERPLATE = re.compile(
    r"Let['\u2019]s (?:think|solve this problem) step by step\.\s*|We refer to Wikipedia articles? on [^.]{1,80} for help\.\s*"
)


def mmlu_rationale(data: bytes, uri: str, name: str, seed: int) -> Iterator[Conversation | Dropped]:
    """One conversation a worked question, `<subject>:sample<number>:rationale`. A sample that cannot be read is `malformed`.
    Raises InputError when the file is not YAML with `dataset_name` and `fewshot_config.samples`.
    """
    subject, samples = _samples(data, uri)
    for number, sample in enumerate(samples, start=1):
        item = _item(sample, f"{subject_key(subject)}:sample{number}", subject, uri, name)
        yield item if isinstance(item, Dropped) else with_rationale(item, item.rationale, seed, LICENCE)


def _samples(data: bytes, uri: str) -> tuple[str, list[Any]]:
    """Subject and samples of one file."""
    try:
        found = yaml.safe_load(decoded(data, uri))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{uri}:{mark.line + 1}" if mark else uri
        raise InputError("not YAML", "fetch the file again, and check its `format` in the recipe", where) from error
    subject = found.get("dataset_name") if isinstance(found, dict) else None
    config = found.get("fewshot_config") if isinstance(found, dict) else None
    samples = config.get("samples") if isinstance(config, dict) else None
    if not isinstance(subject, str) or not isinstance(samples, list):
        problem = "no `dataset_name` with `fewshot_config.samples`"
        raise InputError(problem, "check the `format` of this file in the recipe", uri)
    return subject_name(subject), samples


def _item(sample: Any, item_id: str, subject: str, uri: str, name: str) -> ExamItem | Dropped:
    question, target = (str(sample.get(key, "")) for key in ("question", "target")) if isinstance(sample, dict) else ("", "")
    parts, answer = _OPTIONS.fullmatch(question), _ANSWER.search(target)
    options = [one_line(part) for part in parts.groups()[1:]] if parts else []
    rationale = one_line(_BOILERPLATE.sub("", target[: answer.start()])) if answer else ""
    pair = equal_options(options)
    for wrong, reason in (
        (not parts, "question: no options (A) to (D)"),
        (not all(options), "question: an option is empty"),
        (pair is not None, f"question: options {' and '.join(map(letter, pair or ()))} are equal"),
        (not answer, "target: does not end in `The answer is (A).` or another letter of the options"),
        (not rationale, "target: no rationale before the answer"),
    ):
        if wrong:
            return Dropped(item_id, name, "malformed", reason, (question or str(sample))[:SAMPLE_CHARS], uri)
    assert parts and answer
    index = "ABCD".index(answer[1])
    return ExamItem(item_id, name, subject, one_line(parts[1]), tuple(options), index, rationale, uri)
