"""Training state in the store: written whole or not at all, found again by step, verified before it is loaded.

    <run>/state/00000005/<attempt>/...     DeepSpeed's files of all ranks; an attempt is unique, no retry mixes with torn ones
    <run>/state/00000005/manifest.json     sizes, sha256, the position in the data, the world size; put last, only if absent

DeepSpeed's state files are pickles, and loading a pickle can run code: every hash is compared with the manifest before any is
opened. The newest step whose files are whole wins; a damaged one is named and passed over. Sizes are checked at every start;
hashes by those who load, who take the manifest back when one differs and start again from the step before.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from medschool import storage
from medschool.artifact import ArtifactFile
from medschool.errors import InputError

KEPT_STATES = 2


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


def state_prefix(run_uri: str, step: int, attempt: str) -> str:
    return storage.join(run_uri, "state", f"{step:08}", attempt)


def commit_state(run_uri: str, state: State) -> bool:
    """Put the manifest of a state whose files are all uploaded; False when that step has one already."""
    uri = storage.join(run_uri, "state", f"{state.position.step:08}", "manifest.json")
    return storage.put_if_absent(uri, json.dumps(asdict(state), indent=1).encode())


def read_state(manifest_uri: str) -> State:
    """Raises InputError when the manifest is not readable."""
    try:
        raw = json.loads(storage.read_bytes(manifest_uri))
        files = tuple(ArtifactFile(**file) for file in raw["files"])
        return State(Position(**raw["position"]), raw["world_size"], raw["zero_stage"], raw["prefix_uri"], files)
    except (ValueError, KeyError, TypeError) as error:
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
    for uri in reversed(_manifests(run_uri)):
        try:
            state = read_state(uri)
            _check_sizes(state)
        except InputError as error:
            say(f"checkpoint passed over: {error}")
            withdraw_state(uri)
            continue
        say(f"resuming at step {state.position.step} from {uri}")
        return Position(state.position.batch_index, state.position.step, uri)
    return Position()


def prune_states(run_uri: str, keep: int = KEPT_STATES) -> None:
    """Delete all but the newest `keep` states; a manifest goes before its files, so that no reader finds half a state."""
    for uri in _manifests(run_uri)[:-keep]:
        storage.delete_file(uri)
        storage.delete_prefix(uri.removesuffix("manifest.json"))


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


def fetch_state(state: State, folder: Path) -> Path:
    """Download all files of a state and verify every sha256; only then may DeepSpeed open them."""
    storage.map_files(
        lambda file: storage.download_verified(storage.join(state.prefix_uri, file.path), folder / file.path, file.sha256),
        list(state.files),
    )
    return folder
