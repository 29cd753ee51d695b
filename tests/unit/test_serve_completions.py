"""Plain completions, log-probabilities and the tokenizer's routes, by the official client over the shipped EchoEngine."""

import asyncio
import json
import math
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import HELLO, KEY, BrokenEngine, api, ask, chat, on_port, send, stream

from medschool.serve.engine import EchoEngine, Sampling

HALF, QUARTER = math.log(1 / 2), math.log(1 / 4)


def complete(app: Any, **fields: Any) -> Any:
    return ask(app, lambda client: client.completions.create(**{"model": "echo", **fields}))


def streamed(app: Any, **fields: Any) -> list[Any]:
    async def use(client: openai.AsyncOpenAI) -> list[Any]:
        return [chunk async for chunk in await client.completions.create(**{"model": "echo", "stream": True, **fields})]

    return list(ask(app, use))


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [("abc", ["abc"]), (["abc", "de"], ["abc", "de"]), ([97, 98], ["ab"]), ([[97], [98, 99]], ["a", "bc"])],
    ids=["text", "texts", "ids", "lists of ids"],
)
def test_prompts_in_every_form(prompt: Any, texts: list[str]) -> None:
    answer = complete(api(), prompt=prompt)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert [choice.text for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == list(range(len(texts)))
    assert answer.usage.prompt_tokens == answer.usage.completion_tokens == sum(map(len, texts))


def test_sixteen_tokens_are_the_default_and_choices_of_a_prompt_are_neighbours() -> None:
    assert complete(api(), prompt="x" * 20).choices[0].text == "x" * 16
    answer = complete(api(), prompt=["ab", "cd"], n=2, max_tokens=1)
    assert [choice.text for choice in answer.choices] == ["a", "a", "c", "c"]
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 4


def test_echo_with_log_probabilities_is_the_prompt_and_then_the_answer() -> None:
    choice = complete(api(), prompt="ab", max_tokens=1, echo=True, logprobs=2, temperature=0).choices[0]
    assert (choice.text, choice.finish_reason) == ("aba", "length")
    assert choice.logprobs.tokens == ["a", "b", "a"] and choice.logprobs.text_offset == [0, 1, 2]
    assert choice.logprobs.token_logprobs == [None, HALF, HALF]
    assert choice.logprobs.top_logprobs == [None, {"b": HALF, "c": QUARTER}, {"a": HALF, "b": QUARTER}]


def test_nothing_is_written_at_max_tokens_0() -> None:
    answer = complete(api(context=3), prompt="abc", max_tokens=0, echo=True, logprobs=0)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason, answer.usage.completion_tokens) == ("abc", "length", 0)
    assert choice.logprobs.token_logprobs == [None, HALF, HALF]
    assert choice.logprobs.top_logprobs == [None, {"b": HALF}, {"c": HALF}]
    assert complete(api(), prompt="abc", max_tokens=0, echo=True).choices[0].logprobs is None


@settings(max_examples=8, deadline=None)
@given(
    prompts=st.lists(st.text("aé心🩺 \n", min_size=1, max_size=6), min_size=1, max_size=3),
    echo=st.booleans(), logprobs=st.none() | st.integers(0, 5), most=st.integers(1, 30), stop=st.none() | st.sampled_from(["é", "🩺\n"]),
)  # fmt: skip
def test_a_stream_and_a_whole_answer_say_the_same(
    prompts: list[str], echo: bool, logprobs: int | None, most: int, stop: str | None
) -> None:
    fields = {"prompt": prompts, "echo": echo, "logprobs": logprobs, "max_tokens": most, "stop": stop}
    whole = complete(api(), **fields)
    chunks = streamed(api(), **fields, stream_options={"include_usage": True})
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    for choice in whole.choices:
        parts = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]
        if logprobs is None:
            assert choice.logprobs is None
            continue
        for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            joined = [value for part in parts for value in getattr(part.logprobs, name) or []]
            assert joined == getattr(choice.logprobs, name), name
        assert all(0 <= offset <= len(choice.text) for offset in choice.logprobs.text_offset)


def test_a_harness_scores_a_continuation() -> None:
    """As lm-evaluation-harness 0.4.13 asks and reads (`LocalCompletionsAPI`): ids, echo, one token, log-probabilities between."""
    context, continuation = b"The heart", b" pumps"
    body = {"model": "echo", "prompt": [[*context, *continuation], [*context, 33]], "temperature": 0, "max_tokens": 1}
    answer = send(api(), "POST", "/v1/completions", json=body | {"logprobs": 1, "seed": 1234, "echo": True}).json()
    for choice, tokens in zip(answer["choices"], (6, 1), strict=True):
        found = choice["logprobs"]["token_logprobs"][len(context) : -1]
        tops = choice["logprobs"]["top_logprobs"][len(context) : -1]
        assert sum(found) == pytest.approx(tokens * HALF) and len(tops) == tokens
        assert all(one == max(top.values()) for one, top in zip(found, tops, strict=True))


