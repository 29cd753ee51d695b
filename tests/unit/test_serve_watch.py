"""Serving in operation, without Ray: a dead or hanging engine, the warm-up probe, the proxy's last word, numbers, how many replicas."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from failing_engines import DIE, HANG, CommandedEngine
from served import HELLO, KEY, BrokenEngine, CountingEngine, api, ask, on_port, send, stream, wait_until

from medschool.cluster.farewell import answers_in_flight, finish_answers
from medschool.cluster.state import Services
from medschool.cluster.status import next_steps, status
from medschool.errors import RecipeError, ServiceError
from medschool.recipe import load
from medschool.serve.engine import EchoEngine, Likelihood, Sampling, Step
from medschool.serve.metrics import Metrics
from medschool.serve.probe import probe
from medschool.serve.proxy import JsonErrors
from medschool.serve.template import BytesText
from medschool.serve.watch import Load, WatchedEngine

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
QUICK = 0.01
SILENT_LOOKS = 20
MINE = {"authorization": f"Bearer {KEY}"}


@contextmanager
def watched(engine: Any, seen: Callable[[Load], None] | None = None) -> Iterator[tuple[WatchedEngine, list[ServiceError]]]:
    """The engine under a watch that looks a hundred times a second, and the faults that it told."""
    faults: list[ServiceError] = []
    watch = WatchedEngine(engine, SILENT_LOOKS, faults.append, seen, look_s=QUICK)
    try:
        yield watch, faults
    finally:
        watch.stop()


async def read(engine: Any, prompt: str) -> list[int]:
    return [token async for step in engine.generate(prompt.encode(), Sampling(100)) for token in step.tokens]


# ---- dead and hanging engines


@pytest.mark.parametrize(("told", "said"), [(HANG, "hangs: 3 answers run"), (DIE, "the loop has ended")])
def test_running_answers_end_with_the_fault_and_later_ones_are_refused(told: str, said: str) -> None:
    async def run(engine: WatchedEngine) -> list[Any]:
        return await asyncio.gather(*(read(engine, told) for _ in range(3)), return_exceptions=True)

    with watched(CommandedEngine()) as (engine, faults):
        for outcome in asyncio.run(run(engine)):
            assert isinstance(outcome, ServiceError) and said in outcome.problem
        with pytest.raises(ServiceError, match=said):
            engine.check()
        with pytest.raises(ServiceError, match=said):
            asyncio.run(read(engine, "later"))
        with pytest.raises(ServiceError, match=said):
            asyncio.run(engine.score(b"later", 1))
        wait_until(lambda: bool(faults))
    assert [said in fault.problem for fault in faults] == [True], "told once"


class TurningEngine(EchoEngine):
    """Reads a long prompt: its loop turns, and no token comes for many looks."""

    turns = 0

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step]:
        for _ in range(4 * SILENT_LOOKS):
            await asyncio.sleep(QUICK)
            self.turns += 1
        async for step in super().generate(prompt, sampling):
            yield step

    def load(self) -> Load:
        return Load(running=1, waiting=2, cache_share=0.5)


def test_an_engine_that_turns_or_has_nothing_to_do_is_left_alone() -> None:
    seen: list[Load] = []
    with watched(TurningEngine(), seen.append) as (engine, faults):
        time.sleep(2 * SILENT_LOOKS * QUICK)
        assert bytes(asyncio.run(read(engine, "a long prompt"))) == b"a long prompt"
        assert not faults and set(seen) == {Load(1, 2, 0.5)} and len(seen) > SILENT_LOOKS
        engine.check()


def test_a_slow_engine_is_not_a_hanging_one() -> None:
    with watched(EchoEngine(delay_s=2 * QUICK)) as (engine, faults):
        assert len(asyncio.run(read(engine, "x" * 3 * SILENT_LOOKS))) == 3 * SILENT_LOOKS
    assert not faults


def test_a_client_that_leaves_is_no_fault_and_frees_its_place() -> None:
    inner = CountingEngine(delay_s=QUICK)

    async def leave(engine: WatchedEngine) -> None:
        reading = asyncio.create_task(read(engine, "x" * 100))
        await asyncio.sleep(3 * QUICK)
        assert (inner.running, engine.load()) == (1, Load(running=1))
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        async with aclosing(engine.generate(b"xy", Sampling(9))) as steps:
            await anext(steps)

    with watched(inner) as (engine, faults):
        asyncio.run(leave(engine))
        assert (inner.running, engine.load(), faults) == (0, Load(), [])


def test_clients_of_a_hanging_engine_get_an_error_event_and_then_503() -> None:
    with watched(CommandedEngine()) as (engine, _):
        app = api(engine)
        with pytest.raises(openai.APIError, match="not complete"):
            stream(app, messages=[{"role": "user", "content": HANG}])
        ready = send(app, "GET", "/health/ready")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "not_ready")
        refused = send(app, "POST", "/v1/chat/completions", json={"model": "echo", "messages": HELLO})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert send(app, "GET", "/health/live").status_code == 200


# ---- the warm-up probe


class WrongEngine(EchoEngine):
    """Weights that answer, but wrongly: `written` and `scored` change what its log-probabilities are."""

    def __init__(self, written: Callable[[Likelihood], Likelihood], scored: Callable[[Likelihood], Likelihood]) -> None:
        super().__init__()
        self._written, self._scored = written, scored

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step]:
        async for step in super().generate(prompt, sampling):
            yield Step(step.tokens, step.finish, tuple(map(self._written, step.likelihoods)))

    async def score(self, tokens: Sequence[int], top: int, adapter: str = "") -> list[Likelihood | None]:
        return [one and self._scored(one) for one in await super().score(tokens, top)]


def as_found(one: Likelihood) -> Likelihood:
    return one


def not_a_number(one: Likelihood) -> Likelihood:
    return Likelihood(math.nan, ((0, math.nan),))


def all_alike(one: Likelihood) -> Likelihood:
    return Likelihood(-math.log(256), ((0, -math.log(256)),))


def another(one: Likelihood) -> Likelihood:
    return Likelihood(one.logprob - 3, one.top)


@pytest.mark.parametrize(
    ("written", "scored", "said"),
    [
        (not_a_number, not_a_number, "is nan"),
        (as_found, not_a_number, "nan by a plain forward"),
        (all_alike, all_alike, "all 256 tokens equally likely"),
        (as_found, another, "-0.69 in the running batch, -3.69 by a plain forward"),
    ],
)
def test_wrong_weights_fail_the_probe(written: Any, scored: Any, said: str) -> None:
    with pytest.raises(ServiceError, match=said):
        probe(WrongEngine(written, scored), BytesText(), 100)


def test_sound_engines_pass_the_probe_also_from_inside_a_loop() -> None:
    async def in_a_loop() -> None:
        probe(EchoEngine(), BytesText(), 2)

    asyncio.run(in_a_loop())
    probe(WrongEngine(as_found, as_found), BytesText(), 100)
    silent = WrongEngine(not_a_number, not_a_number)
    silent.honours = frozenset()
    probe(silent, BytesText(), 100)  # an engine without log-probabilities is asked for an answer alone


def test_no_answer_fails_the_probe() -> None:
    class Mute(EchoEngine):
        async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step]:
            yield Step((), "stop")

    with pytest.raises(ServiceError, match="empty"):
        probe(Mute(), BytesText(), 100)
    with pytest.raises(ServiceError, match=r"no answer of 8 tokens within 0\.05 s"):
        probe(EchoEngine(delay_s=0.1), BytesText(), 100, timeout_s=0.05)
    with pytest.raises(ServiceError, match="out of memory"):
        probe(BrokenEngine(), BytesText(), 100)


# ---- the proxy's last word


def dying(*messages: dict[str, Any]) -> JsonErrors:
    """Ray's proxy when a replica dies after these messages: it just returns."""

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return JsonErrors(proxy)


