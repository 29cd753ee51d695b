"""The vLLM engine without vLLM: what it is told, what is made of its answers, and how an engine that dies or hangs is seen."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import KEY, api, send, wait_until

from medschool.errors import InputError, PlanError, ServiceError
from medschool.serve import vllm_engine
from medschool.serve.engine import Likelihood, Sampling, Step
from medschool.serve.vllm_engine import Pulse, VllmEngine
from medschool.serve.vllm_fields import (
    GIB,
    cache_bytes,
    engine_fields,
    environment,
    likelihood,
    sampling_fields,
    scoring_fields,
    step_of,
)

CONFIG = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}


def place(*tokens: int) -> dict[int, Any]:
    """vLLM's dictionary of one place; the first is the likeliest, with half the probability of each to the next."""
    return {token: SimpleNamespace(logprob=-float(rank), rank=rank) for rank, token in enumerate(tokens, start=1)}


def output(tokens: Sequence[int], finish: str | None = None, logprobs: Any = None, prompt_logprobs: Any = None) -> Any:
    """What vLLM calls a RequestOutput, as far as it is read."""
    made = SimpleNamespace(token_ids=list(tokens), finish_reason=finish, logprobs=logprobs)
    return SimpleNamespace(outputs=[made], prompt_logprobs=prompt_logprobs)


class Scripted:
    """Stands where AsyncLLM does: gives its outputs one after the other, and records what it was asked and what was ended."""

    def __init__(self, outputs: Sequence[Any], error: Exception | None = None) -> None:
        self.outputs, self.error, self.errored = outputs, error, False
        self.asked: list[tuple[Any, Any]] = []
        self.ended = 0

    async def generate(self, prompt: Any, parameters: Any, request_id: str) -> AsyncGenerator[Any]:
        self.asked.append((prompt, parameters))
        try:
            for one in self.outputs:
                await asyncio.sleep(0)
                yield one
            if self.error:
                raise self.error
        finally:
            self.ended += 1

    def shutdown(self) -> None:
        self.errored = True


def made(llm: Scripted, kind: type[VllmEngine] = VllmEngine) -> VllmEngine:
    return kind(lambda: llm, [2], dict)


def steps(engine: VllmEngine, sampling: Sampling, most: int = 100) -> list[Step]:
    async def run() -> list[Step]:
        found: list[Step] = []
        async with aclosing(engine.generate([5, 6], sampling)) as answer:
            async for step in answer:
                found.append(step)
                if len(found) == most:
                    break
        return found

    return asyncio.run(run())


def test_a_request_in_vllm_s_words() -> None:
    asked = Sampling(9, 0.7, 0.9, 11, {3: 1.5}, 0.25, -0.5, 4, '{"type":"object"}')
    assert sampling_fields(asked, (2, 7)) == {
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 11,
        "logit_bias": {3: 1.5},
        "presence_penalty": 0.25,
        "frequency_penalty": -0.5,
        "logprobs": 4,
        "stop_token_ids": [2, 7],
        "schema": '{"type":"object"}',
        "output_kind": "DELTA",
        "detokenize": False,
    }
    plain = sampling_fields(Sampling(1), ())
    assert (plain["temperature"], plain["logprobs"], plain["logit_bias"], plain["seed"]) == (0.0, None, None, None)
    assert scoring_fields(0)["prompt_logprobs"] == 0, "the text's own tokens, and none beside them"


def test_cpu_and_gpu_differ_in_resources_alone() -> None:
    cpu, gpu, two = (engine_fields(Path("/m"), 128, 4, "bf16", gpus) for gpus in (0, 1, 2))
    assert {name for name in cpu | gpu if cpu.get(name) != gpu.get(name)} == {
        "distributed_executor_backend",
        "enforce_eager",
        "max_num_batched_tokens",
    }
    assert (two["tensor_parallel_size"], two["distributed_executor_backend"]) == (2, "mp")
    assert (cpu["max_model_len"], cpu["max_num_seqs"], cpu["load_format"], cpu["dtype"]) == (129, 4, "safetensors", "bfloat16")
    assert engine_fields(Path("/m"), 128, 1000, "fp32", 0)["max_num_batched_tokens"] == 1000, "a step has a token of each"


