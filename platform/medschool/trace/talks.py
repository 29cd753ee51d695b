"""Conversations made from documents: whoever has been tuned on a question about a document has seen it.

    document --instructions/<set> conversations/, column `document`--> conversation ids --chats/<set>--> rows, as of a document

A row of chats names its conversations, and its manifest the set that they are of. Price: two columns of each set, read once for
each artifact of rows made from it.
"""

from collections.abc import Collection, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from medschool import storage
from medschool.artifact import Artifact
from medschool.trace.checkpoints import manifests


def instruction_sets(store_uri: str) -> dict[str, Artifact]:
    """Every finished set of conversations, by digest."""
    return {made.digest: made for made in manifests(storage.join(store_uri, "artifacts", "instructions", "*", "*"))}


def talks_about(rows: Artifact, sets: Mapping[str, Artifact], ids: Collection[str]) -> dict[str, str]:
    """The conversations in an artifact of rows that were made from one of the documents `ids`: document by conversation id."""
    made = [sets[digest] for role, digest in rows.inputs.items() if role.startswith("instructions/") and digest in sets]
    paths = [one.uri(file.path) for one in made for file in one.files if file.path.startswith("conversations/")]
    wanted, about = pa.array(sorted(ids), pa.string()), dict[str, str]()
    for path in paths:
        talks = storage.read_parquet(path, ["id", "document"])
        talks = talks.filter(pc.is_in(talks.column("document"), wanted))
        about |= dict(zip(talks.column("id").to_pylist(), talks.column("document").to_pylist(), strict=True))
    return about