def started(kind: str) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind.encode())]}


def test_a_stream_whose_replica_dies_ends_with_an_error_event() -> None:
    chunk = b'data: {"id": "1", "object": "chat.completion.chunk", "choices": []}\n\n'
    app = dying(started("text/event-stream; charset=utf-8"), {"type": "http.response.body", "body": chunk, "more_body": True})

    async def use(client: openai.AsyncOpenAI) -> int:
        seen = 0
        with pytest.raises(openai.APIError, match="replica died"):
            async for _ in await client.chat.completions.create(model="echo", messages=HELLO, stream=True):
                seen += 1
        return seen

    assert ask(app, use) == 1


def test_a_request_whose_replica_dies_is_an_error_in_json_and_no_answer_is_taken_for_whole() -> None:
    with on_port(dying()) as url:
        answer = httpx.get(url)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "server_fault")
    half = {"type": "http.response.body", "body": b"{", "more_body": True}
    with on_port(dying(started("application/json"), half)) as url, pytest.raises(httpx.RemoteProtocolError):
        httpx.get(url)


# ---- numbers


def test_every_number_is_told_to_the_mirror_too() -> None:
    told: list[tuple[str, str, float, dict[str, str]]] = []

    class Mirrored:
        def __init__(self, kind: str, name: str, said: str, labels: Sequence[str]) -> None:
            self._name = name

        def __getattr__(self, verb: str) -> Any:
            return lambda value, tags: told.append((self._name.removeprefix("medschool_serve_"), verb, value, tags))

    metrics = Metrics(Mirrored)
    metrics.requests.labels("/v1/models", "429").inc()
    metrics.tokens.labels("answer").inc(0)
    metrics.first_token_s.observe(0.2)
    metrics.in_flight.set(2)
    metrics.load(Load(3, 2, 0.25))
    assert told == [
        ("requests", "inc", 1, {"path": "/v1/models", "status": "429"}),
        ("first_token_seconds", "observe", 0.2, {}),
        ("answers_in_flight", "set", 2, {}),
        ("answers_in_flight", "set", 2, {}),
        ("batch_answers", "set", 3, {}),
        ("waiting_answers", "set", 2, {}),
        ("cache_used_ratio", "set", 0.25, {}),
    ]
    shown = metrics.text().decode()
    assert 'requests_total{path="/v1/models",status="429"} 1.0' in shown and "cache_used_ratio 0.25" in shown


