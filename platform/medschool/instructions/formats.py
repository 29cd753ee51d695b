"""The formats of instruction data that a recipe can name, and the maker of each.

A maker takes one file as a stream, already unpacked (the caller removes gzip), and yields conversations and what did not become
one. It raises InputError, with the file and the line, where the file breaks off or is something else. The seed chooses wordings
and orders; the same bytes, name and seed give the same rows, and ids do not depend on the seed. A maker that needs its file in
one piece is wrapped by `whole`.

    format              from                                        kind          licence
    mmlu                MMLU test questions, JSON lines             exam          mit
    medqa               MedQA (USMLE), JSON lines                   exam          mit
    medmcqa             MedMCQA, JSON lines; also with _from_0, _1  exam          apache-2.0
    pubmedqa            PubMedQA, decided questions                 exam          mit
    mmlu_rationale      MMLU worked questions, YAML                 rationale     mit
    medmcqa_rationale   MedMCQA, questions with an explanation      rationale     apache-2.0
    medline_conclusion  MEDLINE, titles that ask a question         conversation  nlm-medline or publisher-copyright, by record
    umls                UMLS, the four RRF files of a release       graph         umls
    obo_graph           MONDO, DOID, HPO or another, OBO            graph         cc-by, cc0, hpo or unstated, by prefix
    obographs           the same in OBO Graphs JSON                 graph         the same
    hpo_graph           HPO, without synonyms, OBO                  graph         hpo
    icd10cm_dialogue    ICD-10-CM tabular list, XML                 conversation  public-domain
    medc_i *            MedC-I, PMC-LLaMA's released set            by source     openrail
    alpaca *            {instruction, input, output}                conversation  unstated
    sharegpt *          talks of several turns                      conversation  unstated
    medquad *           MedQuAD, questions with answers             conversation  cc-by
    pubmedqa_answer     PubMedQA, answered by the conclusion        conversation  mit

    * as a JSON array or JSON lines; with _parquet in Parquet; with _datasets as Arrow files of a saved Hugging Face dataset

A set can be made from a source of the recipe instead of files: medschool.instructions.from_corpus.

`unstated` is no licence: a recipe that trains on such a set says with `licence` what it has found.

Those made from exam questions have subjects (`subject_of`). The caller filters by them, over all files of a set, because a file
may hold one subject only: no maker can tell a misspelt subject from that of another file.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO, TypeAlias

from medschool.exams.formats import EXAM_FORMATS
from medschool.exams.records import subject_name
from medschool.instructions.alpaca import ANSWERS, COLUMNS, alpaca
from medschool.instructions.dialogue import icd10cm_dialogue
from medschool.instructions.exam import direct, explained
from medschool.instructions.graph import hpo_graph, obo_graph, obographs
from medschool.instructions.layouts import Layout, formats_of
from medschool.instructions.medc_i import medc_i
from medschool.instructions.medquad import medquad
from medschool.instructions.pubmedqa import pubmedqa_answer, pubmedqa_direct
from medschool.instructions.rationale import mmlu_rationale
from medschool.instructions.sharegpt import sharegpt
from medschool.instructions.title import medline_conclusion
from medschool.instructions.umls import umls
from medschool.instructions.whole import whole
from medschool.rows import Conversation, Dropped, LeftOut

Maker: TypeAlias = Callable[[BinaryIO, str, str, int], Iterator[Conversation | Dropped | LeftOut]]
"""(stream, uri, name of the set, seed) -> rows in the order of the file. `stream.name` is where the file is."""

OF_QUESTIONS = ("fixed_order", "malformed", "no_rationale", "unlabelled")
"""Steps that drop an exam question, or one of the conversations made from it."""
LICENCES = {"mmlu": "mit", "medqa": "mit", "medmcqa": "apache-2.0", "pubmedqa": "mit"}

INSTRUCTION_FORMATS: dict[str, Maker] = {
    **{
        name: whole(partial(direct, reader=reader, licence=LICENCES[name.partition("_")[0]]))
        for name, reader in EXAM_FORMATS.items()
        if name.partition("_")[0] in LICENCES and name != "pubmedqa"  # an exam of one's own has no licence that we know
    },
    "pubmedqa": pubmedqa_direct,
    "medmcqa_rationale": whole(partial(explained, reader=EXAM_FORMATS["medmcqa"], licence=LICENCES["medmcqa"])),
    "mmlu_rationale": whole(mmlu_rationale),
    "medline_conclusion": medline_conclusion,
    "umls": umls,
    "obo_graph": whole(obo_graph),
    "obographs": whole(obographs),
    "hpo_graph": whole(hpo_graph),
    "icd10cm_dialogue": icd10cm_dialogue,
    "pubmedqa_answer": pubmedqa_answer,
    **formats_of("medc_i", Layout(medc_i, (*COLUMNS, "source"), ("source",), "openrail")),
    **formats_of("alpaca", Layout(alpaca, COLUMNS, ANSWERS, "unstated")),
    **formats_of("sharegpt", Layout(sharegpt, ("conversations",), ("conversations",), "unstated")),
    **formats_of("medquad", Layout(medquad, ("question", "answer"), ("answer",), "cc-by")),
}


def subject_of(row: Conversation | Dropped) -> str | None:
    """Subject of what was made from an exam question, such as `clinical knowledge`; None for anything else.

    The caller filters over all files of a set, because one file may hold one subject only. A line that could not be read at all
    has no subject: its id is its place in the file.
    """
    exam = row.kind in ("exam", "rationale") if isinstance(row, Conversation) else row.step in OF_QUESTIONS
    head = row.id.partition(":")[0]
    return subject_name(head) if exam and "/" not in head and "." not in head else None
