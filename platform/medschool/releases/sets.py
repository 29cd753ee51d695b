"""The sets that `medschool fetch` knows: where they are, under which licence, what is in them, and the lines that use them.

Addresses name a revision where the host has any. Digests and sizes are those that the hosts and several users of the same files
publish, and that were compared; `sha256` is None where none was found. The counts are from the papers and cards:

    MedQuAD    Ben Abacha and Demner-Fushman 2019, github.com/abachaa/MedQuAD: 47,441 pairs in the files, 16,407 with their answer
    PubMedQA   Jin et al. 2019, section 3: PQA-L 1,000, PQA-A 211,269; its test set has 500
    MedQA      Jin et al. 2020, table 2 (USMLE): 10,178 / 1,272 / 1,273; the form with four options is the one of PMC-LLaMA
    MedMCQA    Pal et al. 2022: 182,822 / 4,183 / 6,150; the authors' table has the last two the other way round
    MedC-I     Wu et al. 2024, card of axiong/pmc_llama_instructions: 513,999 records in 699,885,733 bytes

What it does not know: the hosts of MedMCQA and of PubMedQA's PQA-A have no revisions, and may ask a program to prove that it is a
person; then a browser brings the file, and `--from` takes it.
"""

from dataclasses import dataclass

GITHUB, HUGGING_FACE = "https://github.com", "https://huggingface.co/datasets"
RAW_GITHUB = "https://raw.githubusercontent.com"
DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="


@dataclass(frozen=True)
class Download:
    """One file of a host."""

    url: str
    file: str
    """Its name, by which it is also known when the user has downloaded it."""
    sha256: str | None = None
    size_bytes: int | None = None


@dataclass(frozen=True)
class Wanted:
    """One file of a set as it lies in the store."""

    name: str
    """Below raw/<set>/."""
    known_as: tuple[str, ...]
    """Glob patterns of paths under which it is released; `*` matches `/` too."""
    format: str
    """The reader or maker that counts its records: one of exams.formats or instructions.formats, or `labels`."""
    records: tuple[int, ...]
    """The counts that are right."""
    sha256: str | None = None
    optional: bool = False
    parts: str = ""
    """Pattern of the many files of the release that it is made of, where it is not released in this form (releases.medquad)."""


@dataclass(frozen=True)
class Release:
    """One set."""

    name: str
    title: str
    licence: str
    """What the user should know before the download."""
    downloads: tuple[Download, ...]
    files: tuple[Wanted, ...]
    recipe: str
    """YAML that uses the set, to be copied into a recipe."""


def _medqa(options: int, split: str, records: int) -> Wanted:
    where = f"*/US/{split}.jsonl" if options == 5 else f"*/US/4_options/phrases_no_exclude_{split}.jsonl"
    return Wanted(f"{options}_options/{split}.jsonl", (where,), "medqa", (records,), optional=options == 5)


_MEDQUAD = "577bd37b96c02d1833b2c9eed2de9f96964e96cb"
_PUBMEDQA = "1cbae8e92f72f20c8d3747cbb3bf5bc53554d997"
_MEDQA = "ddef95d268cdad413693d634279a9a679d468469"
_MEDC_I = "5142689a3888786db7d376e60c16c5c1e7201191"
_PQA_L = "8b3276be8942ebbd77f3ddcda12c1749bf0e490045a736fd8438ee40cf37a41d"
_PQA_TEST = "939fe566f09017d13b1ca64d2ddfee0bc2374b366048152997669cccedc44d51"
_MEDQA_SPLITS = (("train", 10_178), ("dev", 1_272), ("test", 1_273))