def test_chat_log_probabilities() -> None:
    content = chat(api(), logprobs=True, top_logprobs=2, max_tokens=2).choices[0].logprobs.content
    assert [(token.token, token.logprob, token.bytes) for token in content] == [("h", HALF, [104]), ("e", HALF, [101])]
    assert [(top.token, top.logprob) for top in content[0].top_logprobs] == [("h", HALF), ("i", QUARTER)]
    chunks = [chunk.choices[0] for chunk in stream(api(), logprobs=True, max_tokens=2)]
    assert [token.token for part in chunks if part.logprobs for token in part.logprobs.content] == ["h", "e"]
    assert chat(api()).choices[0].logprobs is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [97, "b"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [256]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "x" * 200}, "prompt"),
        ({"prompt": ["x"] * 9}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stop": ["x" * 1001]}, "stop[0]"),
    ],
)
def test_bad_values_of_a_completion_are_named(fields: dict[str, Any], param: str) -> None:
    response = send(api(), "POST", "/v1/completions", json={"model": "echo", "prompt": "x", **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


class Biased(EchoEngine):
    """Honours what the real engine honours, and says how it was asked."""

    honours = EchoEngine.honours | {"logit_bias", "presence_penalty", "frequency_penalty"}
    asked: Sampling

    async def generate(self, prompt: Any, sampling: Sampling) -> Any:
        self.asked = sampling
        async for step in super().generate(prompt, sampling):
            yield step


def test_what_the_engine_honours_reaches_it() -> None:
    engine = Biased()
    chat(api(engine), logit_bias={"5": -100, "7": 2.5}, presence_penalty=-2, frequency_penalty=0.5, seed=3, top_p=0.5)
    assert engine.asked == Sampling(195, 1.0, 0.5, 3, {5: -100, 7: 2.5}, -2, 0.5)
    for bias in ({"256": 1}, {"x": 1}, {"1": 101}, {"-1": 1}, {str(token): 1 for token in range(1025)}):
        body = {"model": "echo", "messages": HELLO, "logit_bias": bias}
        refused = send(api(engine), "POST", "/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logit_bias")


def test_a_fault_is_never_a_clean_end_in_a_completion_either() -> None:
    app = api(BrokenEngine(), places=1)
    with pytest.raises(openai.APIError, match="not complete"):
        streamed(app, prompt="hello")
    with pytest.raises(openai.InternalServerError):
        complete(app, prompt="hello")


def test_the_official_clients_over_a_socket() -> None:
    with on_port(api()) as url:
        plain = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        assert plain.completions.create(model="echo", prompt="abc").choices[0].text == "abc"
        parts = plain.chat.completions.create(model="echo", messages=HELLO, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == "hello"
        with plain.chat.completions.stream(model="echo", messages=HELLO) as events:
            assert events.get_final_completion().choices[0].message.content == "hello"

        async def use() -> Any:
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
                return await client.chat.completions.create(model="echo", messages=HELLO)

        assert asyncio.run(use()).choices[0].message.content == "hello"


# ---- the tokenizer's routes


def test_texts_and_conversations_are_encoded_and_come_back() -> None:
    found = send(api(), "POST", "/tokenize", json={"prompt": "hé", "add_special_tokens": False}).json()
    assert found == {"tokens": [104, 195, 169], "count": 3, "max_model_len": 200}
    assert send(api(), "POST", "/tokenize", json={"model": "echo", "messages": HELLO}).json()["tokens"] == list(b"hello")
    assert send(api(), "POST", "/tokenize", json={"prompt": ""}).json()["tokens"] == []
    assert send(api(), "POST", "/detokenize", json={"tokens": [104, 195, 169]}).json() == {"prompt": "hé"}
    assert send(api(), "GET", "/tokenizer_info").json()["vocab_size"] == 256


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "x" * (2**17 + 1)}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {"tokens": [256]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
    ],
)
def test_bad_questions_to_the_tokenizer_are_named(path: str, body: dict[str, Any], param: str) -> None:
    response = send(api(), "POST", path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
NAMES = ["prompt", "max_tokens", "echo", "logprobs", "n", "stop", "stream", "logit_bias", "tokens", "messages", "best_of"]


@settings(max_examples=25, deadline=None)
@given(
    path=st.sampled_from(["/v1/completions", "/tokenize", "/detokenize"]),
    fields=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4),
)
def test_no_input_is_a_server_error_here_either(path: str, fields: dict[str, Any]) -> None:
    assert send(api(), "POST", path, content=json.dumps({"model": "echo", "prompt": "x"} | fields).encode()).status_code in {
        200,
        400,
    }
