"""The chat application on a real Ray Serve with a tiny random model: same tokens as transformers, keys, restarts, replacement."""

import asyncio
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import openai
import psutil
import pytest
import torch
from ray import serve
from served import free_port
from tiny import RECIPE
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from medschool import artifact, registry
from medschool.errors import InputError, PlanError, ServiceError
from medschool.recipe import load
from medschool.serve import keys
from medschool.serve.deadline import HEADER_TIMEOUT_S
from medschool.serve.engine import Likelihood, Sampling
from medschool.serve.keys import hash_key
from medschool.serve.on_ray import APP_NAME, ChatArgs, Tls, application, deploy
from medschool.serve.paged import TransformersEngine, adjust, likelihood, noisy
from medschool.serve.template import CheckpointText

KEY = "integration-test-key"
CONTEXT = 128
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTION = [{"role": "user", "content": "The heart pumps"}]


def save_tiny_model(folder: Path, seed: int) -> Path:
    """A random two-layer LLaMA and a byte-level tokenizer, saved as an export is; other seeds give other weights."""
    raw = ByteLevelBPETokenizer()
    raw.train_from_iterator(["The heart pumps blood through the body."] * 3, vocab_size=300, special_tokens=SPECIALS)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw._tokenizer, bos_token=SPECIALS[1], eos_token=SPECIALS[2])
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data[: len(SPECIALS)] = 0.0  # so that answers seldom end early
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def commit(store: Path, folder: Path, fingerprint: str) -> str:
    """The folder as an artifact's export; its manifest URI."""

    def upload(prefix: str) -> artifact.Output:
        return artifact.Output(artifact.upload_folder(prefix, folder, "export"))

    return artifact.make(str(store), "train", fingerprint, {}, upload).manifest_uri


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "export", seed=0)


@pytest.fixture(scope="module")
def manifest_uri(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return commit(tmp_path_factory.mktemp("store"), folder, "0" * 16)


# ---- the engine alone


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TransformersEngine]:
    running = TransformersEngine(folder, [2], context_tokens=CONTEXT, places=2, dtype="fp32")
    yield running
    running.stop()
    with pytest.raises(ServiceError):
        running.check()


def generated(engine: TransformersEngine, prompt: list[int], sampling: Sampling) -> list[int]:
    async def run() -> list[int]:
        return [token async for step in engine.generate(prompt, sampling) for token in step.tokens]

    return asyncio.run(run())


def greedy_reference(folder: Path, prompt: list[int], max_tokens: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    output = model.generate(torch.tensor([prompt]), max_new_tokens=max_tokens, do_sample=False, pad_token_id=0)
    return [int(token) for token in output[0, len(prompt) :]]


def test_many_at_once_are_each_what_transformers_generates(engine: TransformersEngine, folder: Path) -> None:
    prompts = [list(range(3 + start, 3 + start + 5 * (start + 1))) for start in range(6)]

    async def run() -> list[list[int]]:
        async def one(prompt: list[int]) -> list[int]:
            return [token async for step in engine.generate(prompt, Sampling(20)) for token in step.tokens]

        return await asyncio.gather(*(one(prompt) for prompt in prompts))

    assert asyncio.run(run()) == [greedy_reference(folder, prompt, 20) for prompt in prompts]


def test_a_full_context_in_every_place_fits_the_cache(engine: TransformersEngine) -> None:
    async def run() -> list[int]:
        async def one(first: int) -> int:
            sampling, prompt = Sampling(CONTEXT - 10, temperature=1.0, seed=first), [first, *range(10, 19)]
            return sum([len(step.tokens) async for step in engine.generate(prompt, sampling)])

        return await asyncio.gather(*(one(first) for first in range(3, 7)))

    assert max(asyncio.run(run())) > 32, "answers that end early would not test the cache"


def test_a_seed_decides_the_answer(engine: TransformersEngine) -> None:
    def drawn(seed: int | None) -> list[int]:
        return generated(engine, [5, 6, 7], Sampling(12, temperature=2.0, top_p=0.95, seed=seed))

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in (1, 2, None, None)}) == 4


