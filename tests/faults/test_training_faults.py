"""Training that loses a worker or finds a damaged checkpoint ends with the same bytes as training that was left alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from jobs.makers import MAKERS
from jobs.run import Run
from medschool import artifact, storage
from medschool.board import Board, printing
from medschool.errors import InputError, StageError
from medschool.recipe import load
from medschool.stage import fingerprint_in, raw_listing

STAGE = "pretrain/knowledge"
SETTINGS = ("pretrain.length.steps=80", "cluster.checkpoint_every_steps=10")


class Watched(Run):
    """A run of the tiny recipe that keeps its lines, and shows each one to `watch` as it is said."""

    def __init__(self, store: Path, *overrides: str, watch: Callable[["Watched"], None] = lambda run: None) -> None:
        super().__init__(load(store / "tiny.yaml", [*SETTINGS, *overrides]), str(store), Board(None))
        self.lines: list[str] = []
        self._watch = watch

    def hear(self, text: str) -> None:
        self.lines.append(text.strip())
        self._watch(self)

    def make(self, kind: str) -> None:
        with printing(self.hear) as self.board:
            super().make(kind)

    def train(self) -> artifact.Artifact:
        """Only this one variant."""
        stage = self.stages[STAGE]
        inputs = {role: self.artifact(name) for role, name in stage.inputs.items()}
        fingerprint = fingerprint_in(stage, inputs, raw_listing(stage, self.store_uri))
        with printing(self.hear) as self.board:
            return MAKERS["pretrain"](self, stage, inputs, fingerprint)

    def said(self, start: str) -> list[str]:
        return [line for line in self.lines if line.startswith(start)]


class Killer:
    """Kills one training worker with SIGKILL, once, when `states` checkpoints are in the store and a step was trained since."""

    def __init__(self, states: int) -> None:
        self._states, self.killed = states, 0

    def __call__(self, run: Watched) -> None:
        if not self.killed and run.lines[-1].startswith("step") and len(manifests(run)) >= self._states:
            workers = [
                child
                for child in psutil.Process().children(recursive=True)
                if "RayTrainWorker" in child.name() + "".join(child.cmdline())
            ]
            workers[-1].kill()
            self.killed += 1


def manifests(run: Watched) -> list[Path]:
    """Committed training states of a run, oldest first."""
    return sorted(Path(run.store_uri, "artifacts", "pretrain").glob("*/state/*/manifest.json"))


def weights(made: artifact.Artifact) -> str:
    return next(file.sha256 for file in made.files if file.path == "export/model.safetensors")


def losses(made: artifact.Artifact) -> dict[int, float]:
    lines = [json.loads(line) for line in storage.read_bytes(made.uri("metrics.jsonl")).splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def resumed_steps(run: Watched) -> list[int]:
    return [int(line.split()[3]) for line in run.said("resuming at step")]


@pytest.fixture(scope="module")
def prepared(tiny_store: Path, ray_cluster: None) -> Path:
    """A store in which everything but the training is finished."""
    run = Watched(tiny_store)
    for kind in ("model", "tokenizer", "exams", "corpus", "tokens", "overlap", "withheld"):
        run.make(kind)
    return tiny_store


def copy_of(prepared: Path, store: Path) -> Path:
    """A store of its own, so that the same fingerprint is trained again."""
    return Path(shutil.copytree(prepared, store, ignore=shutil.ignore_patterns("pretrain")))


@pytest.fixture(scope="module")
def left_alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> artifact.Artifact:
    """The checkpoint of a training that nothing happened to."""
    run = Watched(copy_of(prepared, tmp_path_factory.mktemp("left_alone") / "store"))
    made = run.train()
    assert not run.said("resuming") and sorted(losses(made)) == list(range(1, 81))
    return made


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> Path:
    return copy_of(prepared, tmp_path / "store")


@pytest.mark.long
def test_a_killed_worker_costs_time_and_not_one_bit(left_alone: artifact.Artifact, store: Path) -> None:
    killer = Killer(states=1)
    run = Watched(store, watch=killer)
    made = run.train()
    assert killer.killed == 1
    assert len(resumed_steps(run)) == 1 and resumed_steps(run)[0] % 10 == 0
    assert weights(made) == weights(left_alone) and made.digest == left_alone.digest
    after = losses(made)
    assert after and after == {step: loss for step, loss in losses(left_alone).items() if step in after}
    cost, undisturbed = made.facts["cost"], left_alone.facts["cost"]
    assert (cost["groups"], cost["workers"], undisturbed["groups"]) == (2, 2, 1)
    assert cost["lost_worker_seconds"] > 0 == undisturbed["lost_worker_seconds"]


@pytest.mark.long
def test_a_damaged_checkpoint_is_passed_over_and_costs_not_one_bit(left_alone: artifact.Artifact, store: Path) -> None:
    first = Watched(store, "cluster.max_failures=0", watch=Killer(states=2))
    with pytest.raises(StageError, match="failed after 0 restarts") as failed:
        first.train()
    assert failed.value.remedy
    whole, newest = manifests(first)[-2:]
    flip_a_bit(next(newest.parent.rglob("*optim_states.pt")))
    for snapshot in newest.parents[2].rglob("checkpoint_manager_snapshot.json"):
        snapshot.write_bytes(b"no JSON")  # Ray Train's own: it is never read
    torn = newest.parent.with_name("00000079") / "torn" / "state"
    torn.mkdir(parents=True)
    (torn / "mp_rank_00_model_states.pt").write_bytes(b"half a fi")

    second = Watched(store, "cluster.max_failures=0")
    with pytest.raises(InputError, match="sha256") as refused:
        second.train()
    assert refused.value.where.endswith("optim_states.pt") and "run again" in refused.value.remedy
    assert resumed_steps(second) == [int(newest.parent.name)]
    assert any("sha256" in line for line in second.said("checkpoint passed over"))

    third = Watched(store, "cluster.max_failures=0")
    made = third.train()
    assert resumed_steps(third) == [int(whole.parent.name)]
    assert weights(made) == weights(left_alone) and made.digest == left_alone.digest


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
