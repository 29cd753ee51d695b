"""The exams stage: raw files to the items that a recipe examines, and everything that was left out.

An exam is thousands of lines, not millions: it is read where the job runs.
"""

from collections.abc import Sequence
from typing import Any

from medschool import storage
from medschool.artifact import Artifact, Output, write_parquet
from medschool.errors import StageError
from medschool.exams.formats import EXAM_FORMATS
from medschool.exams.select import select
from medschool.formats import by_name
from medschool.recipe import Recipe
from medschool.rows import DROPPED_SCHEMA, EXAM_SCHEMA, Dropped, ExamItem, table

ITEMS, DROPPED = "items.parquet", "dropped.parquet"


def make_exam(recipe: Recipe, name: str, store_uri: str, prefix_uri: str) -> Output:
    """Read and check one exam. Raises InputError for an unreadable file, StageError when no item is left."""
    spec = recipe.exams[name]
    items: list[ExamItem] = []
    dropped: list[Dropped] = []
    for files in spec.files:
        reader = by_name(EXAM_FORMATS, files.format, f"exams.{name}.files")
        for info in storage.require_files(storage.join(store_uri, files.uri)):
            place = info.uri.removeprefix(store_uri.rstrip("/") + "/")
            with storage.open_raw(info.uri, place) as stream:
                data = stream.read()
            for row in reader(data, place, name):
                (dropped if isinstance(row, Dropped) else items).append(row)  # type: ignore[arg-type]
    kept, left_out = select(items, spec.subjects, recipe.seed)
    if not kept:
        raise StageError(f"no item of {len(items)} is left", "look at the exam's subjects and files", f"exams.{name}")
    counts = {step: sum(row.step == step for row in [*dropped, *left_out]) for step in ("malformed", "duplicate")}
    files_ = (
        write_parquet(prefix_uri, ITEMS, table(kept, EXAM_SCHEMA)),
        write_parquet(prefix_uri, DROPPED, table([*dropped, *left_out], DROPPED_SCHEMA)),
    )
    subjects = {subject: sum(item.subject == subject for item in kept) for subject in sorted({item.subject for item in kept})}
    return Output(files_, {"items": len(kept), "dropped": counts, "subjects": subjects})


def read_items(exam: Artifact) -> list[ExamItem]:
    """All items of a finished exam, in the order of their rank: a sample of n is the first n."""
    return items_of(storage.read_parquet(exam.uri(ITEMS)).to_pylist())


def items_of(rows: Sequence[dict[str, Any]]) -> list[ExamItem]:
    """Items from their plain values, as Parquet and Ray carry them."""
    return [ExamItem(**{**row, "options": tuple(row["options"])}) for row in rows]