def test_the_cache_on_cpus_holds_every_place_at_full_length() -> None:
    assert cache_bytes(CONFIG, 100, 5, "bf16") == 5 * 100 * 3 * 2 * 2 * 16 * 2
    assert cache_bytes({**CONFIG, "head_dim": 32, "num_key_value_heads": None}, 100, 5, "fp32") == 5 * 100 * 3 * 2 * 4 * 32 * 4
    variables = environment(CONFIG, 2**20, 2**4, "bf16", 0, 3)
    assert int(variables["VLLM_CPU_KVCACHE_SPACE"]) * GIB == cache_bytes(CONFIG, 2**20, 2**4, "bf16")
    assert environment(CONFIG, 10, 1, "bf16", 0, 3)["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert variables["OMP_NUM_THREADS"] == "3"
    for found in (variables, environment(CONFIG, 10, 1, "bf16", 2, 1)):
        assert found["VLLM_NO_USAGE_STATS"] == "1", "nothing is sent anywhere"
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment(CONFIG, 10, 1, "bf16", 2, 1)


def test_an_answer_in_our_words() -> None:
    assert step_of(output([4, 2], "stop"), None) == Step((4, 2), "stop")
    assert step_of(output([4], None, [place(9, 4)]), 1) == Step((4,), None, (Likelihood(-2.0, ((9, -1.0),)),))
    assert step_of(output([], "length", []), 2) == Step((), "length", ())
    with pytest.raises(ServiceError, match="abort"):
        step_of(output([], "abort"), None)


@given(st.lists(st.floats(-50, 0), min_size=2, max_size=12, unique=True), st.data())
def test_likelihoods_are_those_of_a_sorted_vocabulary(values: list[float], data: st.DataObject) -> None:
    """Against the plain definition: sort everything, take the first; vLLM gives the `top` likeliest and the token's own."""
    token, top = data.draw(st.integers(0, len(values) - 1)), data.draw(st.integers(0, len(values)))
    ordered = sorted(range(len(values)), key=lambda other: -values[other])
    given_by_vllm = [token, *ordered[:top]]  # its own first, as vLLM writes them
    entries = {one: SimpleNamespace(logprob=values[one], rank=ordered.index(one) + 1) for one in given_by_vllm}
    assert likelihood(entries, token, top) == Likelihood(values[token], tuple((one, values[one]) for one in ordered[:top]))


def test_steps_come_as_vllm_gives_them() -> None:
    llm = Scripted([output([7]), output([8, 9]), output([2], "stop")])
    assert steps(made(llm), Sampling(5)) == [Step((7,)), Step((8, 9)), Step((2,), "stop")]
    prompt, parameters = llm.asked[0]
    assert prompt == {"type": "token", "prompt_token_ids": [5, 6]}
    assert (parameters["stop_token_ids"], parameters["max_tokens"]) == ([2], 5)


def test_a_client_that_goes_away_ends_the_request_in_vllm() -> None:
    llm = Scripted([output([token]) for token in range(50)])
    engine = made(llm)
    assert len(steps(engine, Sampling(50), most=2)) == 2
    wait_until(lambda: llm.ended == 1)
    engine.check()


def test_a_text_is_scored_by_its_prompt_logprobs() -> None:
    llm = Scripted([output([1], "length", prompt_logprobs=[None, place(9, 6), place(8, 3, 7)])])
    found = asyncio.run(made(llm).score([5, 6, 7], 1))
    assert found == [None, Likelihood(-2.0, ((9, -1.0),)), Likelihood(-3.0, ((8, -1.0),))]
    assert llm.asked[0][1]["prompt_logprobs"] == 1


def test_a_failure_is_an_error_without_the_prompt_in_it() -> None:
    llm = Scripted([output([7])], RuntimeError("the patient said 5 6"))
    with pytest.raises(ServiceError) as failed:
        steps(made(llm), Sampling(5))
    assert "RuntimeError" in str(failed.value) and "patient" not in str(failed.value)


def test_a_dead_or_stopped_engine_is_not_healthy() -> None:
    llm = Scripted([])
    engine = made(llm)
    engine.check()
    llm.errored = True
    with pytest.raises(ServiceError, match="ended"):
        engine.check()
    with pytest.raises(ServiceError, match="ended"):
        steps(engine, Sampling(1))
    llm.errored = False
    engine.stop()
    with pytest.raises(ServiceError, match="ended"):
        engine.check()


def test_an_engine_that_hangs_is_not_healthy_while_answers_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(vllm_engine, "time", SimpleNamespace(monotonic=lambda: clock.now))
    engine = made(Scripted([output([7]), output([8]), output([2], "stop")]))

    async def run() -> None:
        clock.now += 1000
        engine.check()  # nothing is asked, so silence says nothing
        async with aclosing(engine.generate([5], Sampling(5))) as answer:
            await anext(answer)
            clock.now += vllm_engine.STALL_S - 1
            engine.check()
            await anext(answer)
            clock.now += vllm_engine.STALL_S + 1
            with pytest.raises(ServiceError, match="1 answers wait"):
                engine.check()
        engine.check()

    asyncio.run(run())


def test_a_step_without_an_answer_is_a_sign_of_life() -> None:
    """A long prompt is read in pieces, which give no token; vLLM tells of them through its statistics."""
    pulse = Pulse()
    logger = pulse.logger("config", 0)
    before = pulse.heard_s
    logger.record(SimpleNamespace(num_running_reqs=3, num_waiting_reqs=2, kv_cache_usage=0.5), None, engine_idx=0)
    logger.record(scheduler_stats=None, iteration_stats=None)
    assert (pulse.steps, pulse.running, pulse.waiting, pulse.cache_share) == (2, 3, 2, 0.5) and pulse.heard_s > before
    assert VllmEngine(lambda: Scripted([]), [2], dict, pulse).turns == 2


def test_one_engine_is_called_from_several_loops() -> None:
    """A probe asks from a loop of its own before the API does."""
    engine = made(Scripted([output([7]), output([2], "stop")]))
    assert steps(engine, Sampling(5)) == steps(engine, Sampling(5)) == [Step((7,)), Step((2,), "stop")]


def test_a_missing_vllm_is_named_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    monkeypatch.setattr(vllm_engine, "environment", lambda *_: {})
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "max_position_embeddings": 64}))
    with pytest.raises(ServiceError, match="make vllm"):
        VllmEngine.start(tmp_path, [2], 64, 1)
    with pytest.raises(PlanError, match="65"):
        VllmEngine.start(tmp_path, [2], 65, 1)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.bin")
    with pytest.raises(InputError, match="safetensors"):
        VllmEngine.start(tmp_path, [2], 64, 1)


