"""Training state in the store: written whole or not at all, found again by step, verified before it is loaded.

    <run>/state/00000005/<attempt>/...     files of all ranks; an attempt is unique, no retry mixes with torn ones
        state/*.pt                         DeepSpeed's: weights, optimizer, schedule
        random/rank-00000.json             random number generators, one file a rank
        ledger.json  metrics.jsonl         what was consumed and measured until then
    <run>/state/00000005/manifest.json     position, sizes, sha256, what it is of, versions; put last, only if absent

DeepSpeed's state files are pickles, and loading a pickle can run code: every hash is compared with the manifest before any is
opened, and the manifest holds its own. The newest step whose files are whole wins; a damaged one is named and passed over. Sizes
are checked at every start; hashes by those who load, who take the manifest back when one differs and start again from the step
before. Ray Train's own snapshot of a run is not among these files and is never read.

The newest `keep` states stay, and the milestones for good. An attempt that no manifest names was torn by a failure; it is removed
once a newer state is whole, because until then a writer may still be at it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medschool import storage
from medschool.artifact import ArtifactFile
from medschool.errors import InputError, StorageError

STATE_FORMAT = 2
KEPT_STATES = 2
OF_RANK = re.compile(r"(?:zero_pp_|random/)rank[_-](\d+)")
"""Which rank alone reads a file (DeepSpeed's names, and ours); every rank reads one that does not match."""


@dataclass(frozen=True)
class Position:
    """Where a run stands: the state before batch `batch_index` is trained on."""

    batch_index: int = 0
    step: int = 0
    state_uri: str = ""
    """Manifest of the training state to load; empty for a fresh start."""


@dataclass(frozen=True)
class State:
    """One saved training state."""

    position: Position
    world_size: int
    zero_stage: int
    prefix_uri: str
    files: tuple[ArtifactFile, ...]
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What it is a state of: medschool.train.identity."""
    micro_batch_rows: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the libraries that wrote it."""


def random_file(rank: int) -> str:
    """Path in a state of the random number generators of one rank."""
    return f"random/rank-{rank:05}.json"


def state_prefix(run_uri: str, step: int, attempt: str) -> str:
    return storage.join(run_uri, "state", f"{step:08}", attempt)


def commit_state(run_uri: str, state: State) -> bool:
    """Put the manifest of a state whose files are all uploaded; False when that step has one already.

    Raises StorageError when the store does not list every file with its size: such a state must not be committed.
    """
    try:
        _check_sizes(state)
    except InputError as error:
        raise StorageError(error.problem, "see the store's log; the checkpoint before this one stays", error.where) from error
    uri = storage.join(run_uri, "state", f"{state.position.step:08}", "manifest.json")
    attempt = state.prefix_uri.rstrip("/").rsplit("/", 1)[-1]  # a run that is copied elsewhere stays whole
    return storage.put_if_absent(uri, _manifest_bytes(asdict(state) | {"prefix_uri": attempt}))


def _manifest_bytes(state: Mapping[str, Any]) -> bytes:
    """The manifest as JSON, with the sha256 of everything else in it."""
    content = json.dumps({"format": STATE_FORMAT, **state}, indent=1)
    return json.dumps({"sha256": hashlib.sha256(content.encode()).hexdigest(), **json.loads(content)}, indent=1).encode()


def read_state(manifest_uri: str) -> State:
    """Raises InputError when the manifest is not readable, or is not byte by byte the one that was written."""
    data = storage.read_bytes(manifest_uri)
    try:
        raw = json.loads(data)
        if raw.pop("format") != STATE_FORMAT:
            raise ValueError(f"its format is not {STATE_FORMAT}, the one that this version writes")
        del raw["sha256"]
        if _manifest_bytes(raw) != data:
            raise ValueError("its sha256 differs")
        files = tuple(ArtifactFile(**file) for file in raw.pop("files"))
        prefix_uri = storage.join(manifest_uri.removesuffix("/manifest.json"), raw.pop("prefix_uri"))
        return State(Position(**raw.pop("position")), prefix_uri=prefix_uri, files=files, **raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"not a checkpoint manifest ({error})", "delete it; an older checkpoint will be used", manifest_uri
        ) from error


def withdraw_state(manifest_uri: str) -> bool:
    """Take back the manifest of a damaged state, so that the next start uses the one before; False when another rank has done it.

    What the manifest said stays beside the files as damaged.json.
    """
    with suppress(FileNotFoundError):
        storage.write_bytes(manifest_uri.removesuffix("manifest.json") + "damaged.json", storage.read_bytes(manifest_uri))
        storage.delete_file(manifest_uri)
        return True
    return False


def newest_whole(run_uri: str, say: Callable[[str], None]) -> Position:
    """Position of the newest state whose files all have the sizes of its manifest; a fresh start when there is none.

    A state that is not whole is withdrawn: its step can then be saved again, and it does not count as one of those kept.
    """
    uris = _manifests(run_uri)
    for passed_over, uri in enumerate(reversed(uris)):
        try:
            state = read_state(uri)
            _check_sizes(state)
        except InputError as error:
            say(f"checkpoint passed over: {error}")
            withdraw_state(uri)
            continue
        newer = f"{passed_over} newer damaged" if passed_over else "the newest"
        say(f"resuming at step {state.position.step} from {uri} ({newer}; {len(uris)} stored)")
        return Position(state.position.batch_index, state.position.step, uri)
    if uris:
        say(f"none of {len(uris)} checkpoints is whole: starting from the first step")
    return Position()


def prune_states(run_uri: str, keep: int = KEPT_STATES, milestone_every_steps: int | None = None) -> int:
    """Delete all but the newest `keep` states and the milestones, and torn attempts older than the newest; how many of those.

    A manifest goes before its files, so that no reader finds half a state.
    """
    manifests = _manifests(run_uri)
    for uri in manifests[:-keep]:
        if not milestone_every_steps or _step(uri) % milestone_every_steps:
            storage.delete_file(uri)
            storage.delete_prefix(uri.removesuffix("manifest.json"))
    return _remove_torn(run_uri, manifests[-1]) if manifests else 0


def _remove_torn(run_uri: str, newest: str) -> int:
    """Delete what no manifest names of steps up to that of the manifest `newest`; how many attempts that were."""
    kept, torn = tuple(f"{_kept_by(uri)}/" for uri in _manifests(run_uri)), set()
    for info in storage.list_files(storage.join(run_uri, "state")):
        step, _, rest = info.uri.removeprefix(storage.join(run_uri, "state") + "/").partition("/")
        if info.uri.startswith(kept) or rest == "manifest.json" or int(step) > _step(newest):
            continue
        if "/" in rest:
            torn.add(state_prefix(run_uri, int(step), rest.split("/")[0]))
        else:
            storage.delete_file(info.uri)  # what a withdrawn manifest said
    for prefix in sorted(torn):
        storage.delete_prefix(prefix + "/")
    return len(torn)


def _kept_by(manifest_uri: str) -> str:
    """The files that a manifest holds; everything of its step where it is damaged, which the next start says and takes back."""
    try:
        return read_state(manifest_uri).prefix_uri.rstrip("/")
    except InputError:
        return manifest_uri.removesuffix("/manifest.json")


def _step(manifest_uri: str) -> int:
    return int(manifest_uri.split("/")[-2])


def _manifests(run_uri: str) -> list[str]:
    """Manifests of all states of a run, oldest first."""
    return [info.uri for info in storage.list_files(storage.join(run_uri, "state")) if info.uri.endswith("/manifest.json")]


def _check_sizes(state: State) -> None:
    stored = {info.uri: info.size_bytes for info in storage.list_files(state.prefix_uri)}
    for file in state.files:
        uri = storage.join(state.prefix_uri, file.path)
        if stored.get(uri) != file.size_bytes:
            raise InputError(
                f"{stored.get(uri, 'no')} bytes are stored, the manifest says {file.size_bytes}", "an older one is used", uri
            )


def fetch_state(state: State, folder: Path, rank: int | None = None) -> Path:
    """Download the files of a state that `rank` reads, all when None, and verify every sha256; then they may be opened."""
    mine = [file for file in state.files if rank is None or (of := OF_RANK.search(file.path)) is None or int(of[1]) == rank]
    storage.map_files(
        lambda file: storage.download_verified(storage.join(state.prefix_uri, file.path), folder / file.path, file.sha256), mine
    )
    return folder
