"""The formats of instruction data that a recipe can name, and the maker of each.

A maker takes one whole file, already unpacked (the caller removes gzip), and yields conversations and what did not become one. It
raises InputError, with the file and the line, where the file as a whole cannot be read. The seed chooses wordings and orders;
the same bytes, name and seed give the same rows, and ids do not depend on the seed.

    format              from                                        kind          licence
    mmlu                MMLU test questions, JSON lines             exam          mit
    medqa               MedQA (USMLE), JSON lines                   exam          mit
    medmcqa             MedMCQA, JSON lines; also with _from_0, _1  exam          apache-2.0
    pubmedqa            PubMedQA, decided questions                 exam          mit
    mmlu_rationale      MMLU worked questions, YAML                 rationale     mit
    medmcqa_rationale   MedMCQA, questions with an explanation      rationale     apache-2.0
    medline_conclusion  MEDLINE, titles that ask a question         conversation  nlm-medline or publisher-copyright, by record
    hpo_graph           Human Phenotype Ontology, OBO               graph         hpo
    icd10cm_dialogue    ICD-10-CM tabular list, XML                 conversation  public-domain

Those made from exam questions have subjects (`subject_of`). The caller filters by them, over all files of a set, because a file
may hold one subject only: no maker can tell a misspelt subject from that of another file.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

from medschool.exams.formats import EXAM_FORMATS
from medschool.exams.records import subject_name
from medschool.instructions.dialogue import icd10cm_dialogue
from medschool.instructions.exam import direct, explained
from medschool.instructions.graph import hpo_graph
from medschool.instructions.rationale import mmlu_rationale
from medschool.instructions.title import medline_conclusion
from medschool.rows import Conversation, Dropped

Maker: TypeAlias = Callable[[bytes, str, str, int], Iterator[Conversation | Dropped]]
"""(data, uri, name of the set, seed) -> rows in the order of the file."""

OF_QUESTIONS = ("fixed_order", "malformed", "no_rationale", "unlabelled")
"""Steps that drop an exam question, or one of the conversations made from it."""
LICENCES = {"mmlu": "mit", "medqa": "mit", "medmcqa": "apache-2.0", "pubmedqa": "mit"}

INSTRUCTION_FORMATS: dict[str, Maker] = {
    **{name: partial(direct, reader=reader, licence=LICENCES[name.partition("_")[0]]) for name, reader in EXAM_FORMATS.items()},
    "medmcqa_rationale": partial(explained, reader=EXAM_FORMATS["medmcqa"], licence=LICENCES["medmcqa"]),
    "mmlu_rationale": mmlu_rationale,
    "medline_conclusion": medline_conclusion,
    "hpo_graph": hpo_graph,
    "icd10cm_dialogue": icd10cm_dialogue,
}


def subject_of(row: Conversation | Dropped) -> str | None:
    """Subject of what was made from an exam question, such as `clinical knowledge`; None for anything else.

    The caller filters over all files of a set, because one file may hold one subject only. A line that could not be read at all
    has no subject: its id is its place in the file.
    """
    exam = row.kind in ("exam", "rationale") if isinstance(row, Conversation) else row.step in OF_QUESTIONS
    head = row.id.partition(":")[0]
    return subject_name(head) if exam and "/" not in head and "." not in head else None
