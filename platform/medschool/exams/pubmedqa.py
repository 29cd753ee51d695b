"""Questions of PubMedQA (Jin et al. 2019, licence MIT): one JSON object by PMID, as ori_pqal.json and the files split from it.

    {"111": {"QUESTION": ..., "CONTEXTS": [...], "LABELS": [...], "final_decision": "yes", "LONG_ANSWER": ...}, ...}

The question is a paper's title, the context its abstract without the conclusion, which is the long answer. Options are yes, no
and maybe. Questions without a decision (ori_pqau.json) are dropped as unlabelled.
"""

import json
from collections.abc import Iterator
from typing import Any

from medschool.errors import InputError
from medschool.exams.harness import PUBMEDQA, pubmedqa_asked
from medschool.exams.layout import DECISIONS
from medschool.exams.records import SAMPLE_CHARS, decoded, one_line, paragraphs, text_problem
from medschool.rows import Dropped, ExamItem

SUBJECT = "pubmed"


def pubmedqa(data: bytes, uri: str, name: str) -> Iterator[ExamItem | Dropped]:
    """One row a PMID, in the order of the file; the id is `pubmed:<PMID>`. Raises InputError when the file is no such object."""
    for pmid, record in pubmedqa_records(data, uri):
        yield pubmedqa_row(pmid, record, uri, name)


def pubmedqa_row(pmid: str, record: Any, uri: str, name: str) -> ExamItem | Dropped:
    """The question of one record, or why there is none."""
    key = f"{SUBJECT}:{pmid}"
    problem = _problem(record)
    decision = record.get("final_decision") if isinstance(record, dict) else None
    sample = str(record.get("QUESTION", "") if isinstance(record, dict) else record)[:SAMPLE_CHARS]
    if problem or (decision is not None and decision not in DECISIONS):
        reason = problem or f"final_decision is {decision!r:.60}, not one of {', '.join(DECISIONS)}"
        return Dropped(key, name, "malformed", f"{key}: {reason}", sample, uri)
    if decision is None:
        return Dropped(key, name, "unlabelled", "no final_decision", sample, uri)
    answer, context = DECISIONS.index(decision), "\n".join(paragraphs(part) for part in record["CONTEXTS"])
    why = one_line(str(record.get("LONG_ANSWER") or ""))
    read = (paragraphs(record["QUESTION"]), DECISIONS, answer, why, uri, context)
    return ExamItem(key, name, SUBJECT, *read, task=PUBMEDQA, asked=pubmedqa_asked(record["QUESTION"], record["CONTEXTS"]))


def pubmedqa_records(data: bytes, uri: str) -> Iterator[tuple[str, Any]]:
    """(PMID, record) of the whole file. Raises InputError when it is not one JSON object."""
    try:
        found = json.loads(decoded(data, uri))
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error})", "fetch the file again, and check its `format` in the recipe", uri) from error
    if not isinstance(found, dict):
        raise InputError("not a JSON object of questions by PMID", "check the `format` of this file in the recipe", uri)
    yield from found.items()


def _problem(record: Any) -> str:
    if not isinstance(record, dict):
        return "not a JSON object"
    if wrong := text_problem(record, ("QUESTION",)):
        return wrong
    contexts = record.get("CONTEXTS")
    if not isinstance(contexts, list) or not contexts or not all(isinstance(part, str) and part.strip() for part in contexts):
        return "CONTEXTS is not a list of texts"
    return ""
