"""The corpus stage as a Ray Data job: raw files of one source -> cleaned, distinct documents.

    raw files --read_part, one task a part--> work folder --repeats, on the driver--> copies to leave out
    work folder + copies --finish_part, one task a part--> documents/*.parquet   what the models are trained on
                                                           dropped/*.parquet     what was left out on purpose, and why
                                                           quarantine/*.parquet  what is broken, or holds people: under a budget
    counts of every step --> funnel.parquet, funnel.html   what went in, what each step took, what is left; with samples

Only names of parts, rows of copies and counts travel through Ray; texts go from the worker that read them straight to the store.
A killed job leaves its work folder to the next one, which reads no part again that was marked as done (corpus.parts).
"""

import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any, TypeVar

import ray

from medschool.artifact import ArtifactFile, Output, write_file, write_parquet
from medschool.corpus.admit import CHECKS, QUARANTINE, terms_of
from medschool.corpus.budget import check_budget, nothing_left
from medschool.corpus.canaries import canary_documents
from medschool.corpus.finish import Finished, finish_part, hashes_of, repeats
from medschool.corpus.funnel import Funnel, page
from medschool.corpus.funnel import table as funnel_table
from medschool.corpus.marks import Mark, marks_in
from medschool.corpus.parts import parts_of, read_part
from medschool.recipe import Recipe
from medschool.rows import DOCUMENT_SCHEMA, Document, table

READ_CPUS = 0.5
Job = TypeVar("Job")


def make_corpus(recipe: Recipe, source: str, store_uri: str, prefix_uri: str, work_uri: str) -> Output:
    """Read, clean and deduplicate one source. work_uri: folder that attempts share; the caller removes it after the commit.

    Raises InputError for a pattern without files or a list of retracted ids that is none, StorageError where the store fails,
    StageError when more is broken than the recipe allows, or when nothing is left.
    """
    parts, terms = parts_of(recipe, source, store_uri), terms_of(recipe, source, store_uri)
    done = marks_in(work_uri)
    _each(lambda part: read_part(part, terms, work_uri), [part for part in parts if part.number not in done])
    marks = list(marks_in(work_uri).values())
    check_budget(parts, marks, recipe.clean, source, work_uri)
    copies = repeats(hashes_of(marks, work_uri))
    finished: list[Finished] = _each(lambda job: finish_part(*job, work_uri, prefix_uri), list(zip(marks, copies, strict=True)))
    finished.sort(key=lambda part: part.part)
    planted = canary_documents(recipe, source)
    facts = _facts(marks, finished, planted)
    if not facts["documents"]:
        raise nothing_left(facts["read"], facts["dropped"] | facts["quarantined"], marks, source)
    files = [file for part in finished for file in part.files]
    if planted:
        files.append(write_parquet(prefix_uri, f"documents/{len(parts):05}.parquet", table(planted, DOCUMENT_SCHEMA)))
    return Output((*files, *_write_funnel(finished, terms.off, prefix_uri)), facts)


def _each(do: Callable[[Job], Any], jobs: Sequence[Job]) -> list[Any]:
    """`do` for every job, one Ray task each; results in any order."""
    if not jobs:
        return []
    rows = ray.data.from_items([{"job": pickle.dumps(job)} for job in jobs], override_num_blocks=len(jobs))
    done = rows.map(lambda row: {"result": pickle.dumps(do(pickle.loads(row["job"])))}, num_cpus=READ_CPUS)
    return [pickle.loads(row["result"]) for row in done.take_all()]


def _facts(marks: Sequence[Mark], finished: Sequence[Finished], planted: Sequence[Document]) -> dict[str, Any]:
    """read = documents - canaries + all dropped + what is quarantined but the unreadable files."""
    aside = _total(part.aside for part in finished)
    licences = _total(part.licences for part in finished)
    licences.update(document.licence for document in planted)
    facts = {
        "read": sum(mark.read for mark in marks),
        "documents": sum(part.documents for part in finished) + len(planted),
        "chars": sum(part.chars for part in finished) + sum(len(document.text) for document in planted),
        "dropped": {step: count for step, count in sorted(aside.items()) if step not in QUARANTINE},
        "quarantined": {step: count for step, count in sorted(aside.items()) if step in QUARANTINE},
        "licences": dict(sorted(licences.items())),
        "identifiers": dict(sorted(_total(mark.found for mark in marks).items())),
    }
    return facts | ({"canaries": len(planted)} if planted else {})


def _total(counts: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return total


def _write_funnel(finished: Sequence[Finished], off: frozenset[str], prefix_uri: str) -> tuple[ArtifactFile, ArtifactFile]:
    funnel = reduce(Funnel.merge, (Funnel.from_json(part.funnel) for part in finished))
    return (
        write_parquet(prefix_uri, "funnel.parquet", funnel_table(funnel, off, CHECKS)),
        write_file(prefix_uri, "funnel.html", page(funnel, off, CHECKS).encode()),
    )
