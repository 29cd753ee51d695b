"""The exam formats that a recipe can name, and the reader of each.

A reader takes the whole file, already unpacked (the caller removes gzip), and yields one row for each record in it: an ExamItem,
or a Dropped with the step `malformed` (and the place and key that spoil it) or `unlabelled`. A file that cannot be read as a
whole raises InputError.

    format      exam                    file                                        options
    mmlu        MMLU                    JSON lines, two forms                       4
    mmlu_csv    MMLU                    <subject>_test.csv, as released             4
    medqa       MedQA (USMLE)           JSON lines, three forms                     4 or 5
    medmcqa     MedMCQA                 JSON lines; `cop` from 0 or 1, told apart   4
    pubmedqa    PubMedQA                one JSON object by PMID                     yes, no, maybe; with context
    plain       any of one's own        JSON lines (exams/plain.py says which keys) 2 to 26; context where it has one

Parquet and Arrow files, as the directories of `datasets` have them, are read as their rows in JSON lines (exams/tabular.py).
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

from medschool.exams.medmcqa import medmcqa, medmcqa_from_0, medmcqa_from_1
from medschool.exams.medqa import medqa
from medschool.exams.mmlu import mmlu, mmlu_csv
from medschool.exams.plain import plain
from medschool.exams.pubmedqa import pubmedqa
from medschool.rows import Dropped, ExamItem

ExamReader: TypeAlias = Callable[[bytes, str, str], Iterator[ExamItem | Dropped]]
"""(data, uri, name of the exam) -> rows in the order of the file."""

EXAM_FORMATS: dict[str, ExamReader] = {
    "mmlu": mmlu,
    "mmlu_csv": mmlu_csv,
    "medqa": medqa,
    "medmcqa": medmcqa,
    "medmcqa_from_0": medmcqa_from_0,
    "medmcqa_from_1": medmcqa_from_1,
    "pubmedqa": pubmedqa,
    "plain": plain,
}
