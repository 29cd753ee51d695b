"""The exams stage: raw files to the items that a recipe examines, and everything that was left out.

    files --reader--> items --ids, published size--> checked --subjects, repeats, rank--> items.parquet, dropped.parquet
    worked questions --reader--> shots.parquet

An exam is thousands of lines, not millions: it is read where the job runs.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from medschool import storage
from medschool.artifact import Artifact, Output, digest_of, write_parquet
from medschool.errors import InputError, StageError
from medschool.exams.chosen import chosen
from medschool.exams.formats import EXAM_FORMATS
from medschool.exams.harness import shots_of
from medschool.exams.published import check_size, published
from medschool.exams.select import content, select
from medschool.exams.tabular import as_lines
from medschool.formats import by_name
from medschool.recipe import Recipe
from medschool.recipe.corpus import Files
from medschool.recipe.evaluation import Exam
from medschool.rows import DROPPED_SCHEMA, EXAM_SCHEMA, Dropped, ExamItem, table

ITEMS, DROPPED, SHOTS = "items.parquet", "dropped.parquet", "shots.parquet"
STEPS = ("malformed", "unlabelled", "duplicate")


def make_exam(recipe: Recipe, name: str, store_uri: str, prefix_uri: str) -> Output:
    """Read and check one exam.

    Raises InputError for an unreadable file, for one of another size than was published, and for a worked question that is one of
    the exam; StageError when no item is left.
    """
    spec, where = recipe.exams[name], f"exams.{name}"
    items, dropped, digests = _read(spec.files, store_uri, name, f"{where}.files")
    if spec.ids:
        items = chosen(items, _bytes(storage.join(store_uri, spec.ids), spec.ids), spec.ids)
    kept, left_out = select(items, _subjects(spec, where), recipe.seed)
    if spec.published:
        repeats = [row for row in left_out if row.step == "duplicate"]
        _check(spec, where, kept, repeats, items, dropped)
    if not kept:
        raise StageError(f"no item of {len(items)} is left", "look at the exam's subjects and files", where)
    shots = _shots(spec, kept, store_uri, name, f"{where}.shots")
    left_out = [*dropped, *left_out]
    files_ = (
        write_parquet(prefix_uri, ITEMS, table(kept, EXAM_SCHEMA)),
        write_parquet(prefix_uri, DROPPED, table(left_out, DROPPED_SCHEMA)),
        write_parquet(prefix_uri, SHOTS, table(shots, EXAM_SCHEMA)),
    )
    subjects = {subject: sum(item.subject == subject for item in kept) for subject in sorted({item.subject for item in kept})}
    counts = {step: sum(row.step == step for row in left_out) for step in STEPS}
    facts = {"items": len(kept), "dropped": counts, "subjects": subjects, "shots": len(shots), "files": digests}
    return Output(files_, facts | ({"published": _published(spec, digests)} if spec.published else {}))


def read_items(exam: Artifact) -> list[ExamItem]:
    """All items of a finished exam, in the order of their rank: a sample of n is the first n."""
    return items_of(storage.read_parquet(exam.uri(ITEMS)).to_pylist())


def read_shots(exam: Artifact) -> list[ExamItem]:
    """The worked questions of a finished exam, in the order of their files."""
    return items_of(storage.read_parquet(exam.uri(SHOTS)).to_pylist())


def items_of(rows: Sequence[dict[str, Any]]) -> list[ExamItem]:
    """Items from their plain values, as Parquet and Ray carry them."""
    return [ExamItem(**{**row, "options": tuple(row["options"])}) for row in rows]


def revision(items: Sequence[ExamItem]) -> str:
    """First 16 hex digits of the hash of what these items ask, in this order, wherever their files lie."""
    return digest_of([{**asdict(item), "exam": "", "uri": ""} for item in items])[:16]


# ---- reading ------------------------------------------------------------------------------------------------------------------


def _read(files: Sequence[Files], store_uri: str, name: str, where: str) -> tuple[list[ExamItem], list[Dropped], dict[str, str]]:
    """Items and what is none, in the order of the files; sha256 of each file, unpacked, by its place in the store."""
    items: list[ExamItem] = []
    dropped: list[Dropped] = []
    digests = {}
    for entry in files:
        reader = by_name(EXAM_FORMATS, entry.format, where)
        for info in storage.require_files(storage.join(store_uri, entry.uri)):
            place = info.uri.removeprefix(store_uri.rstrip("/") + "/")
            data = _bytes(info.uri, place)
            digests[place] = hashlib.sha256(data).hexdigest()
            for row in reader(as_lines(data, place), place, name):
                (dropped if isinstance(row, Dropped) else items).append(row)  # type: ignore[arg-type]
    return items, dropped, digests


def _bytes(uri: str, place: str) -> bytes:
    with storage.open_raw(uri, place) as stream:
        return stream.read()


def _subjects(spec: Exam, where: str) -> tuple[str, ...] | None:
    """The subjects to keep: the recipe's, else those of the published exam, else all."""
    known = tuple(published(spec.published, f"{where}.published").subjects) if spec.published else ()
    return spec.subjects or known or None


def _shots(spec: Exam, items: Sequence[ExamItem], store_uri: str, name: str, where: str) -> list[ExamItem]:
    """The worked questions. Raises InputError when there are too few for an item, or one is an item itself."""
    if spec.shots is None:
        return []
    shots, _, _ = _read(spec.shots.files, store_uri, name, f"{where}.files")
    of_exam = {content(item): item.id for item in items}
    for shot in shots:
        if content(shot) in of_exam:
            problem = f"the worked question {shot.id} of {shot.uri} is question {of_exam[content(shot)]} of the exam"
            raise InputError(problem, "take worked questions from another file, such as MMLU's dev split", where)
    for item in items:
        if (found := len(shots_of(item, shots, spec.shots.count))) < spec.shots.count:
            problem = f"{found} worked questions for {item.id}, {spec.shots.count} are wanted"
            raise InputError(problem, "lower `count`, or add the file of its subject", where)
    return shots


# ---- what was published -------------------------------------------------------------------------------------------------------


def _check(
    spec: Exam,
    where: str,
    kept: Sequence[ExamItem],
    repeats: Sequence[Dropped],
    items: Sequence[ExamItem],
    dropped: list[Dropped],
) -> None:
    """The size of the exam before repeats were taken out."""
    assert spec.published is not None
    known = published(spec.published, f"{where}.published")
    if known.by_ids and not spec.ids:
        raise InputError(f"{spec.published} is a part of its file", "set ids: to the place of test_ground_truth.json", where)
    left = {item.id for item in kept} | {row.id for row in repeats}
    check_size(known, [item for item in items if item.id in left], dropped, where)


def _published(spec: Exam, digests: dict[str, str]) -> dict[str, Any]:
    """Name of the published exam, and files that are not, byte for byte, the original one, where that is known."""
    assert spec.published is not None
    known = published(spec.published, "").sha256
    return {
        "name": spec.published,
        "other_files": sorted(place for place, digest in digests.items() if known and digest not in known),
    }
