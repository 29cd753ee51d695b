"""The clients that people have, over a real socket: OpenAI's, LangChain's, LiteLLM's, lm-evaluation-harness, and curl as documented.

LangChain, LiteLLM and the harness are no dependencies of this project; where they are not installed, their tests are skipped.
"""

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from exam_files import CONTEXT_TOKENS, write_formula_model
from pydantic import BaseModel
from served import KEY, on_port

from medschool.serve.admission import Limits
from medschool.serve.api import ModelInfo, build_api
from medschool.serve.deadline import TimedProtocol
from medschool.serve.engine import EchoEngine
from medschool.serve.keys import Key, KeyRing, hash_key
from medschool.serve.paged import TransformersEngine
from medschool.serve.template import BytesText, CheckpointText

ROOT = Path(__file__).parents[2]
NAME = "medschool"
HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The heart pumps"}]
SAID = "Be brief.\nThe heart pumps"
"""What the echo engine answers to HELLO."""
RING = KeyRing([Key("test", hash_key(KEY))])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The API over the echo engine, as a user's server has it: its name and a context of 512 tokens."""
    app = build_api(EchoEngine(), BytesText(), ModelInfo(NAME, "v-1", 1_700_000_000), RING, Limits(512, 8))
    with on_port(app, http=TimedProtocol) as found:
        yield found


# ---- OpenAI's


