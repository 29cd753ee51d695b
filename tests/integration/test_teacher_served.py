"""The teacher's round trip: our own API on Ray Serve as the teacher, and a whole set made with a scripted one.

The served model is tiny and random, so it agrees with no key. What is proved is the trip: requests, tokens, what is kept.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_teacher import scripted_teacher
from served import free_port
from test_serve import KEY, commit, save_tiny_model
from tiny import RECIPE

from medschool.artifact import Output
from medschool.errors import StageError
from medschool.exams.layout import parse_answer
from medschool.instructions.ask import Ask, asked
from medschool.instructions.endpoint import KEY as KEY_NAME
from medschool.instructions.exam import with_rationale
from medschool.instructions.on_ray import make_instructions
from medschool.instructions.spending import Ledger
from medschool.recipe import Recipe, load
from medschool.recipe.instructions import Teacher
from medschool.rows import Conversation, Dropped, ExamItem
from medschool.serve.keys import hash_key
from medschool.serve.on_ray import ChatArgs, deploy
from medschool.storage import read_parquet

CONTEXT = 4096


@pytest.fixture(scope="module")
def served_url(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a tiny random model behind the real API, with room for the paper's prompts."""

    from ray import serve

    folder = save_tiny_model(tmp_path_factory.mktemp("model") / "export", seed=0)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}))
    args = ChatArgs(
        model=commit(tmp_path_factory.mktemp("store"), folder, "2" * 16),
        served_name="tiny",
        dtype="fp32",
        max_context_tokens=CONTEXT,
        max_concurrent_requests=1,
        max_waiting_requests=1,
        api_key_sha256=(hash_key(KEY),),
    )
    port = free_port()
    try:
        yield deploy(args, port)
    finally:
        serve.shutdown()


