"""A folder that the Hugging Face `datasets` library reads: Parquet files, and a card of what is in them.

    OUT/README.md                  the card: YAML that `datasets` reads, then tables for people
    OUT/data/<part>/00000.parquet  one configuration a part: `datasets.load_dataset("OUT", "<part>")`

The folder is written under another name beside it and renamed when it is whole, so one that is there is whole. What is exported
is said in medschool.corpus.export and medschool.instructions.export.
"""

import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from medschool.errors import InputError

DATA, CARD = "data", "README.md"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
"""Names of sizes, in rows, as the cards of Hugging Face have them (hub documentation, "Dataset Cards", size_categories)."""


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` at the end, and is removed where filling it fails.

    Raises InputError where `folder` is a file, or a folder with something in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("is there already, and is not empty", "name a new folder, or empty it", str(folder))
    partial = folder.absolute().with_name(f"{folder.absolute().name}.partial-{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def card_head(parts: Iterable[str], task: str, rows: int) -> str:
    """The card's YAML. Every row has a licence of its own, so the whole has none but `other`."""
    size = next((name for below, name in SIZES if rows < below), "n>10M")
    configs = "".join(f"- config_name: {part}\n  data_files: {DATA}/{part}/*.parquet\n" for part in parts)
    return (
        f"---\nlicense: other\ntask_categories: [{task}]\nsize_categories: ['{size}']\ntags: [medical]\nconfigs:\n{configs}---\n"
    )


def counts_table(whose: str, what: str, counts: Mapping[str, Mapping[str, int]]) -> str:
    """Counts by name, of several parts, as a Markdown table."""
    return table([whose, what, "count"], [[part, name, count] for part, each in counts.items() for name, count in each.items()])


def table(head: Sequence[str], rows: Iterable[Sequence[str | int]]) -> str:
    """A Markdown table; numbers have commas."""
    lines = [head, ["---"] * len(head), *([f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