def test_closing_the_iterator_frees_the_cache(engine: TransformersEngine) -> None:
    async def leave_early() -> None:
        async with aclosing(engine.generate([9, 8, 7], Sampling(100, temperature=1.0, seed=0))) as steps:
            await anext(steps)

    asyncio.run(leave_early())
    scheduler = engine._manager.batch_processor.scheduler
    deadline = time.monotonic() + 5
    while scheduler.active_requests or scheduler.waiting_requests:
        assert time.monotonic() < deadline, "the request is still running"
        time.sleep(0.01)
    assert not engine._manager.output_router.result_handlers


def test_draws_follow_the_distribution() -> None:
    logits, draws = torch.tensor([2.0, 1.0, 0.0, -1.0]), 4000

    def frequencies(sampling: Sampling) -> torch.Tensor:
        picks = [int(noisy(logits, sampling, position).argmax()) for position in range(draws)]
        return torch.bincount(torch.tensor(picks), minlength=4) / draws

    assert torch.allclose(frequencies(Sampling(1, 0.7, 1.0, seed=1)), (logits / 0.7).softmax(0), atol=0.03)
    kept = (logits[:2]).softmax(0)  # 0.64 + 0.24 are the smallest set with 0.8
    assert torch.allclose(frequencies(Sampling(1, 1.0, 0.8, seed=1)), torch.cat([kept, torch.zeros(2)]), atol=0.03)


def test_penalties_and_bias_are_openai_s_formula() -> None:
    logits = torch.zeros(4)
    adjust(logits, Sampling(1, logit_bias={0: 3.0}, presence_penalty=0.5, frequency_penalty=0.25), [1, 2, 1])
    assert logits.tolist() == [3.0, -0.5 - 2 * 0.25, -0.5 - 0.25, 0.0]
    found = likelihood(torch.tensor([-1.0, -3.0, -0.5]), 1, 2)
    assert (found.logprob, found.top) == (-3.0, ((2, -0.5), (0, -1.0)))
    assert likelihood(torch.tensor([-1.0, -3.0]), 0, 0).top == ()


