"""A finished corpus as a Hugging Face `datasets` directory: Parquet, one configuration a source, and a card of what is in it.

    OUT/README.md               the card: documents, characters, licences, and what was left out, step by step
    OUT/data/papers/00000.parquet   the documents of one part of the source, with the columns of medschool.rows.DOCUMENT_SCHEMA

`datasets.load_dataset("OUT", "papers")` reads it; every row carries its own licence. One part is in memory at a time.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medschool import storage
from medschool.artifact import Artifact
from medschool.corpus.dataset_folder import CARD, DATA, card_head, counts_table, new_folder, table
from medschool.errors import StageError


@dataclass(frozen=True)
class Exported:
    """What one source came to."""

    documents: int
    chars: int
    near_duplicates: int
    """Documents left out because another one says nearly the same."""
    licences: dict[str, int]
    dropped: dict[str, int]
    """What the corpus stage had left out before, by step."""


def export_corpus(
    name: str, sources: Mapping[str, Artifact], removed: Mapping[str, frozenset[str]], folder: Path, say: Callable[[str], None]
) -> dict[str, Exported]:
    """Write the documents of `sources` (corpus artifacts by name) to `folder`, without the ids in `removed`.

    Raises InputError when the folder is there and not empty, StageError when an artifact has lost rows since it was made.
    """
    found = {}
    with new_folder(folder) as partial:
        for source, made in sources.items():
            found[source] = _export_source(made, removed.get(source, frozenset()), partial / DATA / source)
            say(f"{source}: {found[source].documents:,} documents, {found[source].chars:,} characters")
        (partial / CARD).write_text(_card(name, found), encoding="utf-8")
    return found


def _export_source(made: Artifact, removed: frozenset[str], folder: Path) -> Exported:
    folder.mkdir(parents=True)
    documents, chars, left_out = 0, 0, 0
    licences: Counter[str] = Counter()
    for number, file in enumerate(file for file in made.files if file.path.startswith("documents/")):
        whole = storage.read_parquet(made.uri(file.path))
        rows = whole.filter(pc.invert(pc.is_in(whole.column("id"), pa.array(sorted(removed), pa.string()))))
        left_out += whole.num_rows - rows.num_rows
        documents += rows.num_rows
        chars += pc.sum(pc.utf8_length(rows.column("text"))).as_py() or 0
        licences.update(rows.column("licence").to_pylist())
        pq.write_table(rows, folder / f"{number:05}.parquet", compression="zstd")
    if documents + left_out != made.facts["documents"]:
        problem = f"holds {documents + left_out} documents, its manifest says {made.facts['documents']}"
        raise StageError(problem, "delete its manifest and run the corpus stage again", made.manifest_uri)
    return Exported(documents, chars, left_out, dict(licences.most_common()), dict(made.facts["dropped"]))


def _card(name: str, sources: Mapping[str, Exported]) -> str:
    parts = [
        card_head(sources, "text-generation", sum(one.documents for one in sources.values())),
        f"# Corpus of {name}\n",
        "Text for continued pretraining. Every row names its licence, its source file and the sha256 of its text. "
        "**Not for clinical use.**\n",
        table(
            ["source", "documents", "characters", "near-duplicates left out"],
            [[source, one.documents, one.chars, one.near_duplicates] for source, one in sources.items()],
        ),
        "## Licences, in documents\n",
        counts_table("source", "licence", {source: one.licences for source, one in sources.items()}),
        "## Left out before, by step\n",
        counts_table("source", "step", {source: one.dropped for source, one in sources.items()}),
    ]
    return "\n".join(parts)