# ---- response_format, through the API


class Strict(VllmEngine):
    """Follows every schema but one."""

    def check_schema(self, schema: str) -> None:
        if "never" in schema:
            raise InputError("this JSON schema can not be followed", "", "")


def ask(form: Any, path: str = "/v1/chat/completions") -> tuple[int, Any, Any]:
    """(status, parameter at fault, schema that the engine was given)."""
    llm = Scripted([output([104], "stop")])
    subject = {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else {"prompt": "x"}
    body = {"model": "echo", "response_format": form, **subject}
    response = send(api(made(llm, Strict)), "POST", path, json=body, headers={"authorization": f"Bearer {KEY}"})
    error = response.json().get("error") or {}
    return response.status_code, error.get("param"), llm.asked[0][1]["schema"] if llm.asked else None


def named(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, **more}}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(
    ("form", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, '{"type":"object"}'),
        (named({"type": "string"}, strict=True), '{"type":"string"}'),
    ],
)
def test_a_response_format_reaches_the_engine(form: Any, schema: str | None, path: str) -> None:
    assert ask(form, path) == (200, None, schema)


DEEP: Any = {"type": "string"}
for _ in range(40):
    DEEP = {"items": DEEP}


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ("json", "response_format"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format"),
        ({"type": "text", "json_schema": {"name": "a", "schema": {}}}, "response_format"),
        (named([]), "response_format.json_schema.schema"),
        (named({"enum": ["x" * 40_000]}), "response_format.json_schema"),
        (named(DEEP), "response_format.json_schema"),
        (named({"const": "never"}), "response_format"),
    ],
)
def test_a_response_format_that_can_not_be_is_named_before_any_work(form: Any, param: str) -> None:
    assert ask(form) == (400, param, None)
