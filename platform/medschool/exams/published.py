"""What the published exams are: how many questions, how many options, which subjects, and the files that we have seen.

A score on "MedQA" is comparable when it is a score on the same questions. `exams.<name>.published` names an entry of this table,
and the exams stage then refuses files of another size. A file that could not be read in every line is short by those lines, and
that much is allowed, as it is counted elsewhere: what was read must not exceed the size, and the malformed lines must make up
what lacks.

    name              questions   options     what it is, and where the number stands
    medqa_us_4        1,273       4           MedQA, USMLE, test split (Jin et al. 2020; PMC-LLaMA section 4)
    medqa_us_5        1,273       5           the same questions with the fifth option
    medmcqa           4,183       4           MedMCQA's labelled held-out questions (Pal et al. 2022)
    pubmedqa          1,000       3           PubMedQA PQA-L, all (Jin et al. 2019); PMC-LLaMA's
    pubmedqa_500      500         3           its official test half, by the ids of test_ground_truth.json; the harness's
    mmlu_medical_6    1,089       4           six subjects of MMLU's test split (Hendrycks et al. 2021; Singhal et al. 2023)
    mmlu_medical_9    1,871       4           and virology, high school biology and nutrition (Meditron, which has 1,862 of them)
    mmlu_general      10,660      4           every other subject but those about the body and the mind; to see what was forgotten

The 4,183 of MedMCQA are called `validation` in the copy on Hugging Face and `test` in the authors' README; the other 6,150 have
no published answers, and no score can be made of them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medschool.errors import InputError
from medschool.rows import Dropped, ExamItem

MEDICAL_6 = {
    "anatomy": 135,
    "clinical knowledge": 265,
    "college biology": 144,
    "college medicine": 173,
    "medical genetics": 100,
    "professional medicine": 272,
}
MEDICAL_9 = MEDICAL_6 | {"virology": 166, "high school biology": 310, "nutrition": 306}
"""Questions of each subject in MMLU's test split."""
GENERAL = {
    "abstract algebra": 100,
    "astronomy": 152,
    "business ethics": 100,
    "college chemistry": 100,
    "college computer science": 100,
    "college mathematics": 100,
    "college physics": 102,
    "computer security": 100,
    "conceptual physics": 235,
    "econometrics": 114,
    "electrical engineering": 145,
    "elementary mathematics": 378,
    "formal logic": 126,
    "global facts": 100,
    "high school chemistry": 203,
    "high school computer science": 100,
    "high school european history": 165,
    "high school geography": 198,
    "high school government and politics": 193,
    "high school macroeconomics": 390,
    "high school mathematics": 270,
    "high school microeconomics": 238,
    "high school physics": 151,
    "high school statistics": 216,
    "high school us history": 204,
    "high school world history": 237,
    "international law": 121,
    "jurisprudence": 108,
    "logical fallacies": 163,
    "machine learning": 112,
    "management": 103,
    "marketing": 234,
    "moral disputes": 346,
    "philosophy": 311,
    "prehistory": 324,
    "professional accounting": 282,
    "professional law": 1534,
    "public relations": 110,
    "security studies": 245,
    "sociology": 201,
    "us foreign policy": 100,
    "world religions": 171,
    "moral scenarios": 895,
    "miscellaneous": 783,
}
"""All subjects but MEDICAL_9, human aging, human sexuality, high school psychology and professional psychology."""


@dataclass(frozen=True)
class Published:
    """The size of an exam as it was published."""

    questions: int
    options: int
    subjects: Mapping[str, int] = field(default_factory=dict)
    """Questions of each, where the exam is a choice of subjects."""
    by_ids: bool = False
    """Whether a file of ids says which questions are in it."""
    sha256: tuple[str, ...] = ()
    """Of files that we have seen, unpacked; others may hold the same questions."""


PQA_L = "8b3276be8942ebbd77f3ddcda12c1749bf0e490045a736fd8438ee40cf37a41d"
"""ori_pqal.json of pubmedqa/pubmedqa at commit 1cbae8e."""

PUBLISHED = {
    "medqa_us_4": Published(1273, 4),
    "medqa_us_5": Published(1273, 5),
    "medmcqa": Published(4183, 4),
    "pubmedqa": Published(1000, 3, sha256=(PQA_L,)),
    "pubmedqa_500": Published(500, 3, by_ids=True, sha256=(PQA_L,)),
    "mmlu_medical_6": Published(1089, 4, MEDICAL_6),
    "mmlu_medical_9": Published(1871, 4, MEDICAL_9),
    "mmlu_general": Published(sum(GENERAL.values()), 4, GENERAL),
}


def published(name: str, where: str) -> Published:
    """The entry of PUBLISHED; InputError at `where`, naming those there are, for any other name."""
    if name not in PUBLISHED:
        raise InputError(f"there is no published exam {name!r}", f"use one of {', '.join(PUBLISHED)}", where)
    return PUBLISHED[name]


def check_size(known: Published, items: Sequence[ExamItem], dropped: Sequence[Dropped], where: str) -> None:
    """Raises InputError at `where` unless these are the questions of a published exam, as far as their numbers tell.

    items: as read, of the wanted subjects and ids, repeats included. dropped: every line of the files that is no item.
    """
    _check_options(known, items, where)
    malformed = sum(row.step == "malformed" for row in dropped)
    lacking = {"questions": known.questions - len(items)}
    if known.subjects:
        found = Counter(item.subject for item in items)
        lacking = {f"questions of {subject}": count - found[subject] for subject, count in known.subjects.items()}
    wrong = next((what for what, count in lacking.items() if count < 0), "")
    if wrong or sum(lacking.values()) > malformed:
        what = wrong or max(lacking, key=lambda name: lacking[name])
        expected = known.subjects.get(what.removeprefix("questions of "), known.questions)
        lost = f"{malformed} malformed and {sum(row.step == 'unlabelled' for row in dropped)} unlabelled lines"
        raise InputError(
            f"{expected - lacking[what]:,} {what}, beside {lost}; published are {expected:,}",
            "name the file of the labelled test split alone, or leave `published` out",
            where,
        )


def _check_options(known: Published, items: Sequence[ExamItem], where: str) -> None:
    for item in items:
        if len(item.options) != known.options:
            raise InputError(
                f"{item.id} of {item.uri} has {len(item.options)} options, each question as published has {known.options}",
                "name the file of this exam; MedQA has one with four and one with five options",
                where,
            )