class Organ(BaseModel):
    name: str


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def test_openai_parses_what_is_no_format_and_names_the_format_that_is_refused(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(model=NAME, messages=HELLO)
    assert parsed.choices[0].message.content == SAID and parsed.choices[0].message.parsed is None
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.parse(model=NAME, messages=HELLO, response_format=Organ)
    assert refused.value.param == "response_format"


def test_openai_streams_by_its_helper_and_reads_usage_and_request_id(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=NAME, messages=HELLO, stream_options={"include_usage": True}) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    assert kinds >= {"chunk", "content.delta", "content.done"} and final.choices[0].message.content == SAID
    assert final.usage and final.usage.total_tokens == 2 * len(SAID)
    raw = client.chat.completions.with_raw_response.create(model=NAME, messages=HELLO)
    assert (raw.request_id or "").startswith("req_") and raw.parse().id.startswith("chatcmpl-")


def test_openai_asynchronous_with_several_streams_at_once(url: str) -> None:
    async def use() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as one:

            async def streamed() -> str:
                chunks = await one.chat.completions.create(model=NAME, messages=HELLO, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            return await asyncio.gather(*(streamed() for _ in range(4)))

    assert asyncio.run(use()) == [SAID] * 4


def test_openai_raises_its_own_errors_for_what_is_not_here(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=NAME, input="x")
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=NAME, input="x")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    assert [model.id for model in client.models.list()] == [NAME]


# ---- LangChain's and LiteLLM's


def test_langchain(url: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(model=NAME, base_url=f"{url}/v1", api_key=KEY, max_retries=0, stream_usage=True)
    asked = [("system", "Be brief."), ("human", "The heart pumps")]
    whole = model.invoke(asked)
    assert whole.content == SAID and whole.response_metadata["finish_reason"] == "stop"
    assert whole.usage_metadata["total_tokens"] == 2 * len(SAID)
    chunks = list(model.stream(asked))
    assert "".join(chunk.content for chunk in chunks) == SAID and len(chunks) > 10
    assert sum((chunk.usage_metadata or {}).get("total_tokens", 0) for chunk in chunks) == 2 * len(SAID)
    assert [answer.content for answer in model.batch([asked] * 3)] == [SAID] * 3
    assert asyncio.run(model.ainvoke(asked)).content == SAID
    logprobs = model.bind(logprobs=True, top_logprobs=2).invoke(asked).response_metadata["logprobs"]
    assert len(logprobs["content"]) == len(SAID)
    with pytest.raises(openai.BadRequestError, match="response_format"):
        model.with_structured_output(Organ, method="json_schema").invoke(asked)
    plain = langchain.OpenAI(model=NAME, base_url=f"{url}/v1", api_key=KEY, max_retries=0, max_tokens=100)
    assert plain.invoke("The heart") == "The heart" and "".join(plain.stream("The heart")) == "The heart"


def test_litellm(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask the network for prices otherwise
    litellm = pytest.importorskip("litellm")
    litellm.suppress_debug_info = True
    options: dict[str, Any] = {"model": f"openai/{NAME}", "api_base": f"{url}/v1", "api_key": KEY, "num_retries": 0}
    whole = litellm.completion(messages=HELLO, seed=1, temperature=0.5, **options)
    assert whole.choices[0].message.content == SAID and whole.usage.total_tokens == 2 * len(SAID)
    chunks = list(litellm.completion(messages=HELLO, stream=True, stream_options={"include_usage": True}, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == SAID
    assert asyncio.run(litellm.acompletion(messages=HELLO, **options)).choices[0].message.content == SAID
    plain = litellm.text_completion(prompt="The heart", max_tokens=50, **options | {"model": f"text-completion-openai/{NAME}"})
    assert plain.choices[0].text == "The heart"
    for fields, kind in (
        ({"api_key": "wrong"}, litellm.AuthenticationError),
        ({"model": "openai/other"}, litellm.NotFoundError),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, litellm.BadRequestError),
    ):
        with pytest.raises(kind):
            litellm.completion(**{"messages": HELLO, **options, **fields})


# ---- lm-evaluation-harness

GOLDEN = json.loads((ROOT / "tests" / "golden" / "lm_eval_equal.json").read_text(encoding="utf-8"))
SHORT_CHARS = 700
"""Of a record. A longer one does not fit the context, and the harness cuts one token more over HTTP."""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["bos", "border"])
def test_lm_eval_over_http_finds_what_its_hf_backend_found(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Item by item, on the invented questions of all its tasks. What `hf` found stands in tests/golden/lm_eval_equal.json."""
    pytest.importorskip("lm_eval")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    from lm_eval_equal import by_harness, invented_cases

    write_formula_model(folder := tmp_path / "model", kind)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    text = CheckpointText(folder)
    engine = TransformersEngine(folder, text.end_ids, CONTEXT_TOKENS, places=4, dtype="fp32")
    app = build_api(engine, text, ModelInfo(NAME, "v-1", 0), RING, Limits(CONTEXT_TOKENS, 64))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    compared = 0
    try:
        with on_port(app) as url:
            model = LocalCompletionsAPI(
                model=NAME, base_url=f"{url}/v1/completions", tokenizer_backend="huggingface", tokenizer=str(folder),
                max_length=CONTEXT_TOKENS, add_bos_token=kind == "bos", num_concurrent=4, batch_size=2,
            )  # fmt: skip
            for case in invented_cases():
                if case.shot_count:
                    continue
                short = [record for record in case.asked if len(str(record)) < SHORT_CHARS]
                found = by_harness(model, type(case)(case.form, case.subject, short, case.worked, 0), tmp_path)
                (golden,) = [one["items"] for one in GOLDEN["cases"] if (one["tokenizer"], one["name"]) == (kind, case.name)]
                for item, expected in zip(found, golden, strict=False):
                    assert item["log_probs"] == pytest.approx(expected["log_probs"], abs=1e-3), case.name
                    assert (item["acc"], item["acc_norm"]) == (expected["acc"], expected["acc_norm"]), case.name
                    compared += 1
    finally:
        engine.stop()
    assert compared >= 20


# ---- curl


def curl_lines() -> list[str]:
    """The commands in fenced blocks of README and docs that begin with curl, as one line each."""
    found = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"^```[a-z]*\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line for line in lines if line.lstrip().startswith("curl ") and "$URL" in line]
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `medschool up` was run, as far as the key goes."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".medschool" / "secrets").mkdir(parents=True)
    (folder / ".medschool" / "secrets" / "api_key").write_text(KEY)
    return folder


def test_the_documented_lines_are_found() -> None:
    assert len(curl_lines()) >= 5


@pytest.mark.parametrize("number", range(len(curl_lines())))
def test_a_documented_curl_line_works_as_it_stands(number: int, url: str, home: Path) -> None:
    line = curl_lines()[number]
    variables = os.environ | {"URL": url, "MEDSCHOOL_API_KEY": KEY}
    ran = subprocess.run(["bash", "-c", line], cwd=home, env=variables, capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 0 and ran.stdout, ran.stderr
    if '"stream": true' in line:
        assert ran.stdout.endswith("data: [DONE]\n\n") and '"error"' not in ran.stdout
    else:
        answer = json.loads(ran.stdout)
        assert answer and "error" not in answer