RELEASES: dict[str, Release] = {
    release.name: release
    for release in (
        Release(
            name="medquad",
            title="MedQuAD: questions on diseases and drugs, answered from pages of the NIH",
            licence="CC BY 4.0: free to use, name the authors. Three of its collections come without answers, which others own.",
            downloads=(Download(f"{GITHUB}/abachaa/MedQuAD/archive/{_MEDQUAD}.zip", "MedQuAD.zip"),),
            files=(
                Wanted(
                    "medquad.jsonl", ("*/medquad.jsonl", "*/medquad.json"), "medquad", (47_441, 16_407), parts="*_QA/*.xml"
                ),
            ),
            recipe="""\
instructions:
  medquad:
    files: [{uri: raw/medquad/medquad.jsonl, format: medquad}]
    licences: [cc-by]
""",
        ),
        Release(
            name="pubmedqa",
            title="PubMedQA: research questions, answered yes, no or maybe from the abstract",
            licence="MIT for the set; the abstracts are their publishers'. PQA-L is an exam: do not train on it when it is sat. "
            "PQA-A (ori_pqaa.json, github.com/pubmedqa/pubmedqa links to it) is for training; give it with --from.",
            downloads=(
                Download(f"{RAW_GITHUB}/pubmedqa/pubmedqa/{_PUBMEDQA}/data/ori_pqal.json", "ori_pqal.json", _PQA_L, 2_584_787),
                Download(
                    f"{RAW_GITHUB}/pubmedqa/pubmedqa/{_PUBMEDQA}/data/test_ground_truth.json",
                    "test_ground_truth.json", _PQA_TEST, 11_414,
                ),
            ),
            files=(
                Wanted("ori_pqal.json", ("*ori_pqal.json",), "pubmedqa", (1_000,), _PQA_L),
                Wanted("test_ground_truth.json", ("*test_ground_truth.json",), "labels", (500,), _PQA_TEST),
                Wanted("ori_pqaa.json", ("*ori_pqaa.json",), "pubmedqa_answer", (211_269,), optional=True),
            ),
            recipe="""\
exams:
  pubmedqa:
    files: [{uri: raw/pubmedqa/ori_pqal.json, format: pubmedqa}]
    published: pubmedqa
instructions:                              # needs PQA-A, which is given with --from
  pubmedqa:
    files: [{uri: raw/pubmedqa/ori_pqaa.json, format: pubmedqa_answer}]
    licences: [mit]
""",
        ),
        Release(
            name="medqa",
            title="MedQA: questions of the United States medical licensing examination",
            licence="MIT for the repository of its authors (jind11/MedQA); the questions were gathered from the web. "
            "Train on `train`, sit `test`.",
            downloads=(
                Download(
                    f"{HUGGING_FACE}/bigbio/med_qa/resolve/{_MEDQA}/data_clean.zip", "data_clean.zip",
                    "1c2ca8130b3d86d9a99a432ab9bef14f3bb9807bef20facd9ac86ba36960f629", 131_741_885,
                ),
            ),
            files=tuple(_medqa(options, split, records) for options in (4, 5) for split, records in _MEDQA_SPLITS),
            recipe="""\
exams:
  medqa:
    files: [{uri: raw/medqa/4_options/test.jsonl, format: medqa}]
    published: medqa_us_4
instructions:
  medqa:
    files: [{uri: raw/medqa/4_options/train.jsonl, format: medqa}]
    licences: [mit]
""",
        ),
        Release(
            name="medmcqa",
            title="MedMCQA: questions of Indian medical entrance examinations, many with an explanation",
            licence="Apache-2.0 for the set (medmcqa.github.io). Train on `train`, sit `dev`; `test` comes without answers.",
            downloads=(
                Download(
                    f"{DRIVE}15VkJdq5eyWIkfb_aoD3oS8i4tScbHYky", "data.zip",
                    "16c1fbc6f47d548d2af7837b18e893aa45f45c0be9bda0a9adfff3c625bf9262", 55_285_460,
                ),
            ),
            files=(
                Wanted("train.json", ("*/train.json",), "medmcqa", (182_822,)),
                Wanted("dev.json", ("*/dev.json",), "medmcqa", (4_183, 6_150)),
                Wanted("test.json", ("*/test.json",), "medmcqa", (6_150, 4_183), optional=True),
            ),
            recipe="""\
exams:
  medmcqa:
    files: [{uri: raw/medmcqa/dev.json, format: medmcqa}]
    published: medmcqa
instructions:
  medmcqa:
    files: [{uri: raw/medmcqa/train.json, format: medmcqa}]
    licences: [apache-2.0]
  medmcqa_rationale:
    files: [{uri: raw/medmcqa/train.json, format: medmcqa_rationale}]
    licences: [apache-2.0]
""",
        ),
        Release(
            name="medc-i",
            title="MedC-I: the instructions that PMC-LLaMA was tuned with, without the talks of ChatDoctor",
            licence="openrail by its card. It holds training questions of MedQA, MedMCQA and PubMedQA, and texts of the UMLS, "
            "which has a licence of its own.",
            downloads=(
                Download(
                    f"{HUGGING_FACE}/axiong/pmc_llama_instructions/resolve/{_MEDC_I}/release.json", "release.json",
                    size_bytes=699_885_733,
                ),
            ),
            files=(Wanted("release.json", ("*/release.json",), "medc_i", (513_999,)),),
            recipe="""\
instructions:
  medc_i:
    files: [{uri: raw/medc-i/release.json, format: medc_i}]
    licences: [openrail]
""",
        ),
    )
}  # fmt: skip