@pytest.mark.parametrize("ask", ["rationale_general", "rationale_options"])
def test_our_own_served_model_is_a_teacher(served_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    monkeypatch.setenv(KEY_NAME, KEY)
    spec = Teacher(
        url=f"{served_url}/v1", model="tiny", temperature=1.0, tries=2, max_answer_tokens=24, concurrency=4, budget_tokens=10**6
    )
    items = [
        ExamItem(f"s:{n}", "set", "s", f"Which helps in case {n}?", ("Iron", "Salt", "Rest"), n % 3, "", "f") for n in range(4)
    ]
    rows = [with_rationale(item, "", 3, "mit") for item in items]

    def ran() -> tuple[list[Conversation | Dropped], Ledger]:
        ledger = Ledger(spec)
        return list(asked(rows, ask, spec, 3, str(tmp_path), ledger)), ledger

    found, ledger = ran()
    facts = ledger.facts()
    print(ask, facts)
    assert [row.id for row in found] == [row.id for row in rows] and facts["asked"] == 4
    assert all(isinstance(row, Conversation) or row.step == "no_agreement" for row in found), found
    assert 4 <= sum(facts["verdicts"].values()) <= 8 and facts["without_usage"] == 0
    assert facts["requests"] == sum(facts["verdicts"].values()) + facts["retries"]
    assert facts["faults"] == {"http_429": facts["retries"]} and facts["retries"] > 0, "two at once are all that it takes"
    assert facts["prompt_tokens"] > 4 * 50 and 0 < facts["answer_tokens"] <= 8 * 24
    again, ledger = ran()
    assert again == found and ledger.facts()["requests"] == 0 and ledger.facts()["usd_now"] == 0
    assert ledger.facts()["prompt_tokens"] == facts["prompt_tokens"]
    assert KEY not in "".join(file.read_text() for file in tmp_path.rglob("*.json"))


# ---- a whole set --------------------------------------------------------------------------------------------------------------


def recipe_of(store: Path, url: str, ask: Ask, budget_tokens: int = 10**6) -> Recipe:
    """The tiny recipe whose questions are answered with the help of the teacher at `url`."""
    path = store / f"{ask}.yaml"
    path.write_text(f"{RECIPE}teacher: {{url: '{url}', model: scripted, budget_tokens: {budget_tokens}, paraphrases: 3}}\n")
    return load(path, [f"instructions.questions.ask={ask}"])


def made(recipe: Recipe, store: Path, attempt: str) -> tuple[Output, list[dict], list[dict]]:
    """The set `questions`, its conversations and what was dropped."""
    prefix = store / attempt
    output = make_instructions(recipe, "questions", [], str(store), str(prefix))
    assert {str(path.relative_to(prefix)) for path in prefix.rglob("*.parquet")} == {file.path for file in output.files}
    rows = {
        kind: [
            row
            for file in output.files
            if file.path.startswith(kind)
            for row in read_parquet(str(prefix / file.path)).to_pylist()
        ]
        for kind in ("conversations", "dropped")
    }
    return output, rows["conversations"], rows["dropped"]


def test_a_set_is_made_with_reasons_and_made_again_for_nothing(ray_cluster: None, tiny_store: Path) -> None:
    with scripted_teacher(wrong_share=0.4, faults=["500", "429:0"]) as endpoint:
        recipe = recipe_of(tiny_store, endpoint.url, "rationale_options", 10**5)
        output, rows, dropped = made(recipe, tiny_store, "first")
        costs = output.facts["teacher"]
        print(output.facts)
        assert endpoint.fired["500"] == endpoint.fired["429"] == 1 and costs["retries"] == 2
        assert costs["prompt_tokens"] + costs["answer_tokens"] == endpoint.tokens
        assert output.facts["kinds"] == {"rationale": len(rows)} and costs["accepted"] == len(rows) > 20
        assert output.facts["dropped"]["no_agreement"] == costs["asked"] - len(rows) > 0
        assert output.facts["made"] == len(rows) + len(dropped)
        for row in rows:
            reply = row["messages"][-1]["content"]
            key = parse_answer(reply, 4)
            assert key is not None and f"Option {'ABCD'[key]} is TRUE." in reply and reply.count("is FALSE.") == 3
        requests = len(endpoint.requests)
        again, *_ = made(recipe, tiny_store, "second")
        assert len(endpoint.requests) == requests and again.files == output.files
        assert again.facts["teacher"]["usd_now"] == 0 == again.facts["teacher"]["requests"]


def test_a_set_stops_at_its_budget_and_goes_on_under_another_one(ray_cluster: None, tiny_store: Path) -> None:
    with scripted_teacher() as endpoint:
        with pytest.raises(StageError, match=r"tokens are spent of the budget of 6000, .* rows are left to ask"):
            try:
                made(recipe_of(tiny_store, endpoint.url, "rationale_general", 6000), tiny_store, "stopped")
            except Exception as error:
                from medschool.errors import cause_of

                raise cause_of(error) or error from error
        assert 0 < endpoint.tokens <= 6000
        requests = len(endpoint.requests)
        output, rows, _ = made(recipe_of(tiny_store, endpoint.url, "rationale_general"), tiny_store, "whole")
        assert output.facts["teacher"]["cached"] == requests
        assert len(endpoint.requests) == len(rows) == output.facts["teacher"]["asked"]


def test_a_set_is_made_under_other_wordings(ray_cluster: None, tiny_store: Path) -> None:
    lines = ["Pick what fits this medical question.", "Settle the following medical question.", "Say which choice is right here."]
    with scripted_teacher(wordings=lines) as endpoint:
        output, rows, _ = made(recipe_of(tiny_store, endpoint.url, "paraphrase"), tiny_store, "worded")
        heads = {row["messages"][0]["content"].partition("\n\n")[0] for row in rows}
        assert set(lines) < heads and len(endpoint.requests) <= 4 * 3
        assert output.facts["kinds"] == {"exam": len(rows)} and output.facts["teacher"]["accepted"] > 0
