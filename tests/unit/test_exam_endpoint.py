"""Exams at an endpoint: over real HTTP with the shipped EchoEngine, whose scores can be worked by hand, and a scripted one."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scored_trials import recipe_with
from served import KEY, api, on_port
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from typer.testing import CliRunner

from medschool.cli import app as medschool
from medschool.errors import InputError, MedschoolError, RecipeError, ServiceError
from medschool.evaluate import endpoint as client
from medschool.evaluate.at_endpoint import Reader, Way, sit, way
from medschool.evaluate.endpoint import Endpoint, Refused
from medschool.evaluate.protocol import sitting
from medschool.exams.harness import PUBMEDQA, medqa_asked, pubmedqa_asked
from medschool.exams.layout import DECISIONS
from medschool.recipe.corpus import Files
from medschool.recipe.dump import dump
from medschool.recipe.evaluation import Exam
from medschool.rows import ExamItem

FILES = (Files(uri="raw/e", format="mmlu"),)
HALF = math.log(1 / 2)
OPTIONS = ("Iron", "Rust", "Clay", "Salt")


def item(number: int, question: str = "Which is red?", answer: int = 1) -> ExamItem:
    asked = medqa_asked(question, OPTIONS)
    return ExamItem(f"s:{number}", "e", "s", question, OPTIONS, answer, "", "f", task="medqa", asked=asked)


SPOKEN = [item(0, "We say option b is correct."), item(1), item(2, "It says OPTION D IS CORRECT, and OPTION B IS CORRECT.")]
"""An echo names what its question names."""


class Counted:
    """Counts the requests for answers, and after `allowed` of them knows no model any more."""

    def __init__(self, inner: ASGIApp, allowed: int = 10**6) -> None:
        self.inner, self.allowed, self.seen = inner, allowed, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            self.seen += 1
            if self.seen > self.allowed:
                await JSONResponse({"error": {"message": f"no such model for {KEY}"}}, 404)(scope, receive, send)
                return
        await self.inner(scope, receive, send)


@contextmanager
def asking(app: ASGIApp, model: str = "echo", key: str = KEY) -> Iterator[Endpoint]:
    with on_port(app) as url, closing(Endpoint(f"{url}/v1/", model, key)) as endpoint:
        yield endpoint


def in_words(endpoint: Endpoint, items: list[ExamItem], tokens: int = 400) -> Way:
    return way(endpoint, Exam(files=FILES), sitting(Exam(files=FILES), items, ()), tokens, None)


# ---- in words -----------------------------------------------------------------------------------------------------------------


def test_answers_are_read_by_the_paper_s_pattern_and_every_one_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "e.jsonl"
    with asking(api(context=2000)) as endpoint:
        how = in_words(endpoint, SPOKEN)
        rows = sit(SPOKEN, path, how, 2)
    assert how.name == "generated"
    assert [(row["id"], row["chosen"], row["correct"], row["problem"]) for row in rows] == [
        ("s:0", 1, True, ""), ("s:1", None, False, "unread"), ("s:2", 3, False, ""),
    ]  # fmt: skip
    assert rows[0]["text"].startswith("Answer this medical question") and SPOKEN[0].question in rows[0]["text"]
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    assert {row["protocol"] for row in rows} == {how.hash}


def test_a_thought_is_asked_for_with_its_own_instruction_and_hash(tmp_path: Path) -> None:
    spec = Exam(files=FILES, protocol="chain_of_thought", thought_tokens=30)
    with asking(api(context=2000)) as endpoint:
        how = way(endpoint, spec, sitting(spec, SPOKEN, ()), 400, None)
        (row,) = sit(SPOKEN[:1], tmp_path / "e.jsonl", how, 1)
    assert row["text"] == "Explain your reasoning, then c" and row["problem"] == "unread"
    assert how.name == "chain_of_thought" and how.hash == sitting(spec, SPOKEN, ()).protocol("the endpoint's own template").hash
    assert how.hash != in_words(endpoint, SPOKEN, 30).hash


def test_all_items_enter_the_hash_of_answers_in_words_not_those_generated_beside_letters() -> None:
    with closing(Endpoint("http://h/v1", "m", "")) as endpoint:
        some = way(endpoint, spec := Exam(files=FILES, generated_items=1), sitting(spec, SPOKEN, ()), 9, None)
        assert some.hash == in_words(endpoint, SPOKEN, 9).hash != in_words(endpoint, SPOKEN[:2], 9).hash


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    items, path = [item(k) for k in range(6)], tmp_path / "e.jsonl"
    seen: list[int] = []
    with asking(Counted(api(context=2000), 4)) as endpoint:
        with pytest.raises(ServiceError, match="it answers 404") as told:
            sit(items, path, in_words(endpoint, items), 1, seen.append)
        assert KEY not in str(told.value) and "***" in str(told.value)
    assert len(path.read_text().splitlines()) == 4 and seen == [0, 1, 2, 3, 4]
    path.write_bytes(path.read_bytes()[:-20])  # the last line was cut off
    counted = Counted(api(context=2000))
    with asking(counted) as endpoint:
        rows = sit(items, path, in_words(endpoint, items), 4)
        assert counted.seen == 3 and [row["id"] for row in rows] == [one.id for one in items]
        assert sit(items, path, in_words(endpoint, items), 4) == rows and counted.seen == 3
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows


def test_a_damaged_file_and_one_of_another_protocol_are_named(tmp_path: Path) -> None:
    path, how = tmp_path / "e.jsonl", Way("generated", "h", lambda one: {})
    for text, said in ((b'{"id": 1}\nhm\n', r"e\.jsonl:1: not a row"), (b"hm\n", r"e\.jsonl:1: not JSON")):
        path.write_bytes(text)
        with pytest.raises(InputError, match=said):
            sit([item(0)], path, how, 1)


def test_an_item_that_is_refused_is_wrong_and_asked_again_by_the_next_run(tmp_path: Path) -> None:
    items, path = [item(0), item(1, "long " * 100), item(2)], tmp_path / "e.jsonl"
    with asking(api(context=400)) as endpoint:
        rows = sit(items, path, in_words(endpoint, items, 40), 1)
    assert [row["problem"].partition(" ")[0] for row in rows] == ["unread", "refused:", "unread"]
    assert "at most 399 fit the context" in rows[1]["problem"] and not rows[1]["correct"] and rows[1]["chosen"] is None
    counted = Counted(api(context=2000))
    with asking(counted) as endpoint:
        rows = sit(items, path, in_words(endpoint, items, 40), 1)
    assert counted.seen == 1 and [row["problem"] for row in rows] == ["unread"] * 3
    with (
        asking(api(context=50)) as endpoint,
        pytest.raises(InputError, match=r"s:.*2 items were refused: 400.*none was answered"),
    ):
        sit([items[0], items[2]], tmp_path / "other.jsonl", in_words(endpoint, items), 1)


# ---- by log-probabilities -----------------------------------------------------------------------------------------------------

BYTES = Reader(lambda text: list(text.encode()), 2000)
LM_EVAL = Exam(files=FILES, protocol="lm_eval")


def test_log_probabilities_of_endings_are_those_of_their_tokens_and_the_hash_is_that_of_a_checkpoint(tmp_path: Path) -> None:
    question, context = "Is it red?", ("Rust is red.",)
    yes = replace(item(9), options=DECISIONS, answer=1, task=PUBMEDQA, asked=pubmedqa_asked(question, context))
    items = [item(0, answer=0), yes]
    with asking(api(context=2000)) as endpoint:
        how = way(endpoint, LM_EVAL, sitting(LM_EVAL, items, ()), 16, BYTES)
        rows = sit(items, tmp_path / "e.jsonl", how, 2)
    assert how.name == "lm_eval" and how.hash == sitting(LM_EVAL, items, ()).protocol("any template").hash
    assert rows[0]["log_probs"] == pytest.approx([2 * HALF] * 4) and rows[0]["chosen"] == 0 and rows[0]["correct"]
    assert rows[1]["log_probs"] == pytest.approx([4 * HALF, 3 * HALF, 6 * HALF])  # " yes", " no", " maybe"
    assert (rows[1]["chosen"], rows[1]["correct"], rows[1]["chosen_norm"]) == (1, True, 2)  # 6/5 a letter is the least
    assert {row["cut_tokens"] for row in rows} == {0}


def test_what_does_not_fit_is_cut_from_the_left_so_that_the_row_and_one_token_fit(tmp_path: Path) -> None:
    long = item(0, "long " * 50)
    with asking(api(context=120)) as endpoint:
        reader = Reader(lambda text: list(text.encode()), 120)
        (row,) = sit([long], tmp_path / "e.jsonl", way(endpoint, LM_EVAL, sitting(LM_EVAL, [long], ()), 16, reader), 1)
        assert row["problem"] == "" and row["cut_tokens"] == len(long.asked) + 2 - 119
        assert isinstance(endpoint.log_probs(list(range(119))), list) and isinstance(
            endpoint.log_probs(list(range(120))), Refused
        )


def test_lm_eval_needs_the_tokenizer() -> None:
    with closing(Endpoint("http://h/v1", "m", "")) as endpoint, pytest.raises(InputError, match="--tokenizer"):
        way(endpoint, LM_EVAL, sitting(LM_EVAL, SPOKEN, ()), 16, None)


# ---- what may come in place of an answer --------------------------------------------------------------------------------------

COMPLETION = {"choices": [{"message": {"content": "OPTION B IS CORRECT"}, "text": "x"}]}


def scripted(*responses: Callable[[], Response]) -> tuple[Starlette, list[int]]:
    """An endpoint that gives these responses, then answers; and how many requests came."""
    left, seen = list(responses), [0]

    async def answer(request: Request) -> Response:
        seen[0] += 1
        return left.pop(0)() if left else JSONResponse(COMPLETION)

    async def models(request: Request) -> Response:
        return JSONResponse({"data": [{"id": "m"}]})

    posts = [Route(f"/v1/{path}", answer, methods=["POST"]) for path in ("chat/completions", "completions")]
    return Starlette(routes=[*posts, Route("/v1/models", models)]), seen


def test_what_may_pass_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.01)
    app, seen = scripted(
        lambda: JSONResponse({}, 429, {"retry-after": "0"}),
        lambda: HTMLResponse("<html>Bad gateway", 502),
        lambda: JSONResponse({}, 503),
    )
    with asking(app, "m") as endpoint:
        assert endpoint.say("Which?", 9) == "OPTION B IS CORRECT" and seen == [4]


def test_patience_ends_and_says_what_was_heard_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PATIENCE_S", 0.3)
    app, _ = scripted(*[lambda: JSONResponse({"error": "all places are taken"}, 429, {"retry-after": "1"})] * 9)
    with asking(app, "m") as endpoint, pytest.raises(ServiceError, match=r"the last we heard: 429.*places are taken"):
        endpoint.say("Which?", 9)


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (lambda: HTMLResponse("<html>Sign in"), "no OpenAI-compatible answer: <html>Sign in"),
        (lambda: JSONResponse({"choices": []}), "no OpenAI-compatible answer"),
        (lambda: JSONResponse([1]), "no OpenAI-compatible answer"),
        (lambda: JSONResponse({}, 302, {"location": "/"}), "it answers 302"),
        (lambda: JSONResponse({}, 401), "it refuses the key"),
    ],
)
def test_what_stays_wrong_ends_it_at_once(response: Callable[[], Response], said: str) -> None:
    app, seen = scripted(response)
    with asking(app, "m") as endpoint, pytest.raises(ServiceError, match=said):
        endpoint.say("Which?", 9)
    assert seen == [1]


def test_an_endpoint_that_gives_no_log_probabilities_of_a_prompt_is_told_so() -> None:
    app, _ = scripted()
    with asking(app, "m") as endpoint, pytest.raises(InputError, match="gave 0 log-probabilities of a prompt of 3 tokens"):
        endpoint.log_probs([1, 2, 3])


@pytest.mark.parametrize(
    ("model", "key", "said"), [("echo", "wrong", "refuses the key"), ("echo", "", "wants a key"), ("no", KEY, "echo")]
)
def test_the_key_and_the_model_are_checked_before_anything_is_asked(model: str, key: str, said: str) -> None:
    with asking(api(), model, key) as endpoint, pytest.raises(ServiceError, match=said):
        endpoint.check()


def test_nobody_there_is_said_at_once_and_a_bad_key_is_not_shown() -> None:
    with closing(Endpoint("http://127.0.0.1:9/v1", "m", "")) as endpoint, pytest.raises(ServiceError, match="no answer"):
        endpoint.check()
    with pytest.raises(ServiceError) as told:
        Endpoint("http://h/v1", "m", "geheim\nß")
    assert "geheim" not in str(told.value)


# ---- the command --------------------------------------------------------------------------------------------------------------


def test_the_command_sits_the_exams_and_leaves_every_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        {"question": f"Case {k}: option {'abcd'[k % 4]} is correct?", "choices": list(OPTIONS), "answer": 1, "subject": "skin"}
        for k in range(5)
    ]
    (tmp_path / "store" / "raw" / "exam").mkdir(parents=True)
    (tmp_path / "store" / "raw" / "exam" / "e.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "recipe.yaml").write_text(dump(recipe_with(evaluate={"answer_tokens": 300})))
    monkeypatch.setenv("MEDSCHOOL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MEDSCHOOL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite://")
    monkeypatch.setenv(client.KEY, KEY)

    def run(url: str, *words: str) -> Any:
        return CliRunner().invoke(
            medschool, ["exam", str(tmp_path / "recipe.yaml"), "--endpoint", url, "--model", "echo", *words]
        )

    counted = Counted(api(context=2000))
    with on_port(counted) as url:
        told = run(f"{url}/v1", "--json")
        assert told.exception is None, told.exception
        again = run(f"{url}/v1")
        wrong = run(f"{url}/v1", "--exam", "surgery")
    found = json.loads(told.stdout)
    exam = found["exams"]["clinical"]
    assert (exam["items"], exam["correct"], exam["unparsed"], exam["refused"]) == (5, 1, 0, 0)
    assert exam["low"] < 0.2 < exam["high"] and exam["uncontaminated"] is None and exam["protocol_name"] == "generated"
    rows = [json.loads(line) for line in Path(exam["answers"]).read_text().splitlines()]
    assert len(rows) == 5 == counted.seen and {row["protocol"] for row in rows} == {exam["protocol"]}
    assert json.loads((Path(found["folder"]) / "results.json").read_text()) == found
    assert f"generated  {exam['protocol']}" in again.stdout and "20.0% [3.6, 62.4]" in again.stdout and "0% of 5" in again.stdout
    assert again.stdout.endswith("Not for clinical use.\n")
    assert (
        isinstance(wrong.exception, RecipeError)
        and isinstance(wrong.exception, MedschoolError)
        and "clinical" in str(wrong.exception)
    )
