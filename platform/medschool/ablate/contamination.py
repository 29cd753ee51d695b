"""What the exams have in common with what is trained on, beside the scores: items found in each source and set, and what was kept
out of training for them.

    source of text          the rows in which a document that holds an item stands are withheld (medschool.tokens.withheld)
    set of instructions     the conversation that holds an item is removed (medschool.instructions.check)

An accuracy means little without it. What was found was not trained on, so a found item is not a leaked one; many found items say
that the source was written from exam questions, and that others, put in other words, are likely to stand in it too. So every
score is told once more without the items that were found (medschool.ablate.exam_scores).
"""

from collections.abc import Mapping
from typing import Any

from medschool.artifact import Artifact
from medschool.overlap.search import OVERLAP, REMOVED, read_overlap


def contamination(
    overlap: Mapping[str, Artifact], withheld: Mapping[str, Artifact], instructions: Mapping[str, Artifact]
) -> list[dict[str, Any]]:
    """One entry for each exam and source, then for each exam and set, from their stages by name, as plain JSON values.

    source: its name, `instructions/<set>` for a set. items: of the exam. found: how many of them stand in it. documents: of the
    source that hold any, or conversations. rows: of tokens that are withheld for this exam; a row can be withheld for several,
    and none need be of a set. A `withheld` made before the exam was there knows none of it.
    """
    rows = {source: made.facts["exams"] for source, made in withheld.items()}
    return [
        {"exam": exam, "source": source, **counts, "rows": rows[source].get(exam, {"rows": 0})["rows"]}
        for source, made in sorted(overlap.items())
        for exam, counts in sorted(made.facts["exams"].items())
    ] + [
        {"exam": exam, "source": f"instructions/{name}", **counts, "rows": 0}
        for name, made in sorted(instructions.items())
        for exam, counts in sorted(made.facts["exams"].items())
    ]


def found_items(overlap: Mapping[str, Artifact], instructions: Mapping[str, Artifact]) -> dict[str, frozenset[str]]:
    """Ids of the items of each exam that stand in any source or set, by exam; an exam that no stage looked for is not in it."""
    looked = [(made, OVERLAP) for made in overlap.values()] + [(made, REMOVED) for made in instructions.values()]
    found: dict[str, set[str]] = {exam: set() for made, _ in looked for exam in made.facts["exams"]}
    for made, path in looked:
        pairs = read_overlap(made, path)
        for exam, item in zip(pairs.column("exam").to_pylist(), pairs.column("item").to_pylist(), strict=True):
            found[exam].add(item)
    return {exam: frozenset(ids) for exam, ids in found.items()}