# ---- how many replicas, and where


def test_the_recipe_says_how_many_replicas_and_refuses_what_can_not_be() -> None:
    spec = load(QUICKSTART, ["serve.min_replicas=0", "serve.max_replicas=4", "serve.target_requests=2.5"]).serve
    assert spec and (spec.min_replicas, spec.max_replicas, spec.target_requests) == (0, 4, 2.5)
    for wrong in ("serve.min_replicas=2", "serve.max_replicas=0", "serve.target_requests=0", "serve.health_period_s=0"):
        with pytest.raises(RecipeError, match="serve"):
            load(QUICKSTART, [wrong])


def certificate(folder: Path) -> tuple[str, str]:
    """A self-signed certificate for 127.0.0.1 and its key, as PEM files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "model.example")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
    signed = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
    (folder / "chain.pem").write_bytes(signed.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(secret)
    return str(folder / "chain.pem"), str(folder / "key.pem")


def test_status_and_the_printed_line_say_https_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, key = certificate(tmp_path)
    for variable in ("MLFLOW_TRACKING_URI", "MEDSCHOOL_RAY_JOBS"):
        monkeypatch.delenv(variable, raising=False)
    for options in ({}, {"ssl_certfile": chain, "ssl_keyfile": key}):
        with on_port(api(), **options) as url:
            port = url.rsplit(":", 1)[1]
            monkeypatch.setenv("MEDSCHOOL_SERVE_PORT", port)
            scheme = "https" if options else "http"
            assert status()["serve"] == {"url": f"{scheme}://127.0.0.1:{port}", "ready": True}
    lines = "\n".join(next_steps(served=True, tls=True))
    assert f"curl -s -k https://127.0.0.1:{port}/v1/chat/completions" in lines and "http://127.0.0.1:" not in lines
    assert f"curl -s http://127.0.0.1:{port}/v1" in "\n".join(next_steps(served=True))
    wait_until(lambda: not status()["serve"]["ready"])
    assert threading.active_count() < 50


def test_answers_that_are_written_when_the_machine_is_stopped_are_seen(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "api_key").write_text(KEY)
    assert answers_in_flight(Services(tmp_path)) == 0
    with on_port(api(CommandedEngine())) as url:
        services = Services(tmp_path, {"serve": int(url.rsplit(":", 1)[1])})
        assert answers_in_flight(services) == 0
        said: list[str] = []
        finish_answers(services, dict, said.append)
        assert said == [], "nothing to wait for"
        body = {"model": "echo", "messages": [{"role": "user", "content": HANG}], "n": 2, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=MINE) as answer:
            pieces = answer.iter_text()  # httpx closes the answer with it
            next(pieces)
            assert answers_in_flight(services) == 2
    assert answers_in_flight(services) == 0, "nobody answers"


@pytest.mark.parametrize("name", ["RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "RAY_SERVE_USE_GRPC_BY_DEFAULT"])
def test_what_serve_is_told_here_is_told_on_the_cluster(name: str) -> None:
    from medschool.cluster import ray_head

    assert f'"{name}": "1"' in Path(ray_head.__file__).read_text()
    assert f"--env={name}=1 " in (Path(__file__).parents[2] / "cluster.yaml").read_text()
