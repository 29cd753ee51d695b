"""What each rank has put into the store of one training state: small objects that rank 0 gathers, and no collective operation.

    <attempt>/rank-00001.json     files with sizes and sha256, rows counted; or the problem

The ranks upload beside training, at their own pace; a collective operation would have to wait in the training loop for the
slowest of them. A rank that could not upload says so in the same place, so that rank 0 need not wait for it.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from medschool import storage
from medschool.artifact import ArtifactFile
from medschool.errors import StorageError

FIRST_LOOK_S, LONGEST_LOOK_S = 0.05, 2.0
WAIT_FOR_RANKS_S = 900.0
"""How long rank 0 waits after its own upload: longer than s3.PATIENCE_S for the files, and again for the word on them."""


@dataclass(frozen=True)
class Part:
    """One rank's part of a state."""

    files: tuple[ArtifactFile, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    """Rows of each source that it was fed, as its ledger counts them."""
    problem: str = ""
    """Why it could not upload; empty when it did."""


def put_part(prefix_uri: str, rank: int, part: Part) -> None:
    """Say that a rank's files are in the store, or that they will not come."""
    storage.write_bytes(_uri(prefix_uri, rank), json.dumps(asdict(part)).encode())


def await_parts(prefix_uri: str, ranks: range, given_up: Callable[[], bool], wait_s: float = WAIT_FOR_RANKS_S) -> list[Part]:
    """The parts of `ranks`, as soon as all are there.

    Raises StorageError when a rank has a problem, none comes within `wait_s`, or `given_up` says that nobody needs them any more.
    """
    parts, limit, pause_s = [], time.monotonic() + wait_s, FIRST_LOOK_S
    for rank in ranks:
        while (part := _read(prefix_uri, rank)) is None:
            if given_up() or time.monotonic() > limit:
                raise StorageError(
                    f"rank {rank} has not said that its files are stored",
                    "see that worker's log; the checkpoint before this one stays",
                    prefix_uri,
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_LOOK_S)
        if part.problem:
            raise StorageError(f"rank {rank}: {part.problem}", "the checkpoint before this one stays", prefix_uri)
        parts.append(part)
    return parts


def _read(prefix_uri: str, rank: int) -> Part | None:
    try:
        raw = json.loads(storage.read_bytes(_uri(prefix_uri, rank)))
    except FileNotFoundError:
        return None
    return Part(tuple(ArtifactFile(**file) for file in raw["files"]), raw["rows"], raw["problem"])


def _uri(prefix_uri: str, rank: int) -> str:
    return storage.join(prefix_uri, f"rank-{rank:05}.json")
