"""May this conversation be trained on? The checks of one portion, and its part of the artifact.

    read/made/P --licence? exam? identifiers?--> which rows pass, a content hash and a rank of each    checked/P: the others
    the hashes and ranks of all portions --choose, on the driver--> which rows are kept, which are repeats
    read/made/P, read/refused/P, checked/P --keep--> conversations/00007.parquet, dropped/00007.parquet

The first check that refuses a conversation names itself in Dropped.step, with the value that decided. `exam` is the overlap check
of medschool.exams.overlap, `identifiers` the scan of medschool.corpus.deidentify; a conversation is scanned as a whole, all turns
together, and its sample is masked. What holds an exam item is also listed with every item that it holds, so that scores can be
told without these items (medschool.ablate.contamination). Not listed: items that a teacher brings into an answer, which is
refused by the same check later.

Memory: one portion as a table and as values, about 60 MB, and the exams' index. Price: 3,000 conversations of 150 words a second
and core, four fifths of it for identifiers; that of the exams comes on top (medschool.exams.overlap).
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from medschool import storage
from medschool.artifact import ArtifactFile, write_parquet
from medschool.corpus.deidentify import judge, scan, tally
from medschool.exams.overlap import ExamIndex
from medschool.instructions.choose import Choice
from medschool.instructions.portions import MADE, READ, REFUSED
from medschool.overlap.search import search
from medschool.recipe.corpus import Identifiers
from medschool.rows import DROPPED_SCHEMA, Document, Dropped, table
from medschool.seed import seed_of

CHECKED = "checked"
COMPARED = ("exam", "identifiers", "duplicate", "no_agreement", "unanswered")
"""Steps of what was compared with the exams' items before it was dropped."""
SAMPLE_CHARS = 200


@dataclass(frozen=True)
class Terms:
    """The terms on which a set takes conversations."""

    licences: frozenset[str]
    identifiers: Identifiers | None
    seed: int


@dataclass(frozen=True)
class Checked:
    """What the checks of a portion came to. Shapes: (conversations,)."""

    name: str
    """Of the portion's files."""
    passed: np.ndarray
    """bool."""
    hashes: np.ndarray
    """Of the words of all turns, uint64."""
    ranks: np.ndarray
    """The order in which a sample takes conversations, drawn by the seed, uint64."""
    quarantined: int
    """Conversations that did not pass because of identifiers."""
    found: dict[str, int]
    """Identifiers of people in all conversations that came to that check, by class."""
    held: pa.Table
    """Exam items in the conversations that were refused for them, OVERLAP_SCHEMA of medschool.overlap.search."""


@dataclass(frozen=True)
class Kept:
    """One portion as it stands in the artifact."""

    files: tuple[ArtifactFile, ArtifactFile]
    made: int
    """Conversations and drops of its raw file, without a file that could not be read."""
    conversations: int
    kinds: Counter[str]
    licences: Counter[str]
    dropped: Counter[str]


def check_portion(name: str, terms: Terms, exams: ExamIndex, prefix_uri: str) -> Checked:
    """Judge every conversation of one portion, and write what does not pass."""
    rows = storage.read_parquet(storage.join(prefix_uri, READ, MADE, name)).to_pylist()
    found: Counter[str] = Counter()
    refused = [refusal(row, terms, exams, found) for row in rows]
    write_parquet(prefix_uri, f"{CHECKED}/{name}", table([row for row in refused if row], DROPPED_SCHEMA))
    quoting = ((row["id"], _text(row)) for row, said in zip(rows, refused, strict=True) if said and said.step == "exam")
    return Checked(
        name,
        np.array([row is None for row in refused], dtype=bool),
        np.array([seed_of(*(message["content"] for message in row["messages"])) for row in rows], dtype=np.uint64),
        np.array([seed_of(terms.seed, "conversation", row["id"]) for row in rows], dtype=np.uint64),
        sum(row.step == "identifiers" for row in refused if row),
        dict(found),
        search(quoting, exams),
    )


def refusal(row: dict[str, Any], terms: Terms, exams: ExamIndex, found: Counter[str]) -> Dropped | None:
    """Why a conversation may not be trained on, or None. found: counts identifiers."""
    if row["licence"] not in terms.licences:
        wanted = ", ".join(sorted(terms.licences))
        return _drop(row, "licence", f"licence {row['licence']} is not among the allowed ones ({wanted})")
    text = _text(row)
    if hit := exams.find(text):
        return _drop(row, "exam", f"holds {hit.share:.0%} of exam item {hit.item}")
    if terms.identifiers is None:
        return None
    findings = scan(text, terms.identifiers.names)
    found.update(tally(findings))
    document = Document(row["id"], row["source"], text, "", row["licence"], None, row["kind"], row["uri"])
    return judge(document, findings, terms.identifiers.max_per_document)


def keep_portion(number: int, name: str, choice: Choice, prefix_uri: str) -> Kept:
    """Write the kept conversations of a portion, and all that was dropped of it. number: of the portion in the set."""
    made, refused, checked = (
        storage.read_parquet(storage.join(prefix_uri, folder, name))
        for folder in (f"{READ}/{MADE}", f"{READ}/{REFUSED}", CHECKED)
    )
    copies = [
        _drop(row, "duplicate", "the same messages as an earlier one")
        for row in made.filter(pa.array(choice.repeats)).to_pylist()
    ]
    kept = made.filter(pa.array(choice.kept))
    dropped = pa.concat_tables([refused, checked, table(copies, DROPPED_SCHEMA)])
    steps = Counter(dropped.column("step").to_pylist())
    return Kept(
        files=(
            write_parquet(prefix_uri, f"conversations/{number:05}.parquet", kept),
            write_parquet(prefix_uri, f"dropped/{number:05}.parquet", dropped),
        ),
        made=made.num_rows + refused.num_rows - steps["unreadable"],
        conversations=kept.num_rows,
        kinds=Counter(kept.column("kind").to_pylist()),
        licences=Counter(kept.column("licence").to_pylist()),
        dropped=steps,
    )


def _text(row: dict[str, Any]) -> str:
    return "\n".join(message["content"] for message in row["messages"])


def _drop(row: dict[str, Any], step: str, reason: str) -> Dropped:
    return Dropped(row["id"], row["source"], step, reason, row["messages"][0]["content"][:SAMPLE_CHARS], row["uri"])
