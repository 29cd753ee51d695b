"""MedC-I, the instructions that PMC-LLaMA was tuned with (Wu et al. 2024), in the form of the release.

    {"instruction": ..., "input": ..., "output": ..., "source": "medqa_train", "sample_id": 7}

That is `release.json` of axiong/pmc_llama_instructions, a JSON array of 513,999 records, and its mirror in Parquet. `source` says
what a record is, and so its kind, one of the components of the paper's ablation:

    medqa_train, medmcqa      exam, or rationale where the output has `###Rationale`
    pubmedqa.ori_pqaa         conversation: the abstract's own long answer
    liveqa, medicationqa      conversation
    umls, umls_relation       graph

An exam's answer must name an option, and one that the input lists. `sample_id` is read by nobody: it is filled in for one source.
The licence is `openrail`, the tag on the dataset's card.
"""

import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from medschool.exams.layout import letter, parse_answer
from medschool.instructions.alpaca import alpaca_messages
from medschool.instructions.fields import malformed, text_of
from medschool.rows import Message

EXAMS = ("medqa_train", "medmcqa")
KINDS = {
    "medqa_train": "exam",
    "medmcqa": "exam",
    "pubmedqa.ori_pqaa": "conversation",
    "liveqa": "conversation",
    "medicationqa": "conversation",
    "umls": "graph",
    "umls_relation": "graph",
}
RATIONALE = "###Rationale"
_OPTION = re.compile(r"^([A-Z])\. ", re.MULTILINE)


def medc_i(values: Mapping[str, Any]) -> tuple[str, tuple[Message, ...]]:
    """The messages of one record. Raises Refused, also for a source that the release does not have."""
    source = text_of(values, "source")
    if source not in KINDS:
        raise malformed(f"source is {source!r:.60}, not one of {', '.join(KINDS)}")
    user, assistant = alpaca_messages(values)
    if source not in EXAMS:
        return KINDS[source], (user, assistant)
    _check_answer(user.content, assistant.content)
    return "rationale" if RATIONALE in assistant.content else KINDS[source], (user, assistant)


def _check_answer(question: str, answer: str) -> None:
    named = parse_answer(answer, len(ascii_uppercase))
    options = _OPTION.findall(question)
    if named is None:
        raise malformed("output names no option as correct, as in `###Answer: OPTION B IS CORRECT.`")
    if letter(named) not in options:
        raise malformed(f"output names option {letter(named)}, the input has {', '.join(options) or 'no options'}")
