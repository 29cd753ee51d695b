"""Every checkpoint of a store that has a ledger: finished models, and the training states of runs under way.

Price: one listing of the trainings, and two small files for each checkpoint. The addresses of token artifacts are found by their
digest, so a store that was copied elsewhere answers the same.
"""

from dataclasses import dataclass

from medschool import storage
from medschool.artifact import Artifact, read_manifest
from medschool.errors import InputError
from medschool.ledger import LEDGER, Ledger, parse_ledger
from medschool.train.checkpoint import read_state

TRAININGS = ("pretrain", "instruct")
"""Kinds of stages that train, earlier ones first."""


@dataclass(frozen=True)
class Checkpoint:
    """A finished model, or a saved training state of a run that has not ended."""

    kind: str
    """`pretrain` or `instruct`."""
    run: str
    """Fingerprint of the training stage."""
    uri: str
    """Its manifest."""
    digest: str | None
    """Of a finished model (Artifact.digest); None for a training state."""
    ledger: Ledger

    @property
    def finished(self) -> bool:
        return self.digest is not None

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.run}"


def checkpoints(store_uri: str) -> list[Checkpoint]:
    """All checkpoints with a ledger: pretraining first, each run's in the order of its steps, the finished model last."""
    found = []
    for kind in TRAININGS:
        base = storage.join(store_uri, "artifacts", kind)
        for info in storage.list_files(storage.join(base, "*", "state", "*", "manifest.json")):
            state = read_state(info.uri)
            ledger = _ledger(storage.join(state.prefix_uri, LEDGER), [file.path for file in state.files])
            found += [Checkpoint(kind, info.uri.split("/")[-4], info.uri, None, ledger)] if ledger else []
        for made in manifests(storage.join(base, "*")):
            ledger = _ledger(made.uri(LEDGER), [file.path for file in made.files])
            found += [Checkpoint(kind, made.fingerprint, made.manifest_uri, made.digest, ledger)] if ledger else []
    return sorted(found, key=lambda one: (TRAININGS.index(one.kind), one.run, one.finished, one.ledger.batches))


def _ledger(uri: str, paths: list[str]) -> Ledger | None:
    """The ledger beside a checkpoint; None for one from before there were ledgers."""
    return parse_ledger(storage.read_bytes(uri), uri) if LEDGER in paths else None


def runs(found: list[Checkpoint]) -> dict[str, list[Checkpoint]]:
    """The checkpoints of each run, by its name, in order: the last one has seen most."""
    by_name: dict[str, list[Checkpoint]] = {}
    for one in found:
        by_name.setdefault(one.name, []).append(one)
    return by_name


def manifests(pattern: str) -> list[Artifact]:
    """Finished artifacts whose folders match, sorted."""
    return [read_manifest(info.uri) for info in storage.list_files(storage.join(pattern, "manifest.json"))]


def token_artifacts(store_uri: str) -> dict[str, Artifact]:
    """Every finished artifact of rows, by digest; of two that are equal one stands for both."""
    found = [made for kind in ("tokens", "chats") for made in manifests(storage.join(store_uri, "artifacts", kind, "*", "*"))]
    return {made.digest: made for made in found}


def models(store_uri: str) -> dict[str, str]:
    """Manifests of the models that trainings begin from and that they make, by digest."""
    found = [made for kind in ("model", *TRAININGS) for made in manifests(storage.join(store_uri, "artifacts", kind, "*"))]
    return {made.digest: made.manifest_uri for made in found}


def find_run(found: list[Checkpoint], name: str) -> Checkpoint:
    """The newest checkpoint of the run whose fingerprint begins with `name`, or whose name is `name`.

    Raises InputError when there is none, or more than one; the remedy names them.
    """
    by_name = runs(found)
    matching = [known for known in by_name if known == name or known.split("/")[1].startswith(name)]
    if len(matching) != 1:
        known = ", ".join(f"{key} ({one[-1].ledger.steps} steps)" for key, one in by_name.items()) or "none"
        raise InputError(
            f"{len(matching)} runs are known by this name", f"give the first digits of one of these fingerprints: {known}", name
        )
    return by_name[matching[0]][-1]
