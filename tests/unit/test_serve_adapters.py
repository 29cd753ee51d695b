"""Adapters beside the served model: which may be served, whose files they are, and that a request's `model` chooses one."""

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from safetensors.numpy import save_file
from served import HELLO, INFO, KEY, ask, send
from starlette.types import ASGIApp
from test_vllm_engine import Scripted, output, place, steps

from medschool import artifact
from medschool.artifact import Artifact, Output, read_manifest, upload_folder
from medschool.errors import InputError, RecipeError, ServiceError
from medschool.recipe import load
from medschool.serve.adapters import Adapter, Pulled, find, probe_each, pull
from medschool.serve.admission import Limits
from medschool.serve.api import ModelInfo, build_api
from medschool.serve.engine import EchoEngine, Likelihood, Sampling, Step
from medschool.serve.keys import Key, KeyRing, hash_key
from medschool.serve.template import BytesText
from medschool.serve.vllm_engine import VllmEngine
from medschool.serve.vllm_fields import adapter_fields, engine_fields
from medschool.train.adapter_files import IGNORED

ROOT = Path(__file__).parents[2]
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none", "use_dora": False}
TEMPLATE = "{{ messages }}"


def write_adapter_folder(folder: Path, names: Sequence[str] = ("A", "B"), layer: str = "q_proj", **config: Any) -> Path:
    """What peft saves, with one adapted layer."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    tensors = {f"base_model.model.{layer}.lora_{name}.weight": np.ones((4, 4), np.float32) for name in names}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def base_of(store: Path) -> Artifact:
    """A model in the store."""
    (store / "raw").mkdir(parents=True)
    (store / "raw" / "config.json").write_text("{}")
    made = artifact.make(str(store), "model", "0" * 16, {}, lambda prefix: Output(upload_folder(prefix, store / "raw")))
    return read_manifest(made.manifest_uri)


def trained(store: Path, began_from: str, under: str = "adapter", template: str = TEMPLATE) -> str:
    """The manifest of a training from these weights, with an adapter; its path below the store."""
    folder = store / "scratch"
    write_adapter_folder(folder / under)
    (folder / under / "chat_template.jinja").write_text(template)
    made = artifact.make(
        str(store), "instruct", "1" * 16, {"model": began_from}, lambda prefix: Output(upload_folder(prefix, folder))
    )
    return made.manifest_uri.removeprefix(f"{store}/")


# ---- whose they are


def test_the_adapter_of_a_training_is_found_below_the_store_and_pulled_as_its_manifest_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSCHOOL_CACHE", str(tmp_path / "cache"))
    base = base_of(tmp_path / "store")
    uri = trained(tmp_path / "store", base.digest)
    assert not uri.startswith("/")
    (found,) = find({"tuned": uri}, str(tmp_path / "store"), base)
    assert (found.name, found.rank, len(found.version)) == ("tuned", 4, 16)
    pulled = pull(found, TEMPLATE)
    assert {path.name for path in pulled.folder.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"
    }  # fmt: skip
    with pytest.raises(InputError, match="another template"):
        pull(found, "{{ another }}")


def test_an_adapter_of_other_weights_is_refused_and_so_is_a_training_without_one(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    with pytest.raises(InputError, match=r"trained on the weights ffff.*, served are " + base.digest[:16]):
        find({"tuned": trained(tmp_path, "f" * 64)}, str(tmp_path), base)
    with pytest.raises(InputError, match="it has no adapter"):
        find({"tuned": base.manifest_uri}, "", base)
    with pytest.raises(InputError, match="no such manifest"):
        find({"tuned": "artifacts/nothing/manifest.json"}, str(tmp_path), base)


def test_a_folder_is_hashed_when_it_is_found_and_a_file_that_changed_since_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSCHOOL_CACHE", str(tmp_path / "cache"))
    folder = write_adapter_folder(tmp_path / "mine")
    base = base_of(tmp_path / "store")
    (found,) = find({"mine": f"{folder}/"}, "", base)
    pulled = pull(found, None)
    assert (pulled.rank, pulled.layers) == (4, ("q_proj",))
    tensors = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(tensors[:-1] + b"\x01")
    again = find({"mine": str(folder)}, "", base)[0]
    assert again.version != found.version
    monkeypatch.setenv("MEDSCHOOL_CACHE", str(tmp_path / "another node"))
    with pytest.raises(InputError, match="sha256 is"):
        pull(found, None)


# ---- what may be served


def test_pickles_and_half_a_folder_are_refused(tmp_path: Path) -> None:
    base, folder = base_of(tmp_path / "store"), write_adapter_folder(tmp_path / "pickled")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors \(only adapter_model\.bin, which is a pickle"):
        find({"x": str(folder)}, "", base)
    with pytest.raises(InputError, match=r"no adapter_config\.json and no adapter_model\.safetensors"):
        find({"x": "nowhere"}, str(tmp_path), base)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        *(({key: {"x": 1}}, key) for key in IGNORED),
        ({"bias": "all"}, "bias"),
        ({"r": 0}, "rank 0"),
        ({"r": 513}, "rank 513"),
        ({"r": "8"}, "rank '8'"),
    ],
)
def test_what_serving_would_leave_out_is_refused(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    folder = write_adapter_folder(tmp_path / "mine", **config)
    with pytest.raises(InputError, match=said):
        find({"mine": str(folder)}, "", base_of(tmp_path / "store"))


def test_a_config_that_is_no_json_object_and_tensors_beside_a_and_b_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSCHOOL_CACHE", str(tmp_path / "cache"))
    base = base_of(tmp_path / "store")
    (more,) = find({"more": str(write_adapter_folder(tmp_path / "more", ("A", "B", "magnitude_vector")))}, "", base)
    with pytest.raises(InputError, match=r"1 tensors beside A and B, .*lora_magnitude_vector"):
        pull(more, None)
    (output_layer,) = find({"output": str(write_adapter_folder(tmp_path / "output", layer="lm_head"))}, "", base)
    with pytest.raises(InputError, match="is on the output layer too"):
        pull(output_layer, None)
    folder = write_adapter_folder(tmp_path / "odd")
    for text, said in (("{", "no JSON"), ("[]", "peft_type None")):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(InputError, match=said):
            find({"odd": str(folder)}, "", base)
    broken = write_adapter_folder(tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="is none, or damaged"):
        pull(find({"broken": str(broken)}, "", base)[0], None)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["serve.adapters={ward: raw/ward}"], "only `engine: vllm` serves them"),
        (["serve.engine=vllm", "serve.adapters={medschool: raw/ward}"], "is the name of the model itself"),
        (["serve.engine=vllm", "serve.adapters={a ward: raw/ward}"], "a ward"),
    ],
)
def test_a_recipe_that_no_engine_can_serve_is_refused_before_anything_runs(asked: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load(ROOT / "recipes" / "quickstart.yaml", asked)


# ---- vLLM


def of_ranks(*ranks: int) -> list[Pulled]:
    return [Pulled(str(rank), Path("/a"), rank, ("q_proj",)) for rank in ranks]


def test_vllm_has_room_for_the_adapters_that_there_are() -> None:
    assert adapter_fields([], 1) == {} and "enable_lora" not in engine_fields(Path("/m"), 128, 4, "bf16", 0)
    two = [*of_ranks(4), Pulled("other", Path("/b"), 9, ("down_proj", "q_proj"))]
    assert adapter_fields(two, 1) == {
        "enable_lora": True, "max_lora_rank": 16, "max_loras": 2, "max_cpu_loras": 2,
        "lora_target_modules": ["down_proj", "q_proj"],
    }  # fmt: skip
    many = adapter_fields(of_ranks(512, *range(1, 12)), 1)
    assert (many["max_lora_rank"], many["max_loras"], many["max_cpu_loras"]) == (512, 8, 12)
    assert engine_fields(Path("/m"), 128, 4, "bf16", 1, of_ranks(8))["max_lora_rank"] == 8


@pytest.mark.parametrize("count", [1, 2, 30])
def test_on_cpus_the_last_place_stays_empty(count: int) -> None:
    fields = engine_fields(Path("/m"), 128, 4, "bf16", 0, of_ranks(*[4] * count))
    assert fields["max_loras"] == fields["max_cpu_loras"] == count + 1, "the plain model's rows are computed with the last one"


class Adapted(Scripted):
    """Records which adapter it was asked for."""

    over: Any = "nothing was asked"

    async def generate(self, prompt: Any, parameters: Any, request_id: str, lora_request: Any = None) -> AsyncGenerator[Any]:
        self.over = lora_request
        async for one in super().generate(prompt, parameters, request_id):
            yield one


def test_vllm_is_told_the_adapter_for_answers_and_for_scores() -> None:
    import asyncio

    llm = Adapted([output([2], "stop", prompt_logprobs=[None, place(6)])])
    engine = VllmEngine(lambda: llm, [2], dict, adapters={"ward": "request 1"})
    steps(engine, Sampling(1))
    assert llm.over is None
    steps(engine, Sampling(1, adapter="ward"))
    assert llm.over == "request 1"
    asyncio.run(engine.score([5, 6], 1))
    assert llm.over is None
    assert asyncio.run(engine.score([5, 6], 1, "ward")) == [None, Likelihood(-1.0, ((6, -1.0),))]
    assert llm.over == "request 1"


# ---- by name


class Shouting(EchoEngine):
    """Its adapter `loud` says everything in capitals, and is sure of it."""

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step]:
        said = bytes(prompt).upper() if sampling.adapter == "loud" else prompt
        async for step in super().generate(said, sampling):
            yield step

    async def score(self, tokens: Sequence[int], top: int, adapter: str = "") -> list[Likelihood | None]:
        plain = await super().score(tokens, top)
        return [one and replace(one, logprob=0.0) for one in plain] if adapter == "loud" else plain


@pytest.fixture
def app() -> ASGIApp:
    beside = [ModelInfo("loud", "v-abc+def", INFO.created_s, INFO.name)]
    return build_api(
        Shouting(), BytesText(), INFO, KeyRing([Key("unit", hash_key(KEY))]), Limits(200, 8), adapters=beside
    )  # fmt: skip


def test_models_lists_the_model_and_its_adapters(app: ASGIApp) -> None:
    models = ask(app, lambda client: client.models.list()).data
    assert [(one.id, one.version, getattr(one, "parent", None)) for one in models] == [
        ("echo", "v-abc", None), ("loud", "v-abc+def", "echo"),
    ]  # fmt: skip
    assert ask(app, lambda client: client.models.retrieve("loud")).id == "loud"


@pytest.mark.parametrize("streamed", [False, True])
def test_the_model_of_a_request_chooses_who_answers(app: ASGIApp, streamed: bool) -> None:
    for name, said, version in (("echo", "hello", "v-abc"), ("loud", "HELLO", "v-abc+def")):
        body = {"model": name, "messages": HELLO, "stream": streamed}
        response = send(app, "POST", "/v1/chat/completions", json=body)
        assert response.headers["x-medschool-model-version"] == version
        events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        found = events if streamed else [response.json()]
        assert {(one["model"], one["system_fingerprint"]) for one in found} == {(name, version)}
        parts = [choice.get("delta") or choice.get("message") or {} for one in found for choice in one["choices"]]
        assert "".join(part.get("content") or "" for part in parts) == said
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(app, lambda client: client.chat.completions.create(model="quiet", messages=HELLO))
    assert unknown.value.code == "model_not_found" and "'echo', 'loud'" in str(unknown.value)


def test_plain_completions_are_written_and_scored_by_the_adapter(app: ASGIApp) -> None:
    def completion(name: str) -> Any:
        return ask(
            app,
            lambda client: client.completions.create(model=name, prompt="ab", max_tokens=2, echo=True, logprobs=0),
        ).choices[0]

    plain, loud = completion("echo"), completion("loud")
    assert (plain.text, loud.text) == ("abab", "abAB")
    assert plain.logprobs.token_logprobs[1] < 0 == loud.logprobs.token_logprobs[1]


def test_an_adapter_that_fails_its_probe_is_named() -> None:
    class Lost(EchoEngine):
        async def score(self, tokens: Sequence[int], top: int, adapter: str = "") -> list[Likelihood | None]:
            found = await super().score(tokens, top)
            return [one and replace(one, logprob=float("nan")) for one in found] if adapter == "bad" else found

    probe_each(Lost(), BytesText(), 100, ["good"])
    with pytest.raises(ServiceError, match=r"adapter bad: .*nan") as failed:
        probe_each(Lost(), BytesText(), 100, ["good", "bad"])
    assert "serve.adapters" in failed.value.remedy


def test_adapters_travel_to_a_replica_whole(tmp_path: Path) -> None:
    import pickle

    base = base_of(tmp_path)
    found = find({"tuned": trained(tmp_path, base.digest)}, str(tmp_path), base)
    assert pickle.loads(pickle.dumps(found)) == found and isinstance(found[0], Adapter)
