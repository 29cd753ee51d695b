"""What the exams and the corpus have in common, beside the scores: items found in each source, and what was withheld for them.

An accuracy means little without it. The rows were not trained on, so a found item is not a leaked one; many found items say that
the source was written from exam questions, and that others, put in other words, are likely to stand in it too. So every score is
told once more without the items that were found (medschool.ablate.exam_scores).
"""

from collections.abc import Mapping
from typing import Any

from medschool.artifact import Artifact
from medschool.overlap.search import read_overlap


def contamination(overlap: Mapping[str, Artifact], withheld: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """One entry for each exam and source, from the stages of each source, as plain JSON values.

    items: of the exam. found: how many of them stand in the source. documents: of the source that hold any. rows: of tokens that
    are withheld for this exam; a row can be withheld for several. A `withheld` made before the exam was there knows none of it.
    """
    rows = {source: made.facts["exams"] for source, made in withheld.items()}
    return [
        {"exam": exam, "source": source, **counts, "rows": rows[source].get(exam, {"rows": 0})["rows"]}
        for source, made in sorted(overlap.items())
        for exam, counts in sorted(made.facts["exams"].items())
    ]


def found_items(overlap: Mapping[str, Artifact]) -> dict[str, frozenset[str]]:
    """Ids of the items of each exam that stand in any source, by exam; an exam that no stage looked for is not in it."""
    found: dict[str, set[str]] = {exam: set() for made in overlap.values() for exam in made.facts["exams"]}
    for made in overlap.values():
        pairs = read_overlap(made)
        for exam, item in zip(pairs.column("exam").to_pylist(), pairs.column("item").to_pylist(), strict=True):
            found[exam].add(item)
    return {exam: frozenset(ids) for exam, ids in found.items()}