def log_probabilities(folder: Path, tokens: list[int]) -> torch.Tensor:
    """(T - 1, V): of each token that may follow the first ones, by transformers itself."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return torch.as_tensor(model(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1))


def test_log_probabilities_are_those_of_transformers_while_others_are_written(engine: TransformersEngine, folder: Path) -> None:
    prompt = list(range(5, 25))

    async def run() -> tuple[list[list[Likelihood | None]], list[tuple[int, Likelihood]]]:
        async def written() -> list[tuple[int, Likelihood]]:
            sampling = Sampling(60, temperature=1.5, seed=3, top_logprobs=3, frequency_penalty=1.0, logit_bias={7: 5.0})
            steps = [step async for step in engine.generate(prompt, sampling)]
            return [pair for step in steps for pair in zip(step.tokens, step.likelihoods, strict=True)]

        writing, scored = asyncio.create_task(written()), []
        while not writing.done():
            scored.append(await engine.score(prompt, 2))
        return scored, await writing

    scored, written = asyncio.run(run())
    assert len(scored) > 2 and len(written) > 20
    expected = log_probabilities(folder, tokens := prompt + [token for token, _ in written])

    def assert_equal(place: int, one: Likelihood | None) -> None:
        assert one is not None
        best = expected[place].topk(len(one.top))
        assert one.logprob == pytest.approx(float(expected[place, tokens[place + 1]]), abs=1e-4)
        assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert [token for token, _ in one.top] == best.indices.tolist()

    for found in scored:
        assert found[0] is None and len(found) == len(prompt)
        for place, one in enumerate(found[1:]):
            assert_equal(place, one)
    for place, (_, one) in enumerate(written, start=len(prompt) - 1):
        assert_equal(place, one)
    shared = {weight.data_ptr() for weight in engine._manager.model.parameters()}
    assert shared == {weight.data_ptr() for weight in engine._scorer.parameters()}, "the weights are in memory once"


def test_bias_and_penalties_change_what_is_written(engine: TransformersEngine) -> None:
    assert generated(engine, [5, 6], Sampling(6, logit_bias={9: 100.0})) == [9] * 6
    assert len(set(generated(engine, [5, 6], Sampling(6, logit_bias={9: 100.0}, presence_penalty=2, frequency_penalty=2)))) == 1
    many = generated(engine, [5, 6], Sampling(30, logit_bias={9: 20.0, 8: 19.0}, frequency_penalty=2.0))
    assert {8, 9} <= set(many) and abs(many.count(8) - many.count(9)) <= 2


def test_unsafe_or_unfit_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="129"):
        TransformersEngine(folder, [2], CONTEXT + 1, 1)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace("{", '{"auto_map": {"AutoModelForCausalLM": "evil.Model"},', 1))
    with pytest.raises(InputError, match="auto_map"):
        TransformersEngine(copy, [2], CONTEXT, 1)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        TransformersEngine(copy, [2], CONTEXT, 1)


# ---- the application on Ray Serve


@pytest.fixture(scope="module")
def http_port(ray_cluster: None) -> Iterator[int]:
    """A free port for Serve on the tests' Ray cluster."""
    port = free_port()
    try:
        yield port
    finally:
        serve.shutdown()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the API keys and the audit log lie."""
    return str(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def args(manifest_uri: str, store: str) -> ChatArgs:
    return ChatArgs(
        model=manifest_uri,
        served_name="tiny",
        dtype="fp32",
        max_context_tokens=CONTEXT,
        max_concurrent_requests=2,
        max_waiting_requests=6,
        api_key_sha256=(hash_key(KEY),),
        store=store,
    )


@pytest.fixture(scope="module")
def url(args: ChatArgs, http_port: int) -> str:
    return deploy(args, http_port)


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=30)


def answer(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 24, **fields})


def replica_pid() -> int:
    """The process that serves: the one of this cluster whose title names the deployment."""
    family = psutil.Process().children(recursive=True)
    return next(process.pid for process in family if "ServeReplica" in " ".join(process.cmdline()))


def test_greedy_answer_is_what_transformers_generates(client: openai.OpenAI, folder: Path) -> None:
    text = CheckpointText(folder)
    expected = greedy_reference(folder, text.encode(QUESTION), 24)
    served = answer(client)
    assert served.choices[0].message.content == text.decode(expected)
    assert served.usage.completion_tokens == len(expected)


def test_stream_says_the_same(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "seed": 7}
    chunks = list(answer(client, stream=True, stream_options={"include_usage": True}, **options))
    whole = answer(client, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert len(chunks) > 4, "it did not stream"


def test_no_key_no_answer(url: str) -> None:
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert httpx.post(f"{url}/v1/chat/completions", json={"messages": QUESTION}).status_code == 401
    assert httpx.get(f"{url}/health/live").status_code == 200


def test_headers_through_the_proxy(url: str, manifest_uri: str) -> None:
    headers = httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {KEY}", "x-request-id": "mine"}).headers
    assert headers["x-medschool-model-version"] == artifact.read_manifest(manifest_uri).digest[:16]
    assert headers.get_list("x-request-id") == ["mine"]


@pytest.fixture(scope="module")
def slow_socket(url: str) -> Iterator[socket.socket]:
    """A client that has sent half a header to the proxy; opened early, so that no test waits for the whole deadline."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: ")
        yield slow


def test_a_slow_header_has_not_been_cut_off_yet(slow_socket: socket.socket) -> None:
    slow_socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        slow_socket.recv(1)


