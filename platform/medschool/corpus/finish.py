"""The second pass over a source: parts that were read are written without their copies.

    hashes of all parts --repeats--> rows to leave out --finish_part--> documents/, dropped/, quarantine/ of the artifact

Of documents with one content (case and white space apart) the one in the earliest file stays, and in it the earliest: which one
stays does not depend on who was faster. Copies are told by 64 bits of a sha256: among 100 million documents, one wrong match has
a chance of 0.03%. Memory: repeats, on the driver, about 34 bytes a document (160 MB for the paper's 4.8 million articles);
finish_part two row groups. It reads the work folder and writes elsewhere, so that it may run twice.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medschool import storage
from medschool.artifact import ArtifactFile, upload_folder
from medschool.corpus.admit import QUARANTINE
from medschool.corpus.clean import SAMPLE_CHARS
from medschool.corpus.funnel import Funnel
from medschool.corpus.marks import Mark, read_uri
from medschool.corpus.parts import HASHES
from medschool.corpus.pieces import Pieces, pieces_in
from medschool.errors import StageError
from medschool.rows import DOCUMENT_SCHEMA, DROPPED_SCHEMA, Dropped


@dataclass(frozen=True)
class Finished:
    """One part as it stands in the artifact."""

    part: int
    files: tuple[ArtifactFile, ...]
    documents: int
    chars: int
    licences: Counter[str]
    aside: Counter[str]
    """Rows that became no documents, by step."""
    funnel: dict[str, Any]


def hashes_of(marks: Sequence[Mark], work_uri: str) -> list[np.ndarray]:
    """Content hashes of each part's documents, (documents,) uint64."""
    with ThreadPoolExecutor(storage.COPY_THREADS) as pool:
        found = pool.map(lambda mark: storage.read_bytes(read_uri(work_uri, mark.folder, HASHES)), marks)
        return [np.frombuffer(data, dtype=np.uint64) for data in found]


def repeats(hashes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Rows of each part whose content an earlier row has, of this part or an earlier one. hashes: as of `hashes_of`."""
    _, first = np.unique(np.concatenate(hashes), return_index=True)
    keep = np.zeros(sum(map(len, hashes)), dtype=bool)
    keep[first] = True
    starts = np.cumsum([0, *map(len, hashes)])
    return [np.flatnonzero(~keep[start:stop]) for start, stop in pairwise(starts)]


def finish_part(mark: Mark, copies: np.ndarray, work_uri: str, prefix_uri: str) -> Finished:
    """Write a part's files of the artifact: its documents without those at the rows `copies`, what was dropped, the quarantine.

    Raises StageError when the work folder is gone, because another run has finished this stage.
    """
    with tempfile.TemporaryDirectory(prefix="medschool-corpus-") as folder:
        scratch, name = Path(folder), f"{mark.part:05}.parquet"
        for file in ("documents.parquet", "aside.parquet"):
            _fetch(read_uri(work_uri, mark.folder, file), scratch / file)
        documents = Pieces(scratch / "out" / "documents" / name, DOCUMENT_SCHEMA)
        dropped, quarantine = (Pieces(scratch / "out" / kind / name, DROPPED_SCHEMA) for kind in ("dropped", "quarantine"))
        _divide(scratch / "aside.parquet", dropped, quarantine)
        counts = _Counts(Funnel.from_json(mark.funnel))
        start = 0
        for rows in pieces_in(scratch / "documents.parquet"):
            inside = copies[(copies >= start) & (copies < start + rows.num_rows)] - start
            for copy in counts.leave(rows.take(inside)):
                dropped.put(copy)
            documents.add(counts.keep(_without(rows, inside)))
            start += rows.num_rows
        for pieces in (documents, dropped, quarantine):
            pieces.close()
        files = upload_folder(prefix_uri, scratch / "out")
    aside = +Counter({**mark.steps, "duplicate": len(copies)})
    return Finished(mark.part, files, counts.documents, counts.chars, counts.licences, aside, counts.funnel.to_json())


class _Counts:
    """What a part's documents come to, as they are gone through."""

    def __init__(self, funnel: Funnel) -> None:
        self.funnel, self.documents, self.chars, self.licences = funnel, 0, 0, Counter[str]()

    def keep(self, rows: pa.Table) -> pa.Table:
        self.documents += rows.num_rows
        self.chars += pc.sum(pc.utf8_length(rows["text"])).as_py() or 0
        self.licences.update(rows["licence"].to_pylist())
        return rows

    def leave(self, rows: pa.Table) -> Iterator[Dropped]:
        """Documents whose content stands in the source already, as what is dropped."""
        for row in rows.to_pylist():
            reason, sample = f"sha256 {row['sha256']}", row["text"][:SAMPLE_CHARS]
            dropped = Dropped(row["id"], row["source"], "duplicate", reason, sample, row["uri"])
            self.funnel = self.funnel.leave(dropped, row["text"])
            yield dropped


def _divide(path: Path, dropped: Pieces, quarantine: Pieces) -> None:
    """What reading set aside, each row to where its step belongs."""
    for rows in pieces_in(path):
        suspect = pc.is_in(rows["step"], pa.array(sorted(QUARANTINE)))
        quarantine.add(rows.filter(suspect))
        dropped.add(rows.filter(pc.invert(suspect)))


def _without(rows: pa.Table, taken: np.ndarray) -> pa.Table:
    mask = np.ones(rows.num_rows, dtype=bool)
    mask[taken] = False
    return rows.filter(pa.array(mask))


def _fetch(uri: str, local: Path) -> None:
    try:
        storage.download(uri, local)
    except FileNotFoundError as error:
        problem, remedy = (
            "was removed while the stage ran: another run has made the same corpus",
            "submit again; it is cached now",
        )
        raise StageError(problem, remedy, uri) from error
