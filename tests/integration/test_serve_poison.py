"""Poisoned requests and planted pickles, against real weights: one request fails alone, and nothing in a folder is ever run."""

import asyncio
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_serve import commit, save_tiny_model

from medschool import artifact, registry
from medschool.errors import InputError, MedschoolError, ServiceError
from medschool.serve.engine import Sampling
from medschool.serve.on_ray import ChatArgs, application
from medschool.serve.paged import TransformersEngine
from medschool.serve.template import CheckpointText

CONTEXT = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "export", seed=0)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TransformersEngine]:
    running = TransformersEngine(folder, [2], context_tokens=CONTEXT, places=4, dtype="fp32")
    yield running
    running.stop()


# ---- one bad request in a batch


class Poison(Mapping[int, float]):
    """A bias that fails once the model looks at it, in the middle of the batch."""

    def __getitem__(self, token: int) -> float:
        raise ZeroDivisionError("poisoned")

    def __iter__(self) -> Iterator[int]:
        return iter([7])

    def __len__(self) -> int:
        return 1


def answered(engine: TransformersEngine, asked: list[tuple[list[int], Sampling]]) -> list[Any]:
    """What each request gave, asked all at once: its tokens, or the error."""

    async def one(prompt: list[int], sampling: Sampling) -> list[int]:
        return [token async for step in engine.generate(prompt, sampling) for token in step.tokens]

    async def run() -> list[Any]:
        return await asyncio.gather(*(one(*request) for request in asked), return_exceptions=True)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "poisoned",
    [
        ([5, 6, 7], Sampling(20, logit_bias=Poison())),
        ([5, 6, 7], Sampling(20, logit_bias={10**6: 1.0})),
        ([5, 10**6, 7], Sampling(20)),
        ([5, 6, 7], Sampling(20, top_logprobs=10**6)),
    ],
    ids=["a bias that fails", "a bias of no token", "a token that is none", "more log-probabilities than tokens"],
)
def test_a_poisoned_request_fails_alone(engine: TransformersEngine, poisoned: tuple[list[int], Sampling]) -> None:
    good = [
        (list(range(3, 30)), Sampling(24)),
        ([9, 8, 7], Sampling(24, temperature=1.0, seed=5)),
        (list(range(40, 50)), Sampling(24, temperature=1.5, seed=6, logit_bias={7: 2.0}, frequency_penalty=0.5)),
    ]
    alone = [answered(engine, [request])[0] for request in good]
    together = answered(engine, [good[0], poisoned, *good[1:]])
    failed = together.pop(1)
    assert isinstance(failed, ServiceError), failed
    assert together == alone and all(len(tokens) > 4 for tokens in alone)
    engine.check()


def test_scoring_a_token_that_is_none_fails_alone(engine: TransformersEngine) -> None:
    with pytest.raises(ServiceError, match="1000000"):
        asyncio.run(engine.score([5, 10**6], 1))
    assert len(asyncio.run(engine.score([5, 6], 1))) == 2


# ---- planted pickles


class Trap:
    """Unpickled, it makes the folder that it names."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


PLANTED = (
    "pytorch_model.bin", "model.pt", "consolidated.00.pth", "training_args.bin", "optimizer.pt", "scheduler.pt", "adapter_model.bin",
    "tokenizer.pkl", "python_model.pkl", "model.pkl", "data.pickle", "rng_state.pth",
)  # fmt: skip


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """What a trap makes. It works: loaded by hand it is there. At the end it must not be."""
    path = tmp_path / "canary"
    (tmp_path / "by_hand").write_bytes(pickle.dumps(Trap(path)))
    pickle.loads((tmp_path / "by_hand").read_bytes())
    path.rmdir()
    torch.save(Trap(path), tmp_path / "saved.pt")
    torch.load(tmp_path / "saved.pt", weights_only=False)
    path.rmdir()
    yield path
    assert not path.exists(), "code from the folder was run"


def plant(folder: Path, canary: Path) -> None:
    for number, name in enumerate(PLANTED):
        if number % 2:
            torch.save(Trap(canary), folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps(Trap(canary)))


def start(folder: Path) -> None:
    """As a replica starts."""
    text = CheckpointText(folder)
    TransformersEngine(folder, text.end_ids, CONTEXT, 1, "fp32").stop()


def test_pickles_beside_the_weights_are_never_opened(folder: Path, canary: Path, tmp_path: Path) -> None:
    planted = Path(shutil.copytree(folder, tmp_path / "planted"))
    plant(planted, canary)
    start(planted)


@pytest.mark.parametrize("names", [PLANTED, ("pytorch_model.bin",), ("model.safetensors",)], ids=["all", "one", "renamed"])
def test_pickles_in_place_of_the_weights_are_refused(names: tuple[str, ...], folder: Path, canary: Path, tmp_path: Path) -> None:
    planted = Path(shutil.copytree(folder, tmp_path / "planted"))
    (planted / "model.safetensors").unlink()
    plant(planted, canary)
    for name in {*PLANTED} - {*names}:
        (planted / name).unlink()
    if "model.safetensors" in names:
        (planted / "model.safetensors").write_bytes(pickle.dumps(Trap(canary)))
    with pytest.raises(InputError, match="safetensors"):
        start(planted)


@pytest.mark.parametrize("key", ["auto_map", "custom_generate", "tokenizer"])
def test_code_beside_the_weights_is_never_run(key: str, folder: Path, canary: Path, tmp_path: Path) -> None:
    planted = Path(shutil.copytree(folder, tmp_path / "planted"))
    code = f"import os\nos.mkdir({str(canary)!r})\n"
    for name in ("modeling_evil.py", "tokenization_evil.py", "configuration_evil.py"):
        (planted / name).write_text(code)
    (planted / "custom_generate").mkdir()
    (planted / "custom_generate" / "generate.py").write_text(code)
    name = "tokenizer_config.json" if key == "tokenizer" else "config.json"
    if key != "custom_generate":
        text = (planted / name).read_text()
        (planted / name).write_text(text.replace("{", '{"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", null]},', 1))
    try:
        start(planted)
    except (MedschoolError, ValueError) as refused:
        assert key != "custom_generate", refused


def test_a_version_that_others_put_into_the_registry_is_not_served(
    folder: Path, canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's own models may hold pickles. A version that names no manifest is none of ours; a changed one is found out."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/registry.db")
    monkeypatch.setenv("MEDSCHOOL_API_KEY", "k")
    monkeypatch.setenv("MEDSCHOOL_CACHE", str(tmp_path / "cache"))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    plant(foreign, canary)
    client = MlflowClient()
    client.create_registered_model("tiny")
    version = client.create_model_version("tiny", str(foreign), await_creation_for=0)
    client.set_registered_model_alias("tiny", "champion", version.version)
    with pytest.raises(ServiceError, match="no such model"):
        application(ChatArgs(model="models:/tiny@champion"))
    uri = commit(tmp_path / "store", folder, "0" * 16)
    registry.register(artifact.read_manifest(uri), "tiny", "champion", run=None, tags={})
    assert uri in application(ChatArgs(model="models:/tiny@champion"))._bound_deployment.init_args
    (weights,) = (tmp_path / "store").rglob("model.safetensors")
    weights.write_bytes(pickle.dumps(Trap(canary)).ljust(weights.stat().st_size, b"\0"))
    with pytest.raises(InputError, match="sha256"):
        artifact.local_copy(artifact.read_manifest(uri), "export")