def test_a_harness_scores_texts_as_transformers_does(client: openai.OpenAI, folder: Path) -> None:
    """The request that lm-evaluation-harness sends, against a plain forward."""
    batch = [list(range(5, 30)), list(range(40, 50))]
    answer: Any = client.completions.create(
        model="tiny", prompt=batch, max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1234
    )
    for choice, tokens in zip(answer.choices, batch, strict=True):
        expected = log_probabilities(folder, tokens)
        own = [float(expected[place, token]) for place, token in enumerate(tokens[1:])]
        assert choice.logprobs.token_logprobs[1:-1] == pytest.approx(own, abs=1e-4)
        best = [max(top.values()) for top in choice.logprobs.top_logprobs[1:-1]]
        assert best == pytest.approx(expected.max(-1).values.tolist(), abs=1e-4)
        assert len(choice.logprobs.tokens) == len(tokens) + 1


def test_the_tokenizer_over_http(url: str, folder: Path) -> None:
    text, http = CheckpointText(folder), httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"})
    for body in ({"prompt": "The heart <|im_end|> pumps"}, {"messages": QUESTION}):
        tokens = http.post("/tokenize", json=body).json()["tokens"]
        assert tokens == (text.encode(QUESTION) if "messages" in body else text.encode_text(str(body["prompt"])))
    assert http.post("/detokenize", json={"tokens": text.encode_text("The heart")}).json() == {"prompt": "The heart"}
    info = http.get("/tokenizer_info").json()
    assert (info["eos_token"], info["chat_template"]) == ("<|im_end|>", TEMPLATE)
    assert http.post("/tokenize", json={"prompt": "<|im_end|>"}).json()["tokens"] == [2]
    assert 2 not in http.post("/tokenize", json={"prompt": "a<|im_end|>"}).json()["tokens"]


def test_a_key_of_the_store_is_let_in_recorded_and_revoked_while_it_serves(url: str, store: str) -> None:
    secret = keys.create(store, "ward-7")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0)

    def until(status: int) -> None:
        deadline = time.monotonic() + keys.REREAD_S + 5
        while httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {secret}"}).status_code != status:
            assert time.monotonic() < deadline, f"never {status}"
            time.sleep(0.2)

    until(200)
    assert answer(client).choices[0].finish_reason
    keys.revoke(store, "ward-7")
    until(401)
    records = [json.loads(line) for path in Path(store, "audit").rglob("*.jsonl") for line in path.read_text().splitlines()]
    assert [record["answer_tokens"] > 0 for record in records if record["key"] == "ward-7"] == [True]


def test_too_many_get_429_and_a_retry_succeeds(client: openai.OpenAI) -> None:
    patient = client.with_options(max_retries=8)

    def one(index: int) -> str:
        asking = patient if index % 2 else client
        try:
            return str(answer(asking, temperature=1, n=2, max_tokens=60).choices[0].finish_reason)
        except openai.RateLimitError as busy:
            assert busy.code == "busy", "the proxy and the replica refuse in the same form"
            return f"429 retry-after {busy.response.headers['retry-after']}"

    with ThreadPoolExecutor(24) as pool:
        outcomes = list(pool.map(one, range(24)))
    assert "429 retry-after 1" in outcomes[::2]
    assert set(outcomes[1::2]) <= {"stop", "length"}


def test_a_slow_header_is_cut_off_by_the_proxy(slow_socket: socket.socket) -> None:
    slow_socket.settimeout(HEADER_TIMEOUT_S + 5)
    assert slow_socket.recv(1) == b"", "the proxy closes it, and says nothing"


def test_same_arguments_leave_the_replica_alone(args: ChatArgs, url: str, http_port: int) -> None:
    before = replica_pid()
    start = time.monotonic()
    assert deploy(args, http_port) == url
    assert time.monotonic() - start < 5
    assert replica_pid() == before


def test_a_killed_replica_is_replaced(client: openai.OpenAI) -> None:
    before, killed = answer(client), replica_pid()
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        try:
            after = answer(client)
            break
        except openai.APIError:
            assert time.monotonic() < deadline, "not served again"
            time.sleep(0.5)
    assert replica_pid() != killed
    assert after.choices[0].message.content == before.choices[0].message.content


def test_an_unreachable_port_is_named(args: ChatArgs, url: str) -> None:
    with pytest.raises(ServiceError, match="another port"):
        deploy(args, http_port=1)


def test_a_new_model_version_replaces_the_old(args: ChatArgs, client: openai.OpenAI, http_port: int, tmp_path: Path) -> None:
    uri = commit(tmp_path / "store", save_tiny_model(tmp_path / "export", seed=1), "1" * 16)
    before = answer(client)
    deploy(args.model_copy(update={"model": uri}), http_port)
    after = answer(client)
    assert after.system_fingerprint == artifact.read_manifest(uri).digest[:16] != before.system_fingerprint
    assert after.choices[0].message.content != before.choices[0].message.content


def test_the_builder_makes_the_same_application(manifest_uri: str, http_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve_apps import chat

    monkeypatch.setenv("MEDSCHOOL_API_KEY", "from-the-environment")
    serve.run(chat.app(ChatArgs(engine="echo", served_name="echo")), name=APP_NAME, route_prefix="/")
    echo = openai.OpenAI(base_url=f"http://127.0.0.1:{http_port}/v1", api_key="from-the-environment")
    assert answer(echo, model="echo").choices[0].message.content == "The heart pumps"


# ---- arguments and references


def test_the_recipe_chooses_the_engine_and_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.run import Run
    from jobs.serve import serve as serve_job

    asked: list[tuple[ChatArgs, Tls | None]] = []
    monkeypatch.setattr("medschool.serve.on_ray.deploy", lambda args, port, tls: asked.append((args, tls)) or "https://x")
    said: list[str] = []
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    for overrides in ([], ["serve.engine=echo", "serve.answer_timeout_s=9", "serve.tls={certificate: /a, key: /b}"]):
        run = Run(load(tmp_path / "tiny.yaml", overrides), "", cast("Any", SimpleNamespace(put=said.append)))
        serve_job(run)
    (plain, no_tls), (echo, tls) = asked
    assert (plain.engine, plain.model, no_tls) == ("transformers", "models:/medschool-tiny@champion", None)
    assert (echo.engine, echo.model, echo.answer_timeout_s, tls) == ("echo", "", 9, Tls("/a", "/b"))
    assert "an echo without weights at https://x" in said[1]


def test_arguments_that_make_no_sense_are_refused(manifest_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (
        {"engine": "echo", "model": "x"},
        {"engine": "transformers"},
        {"model": "x", "port": 1},
        {"model": "x", "api_key_sha256": ("k",)},
    ):
        with pytest.raises(ValueError):
            ChatArgs.model_validate(wrong)
    monkeypatch.delenv("MEDSCHOOL_API_KEY", raising=False)
    monkeypatch.delenv("MEDSCHOOL_STORE", raising=False)
    with pytest.raises(ServiceError, match="no API key"):
        ChatArgs(model=manifest_uri).with_keys()
    monkeypatch.setenv("MEDSCHOOL_STORE", "s3://hospital")
    assert ChatArgs(model=manifest_uri).with_keys().store == "s3://hospital"
    with pytest.raises(ServiceError, match="no such file"):
        deploy(ChatArgs(engine="echo"), 1, Tls("/nowhere/chain.pem", "/nowhere/key.pem"))


def test_an_alias_is_resolved_when_the_application_is_built(
    manifest_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/registry.db")
    monkeypatch.setenv("MEDSCHOOL_API_KEY", KEY)
    registry.register(artifact.read_manifest(manifest_uri), "tiny", "champion", run=None, tags={})
    built = application(ChatArgs(model="models:/tiny@champion"))
    assert manifest_uri in built._bound_deployment.init_args
    with pytest.raises(InputError, match="no such manifest"):
        application(ChatArgs(model=str(tmp_path / "manifest.json")))
    with pytest.raises(ServiceError, match="no such model"):
        application(ChatArgs(model="models:/tiny@rollback"))
