"""The teacher's client, its cache and budget, and the makers over it, against a scripted endpoint that fails as it is told to."""

import json
import logging
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_teacher import BROKEN, ScriptedTeacher, scripted_teacher
from tiny import RECIPE

from medschool.artifact import write_parquet
from medschool.errors import ServiceError, StageError
from medschool.exams.formats import EXAM_FORMATS
from medschool.exams.layout import letter, parse_answer
from medschool.instructions import reasons, teacher, wordings
from medschool.instructions.answers import Answer, keep_answer, key_of, read_answer
from medschool.instructions.ask import Ask, asked, to_explain
from medschool.instructions.asking import ask_portions
from medschool.instructions.check import Kept
from medschool.instructions.endpoint import KEY as KEY_NAME
from medschool.instructions.endpoint import retry_after_s
from medschool.instructions.exam import with_rationale
from medschool.instructions.formats import INSTRUCTION_FORMATS
from medschool.instructions.spending import Ledger, OverBudget
from medschool.procedure import TEACHER_BOUNDS, stages
from medschool.recipe import load
from medschool.recipe.instructions import Teacher
from medschool.rows import CONVERSATION_SCHEMA, DROPPED_SCHEMA, Conversation, Dropped, ExamItem, Message, table
from medschool.storage import read_parquet

KEY = "sk-a-secret-of-the-test"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # one an answer; a busy disk takes 20 ms for it
    monkeypatch.delenv(KEY_NAME, raising=False)


@pytest.fixture
def endpoint() -> Iterator[ScriptedTeacher]:
    with scripted_teacher() as running:
        yield running


def spec(url: str, **changed: object) -> Teacher:
    return Teacher.model_validate({"url": url, "model": "scripted", "budget_tokens": 10**6, "timeout_s": 60.0, **changed})


def items(count: int, options: int = 4) -> list[Conversation]:
    """Conversations that wait for their reasons."""
    names = tuple(f"Drug {letter(place)}" for place in range(options))
    made = [
        ExamItem(f"s:{n}", "set", "s", f"Which drug helps in case {n}?", names, n % options, "", "raw/f") for n in range(count)
    ]
    return [with_rationale(item, "", 3, "mit") for item in made]


def ran(
    rows: list[Conversation], taught: Teacher, cache: Path, ask: Ask = "rationale_general"
) -> tuple[list[Conversation | Dropped], Ledger]:
    ledger = Ledger(taught)
    return list(asked(rows, ask, taught, 3, str(cache), ledger)), ledger


def reply(row: Conversation | Dropped) -> str:
    assert isinstance(row, Conversation), row
    return row.messages[-1].content


# ---- reasons ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", ["rationale_general", "rationale_options"])
@pytest.mark.parametrize("options", [3, 4, 5])
def test_a_question_gets_reasons_that_name_its_key(endpoint: ScriptedTeacher, tmp_path: Path, ask: Ask, options: int) -> None:
    rows = items(6, options)
    found, ledger = ran(rows, spec(endpoint.url), tmp_path, ask)
    assert [row.id for row in found] == [row.id for row in rows]
    for number, (row, before) in enumerate(zip(found, rows, strict=True)):
        head, _, end = reply(row).rpartition("\n")
        assert end == f"###Answer: OPTION {letter(number % options)} IS CORRECT."
        assert head.startswith("###Rationale: ") and len(head) > 30
        assert isinstance(row, Conversation) and row.messages[0] == before.messages[0] and row.kind == "rationale"
    assert ledger.facts()["acceptance"] == 1.0 and len(endpoint.requests) == 6


def test_the_prompts_are_those_of_the_paper() -> None:
    question = "###Question: Which?\n###Options:\nA. Iron\nB. Salt\nC. Lead"
    general = reasons.prompt("general", question, ("Iron", "Salt", "Lead"), 1)
    assert general.startswith(
        "# Instruction\nProvide analysis about the question, take the following two questions as examples\n"
    )
    assert general.count("so the analysis is: ") == 2
    assert general.endswith(f"Now help me with another question\n{question}\nThe answer is Option B Salt, so the analysis is")
    assert reasons.prompt("options", question, ("Iron", "Salt", "Lead"), 1) == (
        f"{question}\nAnswer: B\nAnalyze each option in detail in the format of\nOption A is TRUE. [option analysis for A]\n"
        "Option B is FALSE. [option analysis for B]\nOption C is FALSE. [option analysis for C]"
    )


def test_each_worked_question_names_the_answer_it_was_given() -> None:
    for part in reasons.WORKED.split("\nQuestion: ")[1:]:
        given, _, analysis = part.partition(", so the analysis is: ")
        assert reasons.verdict("general", given + ".", 4) == reasons.verdict("general", analysis, 4) in ("B", "C")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Iron is lost. The answer is Option B.", "B"),
        ("The correct answer is therefore option **B**, iron.", "B"),
        ("Answer: C", "C"),
        ("so the answer is (D).", "D"),
        ("The answer is B because iron is lost.", "B"),
        ("###Answer: OPTION B IS CORRECT.", "B"),
        ("Option A is not correct, Option C is the correct one.", "C"),
        ("The answer is Option B. No: the answer is Option C.", "B, C"),
        ("The answer is A deficiency of iron.", "none"),
        ("The answer is not Option B.", "none"),
        ("Option B is wrong. Iron is lost.", "none"),
        ("", "none"),
    ],
)
def test_what_a_general_rationale_names(text: str, named: str) -> None:
    assert reasons.verdict("general", text, 4) == named


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Option A is FALSE. No. Option B is TRUE. Yes. Option C is FALSE. No.", "B"),
        ("**Option A** is **FALSE**: no\nOption B is TRUE: yes\nOption C is False.", "B"),
        ("Option A is TRUE. Option B is TRUE. Option C is FALSE.", "A, B"),
        ("Option A is FALSE. Option B is FALSE. Option C is FALSE.", "none"),
        ("Option B is TRUE.", "B, without A, C"),
        ("Option A is FALSE. Option B is TRUE. Option C is FALSE. Option B is FALSE.", "B, both ways B"),
        ("I can not help.", "none, without A, B, C"),
    ],
)
def test_what_a_rationale_of_each_option_calls_true(text: str, named: str) -> None:
    assert reasons.verdict("options", text, 3) == named


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(5)), st.integers(0, 4), st.text(alphabet="abc .\n", max_size=30))
def test_the_verdict_on_all_options_equals_a_count(order: list[int], true: int, between: str) -> None:
    text = "".join(f"Option {letter(each)} is {'TRUE' if each == true else 'FALSE'}. {between}\n" for each in order)
    assert reasons.verdict("options", text, 5) == letter(true)


def test_wrong_answers_are_rejected_at_their_rate_and_asked_for_again(tmp_path: Path) -> None:
    rows, wrong, tries = items(64), 0.5, 3
    with scripted_teacher(wrong_share=wrong) as endpoint:
        found, ledger = ran(rows, spec(endpoint.url, tries=tries, concurrency=4), tmp_path)
        dropped = [row for row in found if isinstance(row, Dropped)]
        assert 0 < len(dropped) / len(rows) < 0.27  # 0.5 ** 3, within three standard deviations and a half
        times = Counter(endpoint.prompts())
        assert max(times.values()) == tries and len(times) == len(rows)
        verdicts = ledger.facts()["verdicts"]
        assert verdicts["agreed"] == len(rows) - len(dropped) and sum(verdicts.values()) == len(endpoint.requests)
        assert ledger.facts()["acceptance"] == round(1 - len(dropped) / len(rows), 4)
    for place, row in enumerate(found):
        if isinstance(row, Dropped):
            other = letter((place + 1) % 4)
            assert (row.step, row.id) == ("no_agreement", rows[place].id)
            assert row.reason == f"the key is {letter(place % 4)}, the teacher said: {'; '.join([other] * 3)}"
        else:
            assert parse_answer(reply(row), 4) == place % 4


def test_answers_that_are_empty_or_cut_off_take_a_try_and_are_kept(tmp_path: Path) -> None:
    with scripted_teacher(faults=["empty", "cut"]) as endpoint:
        for times in range(2):
            found, ledger = ran(items(1), spec(endpoint.url, tries=3), tmp_path)
            assert "in 3 steps" in reply(found[0])
            assert ledger.facts()["verdicts"] == {"agreed": 1, "cut off": 1, "nothing": 1}
            assert ledger.facts()["cached"] == 3 * times and len(endpoint.requests) == 3
        assert endpoint.fired["empty"] == endpoint.fired["cut"] == 1


def test_a_question_waits_for_its_reasons_as_if_it_had_empty_ones() -> None:
    lines = [
        {"question": f"Which {n}?", "answer_idx": "B", "options": {"A": "x", "B": last}, "meta_info": "step1"}
        for n, last in enumerate(["y", "all of the above"])
    ]
    data = "\n".join(map(json.dumps, [*lines, {"question": ""}])).encode()
    read = list(EXAM_FORMATS["medqa"](data, "raw/f", "set"))
    made = list(to_explain(INSTRUCTION_FORMATS["medqa"](BytesIO(data), "raw/f", "set", 3), 3))
    expected = [row if isinstance(row, Dropped) else with_rationale(row, "", 3, "mit") for row in read]
    assert made == expected and [type(row) for row in made] == [Conversation, Conversation, Dropped]


def test_the_portions_of_a_set_come_out_as_portions(tmp_path: Path) -> None:
    rows, recited = items(7), "s:5:rationale"
    portions = []
    for number, part in enumerate((rows[:4], [], rows[4:])):
        gone = [Dropped(f"d:{number}", "set", "licence", "no", "", "raw/f")]
        files = (
            write_parquet(str(tmp_path), f"conversations/{number:05}.parquet", table(part, CONVERSATION_SCHEMA)),
            write_parquet(str(tmp_path), f"dropped/{number:05}.parquet", table(gone, DROPPED_SCHEMA)),
        )
        portions.append(Kept(files, 9, len(part), Counter(), Counter(), Counter({"licence": 1})))

    def check(row: dict) -> Dropped | None:
        return Dropped(row["id"], "set", "exam", "recited", "", "raw/f") if row["id"] == recited else None

    with scripted_teacher(faults=["400"]) as endpoint:
        taught = spec(endpoint.url, concurrency=1)
        done, costs = ask_portions(portions, "rationale_general", taught, 3, check, str(tmp_path), str(tmp_path / "answers"))
    assert [(part.conversations, part.made, dict(part.dropped)) for part in done] == [
        (3, 9, {"licence": 1, "unanswered": 1}), (0, 9, {"licence": 1}), (2, 9, {"licence": 1, "exam": 1}),
    ]  # fmt: skip
    assert costs["asked"] == 7 and costs["accepted"] == 6
    written = [read_parquet(str(tmp_path / file.path)) for part in done for file in part.files]
    assert [found["id"].to_pylist() for found in written] == [
        [row.id for row in rows[1:4]], ["d:0", "s:0:rationale"], [], ["d:1"], ["s:4:rationale", "s:6:rationale"], ["d:2", recited],
    ]  # fmt: skip


def test_what_a_teacher_would_answer_decides_the_set_and_its_bounds_do_not(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    text = RECIPE.replace("  questions:\n", "  questions:\n    ask: rationale_general\n")
    recipe.write_text(text + "teacher: {url: 'http://h/v1', model: m, budget_tokens: 5}\n", encoding="utf-8")

    def section(name: str, *overrides: str) -> object:
        return next(stage.sections for stage in stages(load(recipe, list(overrides))) if stage.name == f"instructions/{name}")

    bounds = [f"{key}=7" for key in TEACHER_BOUNDS]
    assert section("questions", *(f"teacher.{bound}" for bound in bounds)) == section("questions")
    decides = set(Teacher.model_fields) - set(TEACHER_BOUNDS)
    assert decides == {"url", "model", "temperature", "tries", "max_answer_tokens", "paraphrases"}
    for key in decides:
        value = {"url": "http://i/v1", "model": "n"}.get(key, "2")
        assert section("questions", f"teacher.{key}={value}") != section("questions")
        assert section("graph", f"teacher.{key}={value}") == section("graph")


# ---- wordings -----------------------------------------------------------------------------------------------------------------

TOLD = "Answer the patient in two sentences."
OFFERED = [
    "Reply to the patient in 2 sentences.",
    "Give the patient an answer of two sentences.",
    "Reply to the PATIENT in two sentences.",  # a literal word more
    "answer the patient, in two sentences!",  # the same
    "Answer the patient.",  # lost its form
    "Answer the patient in three sentences.",
    "Answer the patient in two sentences and explain why.",
    "With two sentences, respond to the person who asks.",
]


def talks(count: int, instruction: str = TOLD) -> list[Conversation]:
    return [
        Conversation(f"t:{n}", "set", "conversation", (Message("user", f"{instruction}\n\nCase {n}.\n\nIt hurts."), Message("assistant", "Rest.")), "mit", "raw/f")
        for n in range(count)
    ]  # fmt: skip


def test_each_conversation_draws_one_of_the_wordings_that_demand_the_same(tmp_path: Path) -> None:
    rows = talks(200)
    with scripted_teacher(wordings=OFFERED) as endpoint:
        found, ledger = ran(rows, spec(endpoint.url, paraphrases=3, tries=5), tmp_path, "paraphrase")
        assert len(endpoint.requests) == 1, "one instruction is asked about once"
        again, _ = ran(rows, spec(endpoint.url, paraphrases=3, tries=5), tmp_path, "paraphrase")
        assert again == found and len(endpoint.requests) == 1
    heads = Counter(row.messages[0].content.partition("\n\n")[0] for row in found if isinstance(row, Conversation))
    assert set(heads) == {TOLD, OFFERED[0], OFFERED[1], OFFERED[7]} and min(heads.values()) > 25
    assert [row.messages[0].content.partition("\n\n")[2] for row in found if isinstance(row, Conversation)] == [
        row.messages[0].content.partition("\n\n")[2] for row in rows
    ]
    assert ledger.facts()["verdicts"] == {"kept": 3, "demand": 4, "repeat": 1}


def test_too_few_wordings_are_asked_for_again_and_an_instruction_is_never_lost(tmp_path: Path) -> None:
    with scripted_teacher(wordings=OFFERED[2:4]) as endpoint:
        found, ledger = ran(talks(9), spec(endpoint.url, paraphrases=3, tries=4), tmp_path, "paraphrase")
        assert found == talks(9) and len(endpoint.requests) == 4 and ledger.facts()["acceptance"] == 0.0
        alone = [
            Conversation("a", "set", "graph", (Message("user", "What is iron?"), Message("assistant", "A metal.")), "mit", "f")
        ]
        assert ran(alone, spec(endpoint.url), tmp_path, "paraphrase")[0] == alone and len(endpoint.requests) == 4


def test_a_cut_list_of_wordings_loses_its_last_line_only(tmp_path: Path) -> None:
    with scripted_teacher(wordings=OFFERED[:2], faults=["cut"]) as endpoint:
        _, ledger = ran(talks(1), spec(endpoint.url, paraphrases=1), tmp_path, "paraphrase")
        assert ledger.facts()["verdicts"] == {"kept": 1}


def test_lines_of_an_answer() -> None:
    assert wordings.lines_of('Here are three:\n\n1. One.\n2) "Two."\n- Three.\n(4) Four.\n') == [
        "One.",
        "Two.",
        "Three.",
        "Four.",
    ]


@given(
    st.lists(st.sampled_from(["tell", "the", "nurse", "3", "four", "JSON", "briefly", "why", "list"]), min_size=4, max_size=9),
)
def test_a_wording_in_another_order_demands_the_same_and_one_without_its_demand_does_not(words: list[str]) -> None:
    mixed = sorted(words, reverse=True)
    assert wordings.demands(" ".join(mixed)) == wordings.demands(" ".join(words))
    for place, word in enumerate(words):
        rest = words[:place] + words[place + 1 :]
        lost = word not in ("tell", "the", "nurse") and (word not in rest or word in ("3", "four"))
        assert (wordings.demands(" ".join(rest)) != wordings.demands(" ".join(words))) == lost


# ---- faults -------------------------------------------------------------------------------------------------------------------

PASSING = ["500", "502", "hang_up", "slow:0.9", "drip", "429:0", "503:0.1"]
WRONG = ["html", "html_as_json", "malformed", "half", "no_choices"]


def test_faults_that_pass_are_asked_again_and_cost_no_try(tmp_path: Path) -> None:
    with scripted_teacher(faults=list(PASSING)) as endpoint:
        found, ledger = ran(items(12), spec(endpoint.url, tries=1, timeout_s=0.6, concurrency=3), tmp_path)
        assert [endpoint.fired[fault.partition(":")[0]] for fault in PASSING] == [1] * len(PASSING)
        assert all(isinstance(row, Conversation) for row in found)
        facts = ledger.facts()
        assert facts["faults"] == {"connection": 1, "http_429": 1, "http_500": 1, "http_502": 1, "http_503": 1, "timeout": 2}
        assert (facts["retries"], facts["requests"]) == (7, 19) and len(endpoint.requests) == 19


def test_what_is_no_completion_takes_a_try_and_is_not_kept(tmp_path: Path) -> None:
    with scripted_teacher(faults=list(WRONG)) as endpoint:
        found, _ = ran(items(1), spec(endpoint.url, tries=len(WRONG)), tmp_path)
        assert isinstance(found[0], Dropped) and found[0].step == "unanswered"
        assert found[0].reason.endswith("html; html; not_json; no_completion; no_completion")
        assert [endpoint.fired[fault] for fault in WRONG] == [1] * len(WRONG) and not list(tmp_path.rglob("*.json"))
        assert isinstance(ran(items(1), spec(endpoint.url), tmp_path)[0][0], Conversation)


def test_a_prompt_that_is_refused_is_asked_once_and_said_why(tmp_path: Path) -> None:
    with scripted_teacher(faults=["400"]) as endpoint:
        found, ledger = ran(items(1), spec(endpoint.url), tmp_path)
        assert isinstance(found[0], Dropped) and "the prompt is too long" in found[0].reason and len(endpoint.requests) == 1
        assert ledger.facts()["faults"] == {"refused": 1}


def test_everybody_waits_for_a_retry_after(tmp_path: Path) -> None:
    with scripted_teacher(faults=["", "", "429:0.4"], delay_s=0.005) as endpoint:
        ran(items(20), spec(endpoint.url, concurrency=4), tmp_path)
        assert endpoint.fired["429"] == 1
        (refused_s,) = endpoint.refused_s
        early = [arrived - refused_s for arrived in endpoint.arrivals_s if 0.1 < arrived - refused_s < 0.39]
        assert not early and len(endpoint.requests) == 21


@pytest.mark.parametrize(
    ("value", "low", "high"), [("7", 7, 7), ("0.5", 0.5, 0.5), ("", None, None), ("soon", None, None), ("-3", 0, 0)]
)
def test_retry_after_is_a_number(value: str, low: float | None, high: float | None) -> None:
    import httpx

    assert retry_after_s(httpx.Headers({"retry-after": value})) == low == high


def test_retry_after_may_be_a_date() -> None:
    from email.utils import formatdate

    import httpx

    found = retry_after_s(httpx.Headers({"retry-after": formatdate(time.time() + 40, usegmt=True)}))
    assert found is not None and 37 < found <= 40
    assert retry_after_s(httpx.Headers({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"})) == 0.0


def test_a_teacher_that_is_down_is_an_error_after_its_patience(
    endpoint: ScriptedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "PATIENCE_S", 0.2)
    endpoint.close()
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r"answered nothing for .* connection, .*refused"):
        ran(items(40), spec(endpoint.url, timeout_s=0.2), tmp_path)
    assert time.monotonic() - start > 0.35


def test_a_page_for_every_request_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "PATIENCE_S", 0.1)
    with scripted_teacher(faults=["html"] * 10**5) as endpoint:
        with pytest.raises(ServiceError, match=r"a page: .*Sign in to the proxy"):
            ran(items(10**4), spec(endpoint.url, timeout_s=0.2), tmp_path)
        assert endpoint.fired["html"] == len(endpoint.requests) < 10**4


def test_a_retry_after_beyond_all_patience_is_not_waited_for(tmp_path: Path) -> None:
    with scripted_teacher(faults=["429:86400"]) as endpoint, pytest.raises(ServiceError, match="left alone for 86400 s"):
        ran(items(1), spec(endpoint.url), tmp_path)


@pytest.mark.parametrize(("fault", "says"), [("401", "wants a key"), ("404", "check teacher.url and teacher.model")])
def test_errors_that_no_wait_mends_stop_at_once(tmp_path: Path, fault: str, says: str) -> None:
    with scripted_teacher(faults=[fault] * 99) as endpoint, pytest.raises(ServiceError, match=says):
        ran(items(9), spec(endpoint.url, concurrency=1), tmp_path)
    assert endpoint.fired[fault] == 1


def test_one_request_that_always_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "ATTEMPTS", 3)

    class OneFails(ScriptedTeacher):
        def begin(self, asked: dict, key: str) -> tuple[str, int]:
            _, times = super().begin(asked, key)
            return ("500" if "case 7?" in asked["messages"][0]["content"] else ""), times

    from scripted_teacher import Script

    endpoint = OneFails(Script(delay_s=0.01))
    found, _ = ran(items(25), spec(endpoint.url, tries=2, concurrency=2), tmp_path)
    endpoint.close()
    lost = [row for row in found if isinstance(row, Dropped)]
    assert [(row.id, row.step) for row in lost] == [("s:7:rationale", "unanswered")]


# ---- bounds -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 5])
def test_no_more_requests_are_under_way_than_allowed(tmp_path: Path, concurrency: int) -> None:
    with scripted_teacher(delay_s=0.02) as endpoint:
        ran(items(10), spec(endpoint.url, concurrency=concurrency), tmp_path)
        assert endpoint.most_under_way == concurrency


def test_the_rows_are_read_as_they_are_needed(endpoint: ScriptedTeacher, tmp_path: Path) -> None:
    taken = 0

    def rows() -> Iterator[Conversation]:
        nonlocal taken
        for row in items(500):
            taken += 1
            yield row

    taught = spec(endpoint.url, concurrency=2)
    found = asked(rows(), "rationale_general", taught, 3, str(tmp_path), Ledger(taught))
    next(found)
    assert taken == 32
    found.close()
    assert len(endpoint.requests) <= 32


def test_the_budget_stops_before_it_is_passed_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    rows, budget = items(20), 4500
    with scripted_teacher() as endpoint:
        whole, ledger = ran(rows, spec(endpoint.url), tmp_path / "whole")
        price = ledger.spent_tokens
        assert price == endpoint.tokens and ledger.facts()["prompt_tokens"] > ledger.facts()["answer_tokens"] > 0
        endpoint.requests.clear()
        endpoint.tokens = 0
        small = spec(endpoint.url, budget_tokens=budget, concurrency=2)
        with pytest.raises(StageError, match=r"tokens are spent of the budget .* rows are left") as stop:
            ran(rows, small, tmp_path / "part")
        spent, left = endpoint.tokens, 20 - len(endpoint.requests)
        assert 0 < left < 20 and budget - 2500 < spent <= budget
        assert stop.value.problem.startswith(f"{spent} tokens are spent of the budget of {budget},")
        assert f"; {left} rows are left to ask, about {spent * left // (20 - left)} tokens more" in stop.value.problem
        for _ in range(3):
            with pytest.raises(StageError):
                ran(rows, small, tmp_path / "part")
        assert endpoint.tokens <= budget + 2 * price / 20, "the budget is of all attempts together"
        found, ledger = ran(rows, spec(endpoint.url, budget_tokens=2 * price), tmp_path / "part")
        assert found == whole and endpoint.tokens == price == ledger.spent_tokens and len(endpoint.requests) == 20


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), min_size=1, max_size=30), st.integers(20, 900), st.integers(1, 6)
)
def test_no_order_of_threads_passes_the_budget(costs: list[tuple[int, int]], budget: int, threads: int) -> None:
    ledger, over = Ledger(spec("http://h/v1", budget_tokens=budget)), []

    def row(number: int) -> None:
        most, less = costs[number][0], min(costs[number])
        ledger.is_read(number)
        try:
            with ledger.set_aside(most, number):
                ledger.pay(Answer("", True, less, 0), cached=False)
        except OverBudget:
            over.append(most)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(row, range(len(costs))))
    assert ledger.spent_tokens <= budget
    assert all(ledger.spent_tokens + most > budget for most in over) and (over or sum(min(cost) for cost in costs) <= budget)


def test_a_request_waits_for_one_under_way_that_may_turn_out_cheaper() -> None:
    ledger, under_way, landed = Ledger(spec("http://h/v1", budget_tokens=100)), Event(), Event()

    def first() -> None:
        ledger.is_read(0)
        with ledger.set_aside(60, 0):
            under_way.set()
            landed.wait(30)
            ledger.pay(Answer("", True, 10, 0), cached=False)

    def second() -> int:
        under_way.wait(30)
        ledger.is_read(1)
        with ledger.set_aside(60, 1):
            return ledger.spent_tokens

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.submit(first), pool.submit(second)
        time.sleep(0.05)
        assert not two.done()
        landed.set()
        assert one.result() is None and two.result() == 10


def test_usd_are_tokens_at_their_price(endpoint: ScriptedTeacher, tmp_path: Path) -> None:
    taught = spec(endpoint.url, usd_per_million_prompt_tokens=2.0, usd_per_million_answer_tokens=8.0)
    for times in range(2):
        facts = ran(items(5), taught, tmp_path)[1].facts()
        assert facts["usd"] == round((2 * facts["prompt_tokens"] + 8 * facts["answer_tokens"]) / 1e6, 6) > 0
        assert facts["usd_now"] == (0 if times else facts["usd"])


def test_tokens_that_are_not_told_are_counted_at_their_most(tmp_path: Path) -> None:
    with scripted_teacher(faults=["no_usage"]) as endpoint:
        facts = ran(items(1), spec(endpoint.url), tmp_path)[1].facts()
        prompt = len(endpoint.prompts()[0].encode())
        assert facts["without_usage"] == 1 and prompt <= facts["prompt_tokens"] <= prompt + 100 and facts["answer_tokens"] > 20


# ---- what is kept -------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_killed_asks_nothing_twice(tmp_path: Path) -> None:
    with scripted_teacher(delay_s=0.01) as endpoint:
        taught = spec(endpoint.url, concurrency=3)
        child = multiprocessing.get_context("fork").Process(target=ran, args=(items(40), taught, tmp_path))
        child.start()
        deadline = time.monotonic() + 60
        while len(endpoint.requests) < 12:
            assert child.is_alive() and time.monotonic() < deadline
            time.sleep(0.005)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        while endpoint.under_way:
            time.sleep(0.01)
        before, kept = len(endpoint.requests), len(list(tmp_path.rglob("*.json")))
        found, ledger = ran(items(40), taught, tmp_path)
        assert 9 <= before - 3 <= kept <= before < 40
        assert all(isinstance(row, Conversation) for row in found) and len(found) == 40
        assert ledger.facts()["cached"] == kept and len(endpoint.requests) == before + 40 - kept
        twice = sum(times > 1 for times in Counter(endpoint.prompts()).values())
        assert twice == before - kept <= 3, "only what was under way may be asked again"


def test_a_rerun_asks_nothing_and_gives_the_same(tmp_path: Path) -> None:
    with scripted_teacher(wrong_share=0.5) as endpoint:
        first, _ = ran(items(40), spec(endpoint.url), tmp_path)
        requests = len(endpoint.requests)
        assert requests > 40
        again, ledger = ran(items(40), spec(endpoint.url, concurrency=2, timeout_s=9.0, budget_tokens=10**7), tmp_path)
        assert again == first and len(endpoint.requests) == requests == ledger.facts()["cached"]
        ran(items(1), spec(endpoint.url, model="another"), tmp_path)
        assert len(endpoint.requests) > requests


def test_the_name_of_an_answer_covers_what_decides_it() -> None:
    base, messages = spec("http://h/v1"), [{"role": "user", "content": "x"}]
    changed = [spec("http://h/v2"), spec("http://h/v1", model="m"), spec("http://h/v1", temperature=0.1)]
    changed.append(spec("http://h/v1", max_answer_tokens=9))
    others = [key_of(each, messages, 1) for each in changed] + [key_of(base, messages, 2), key_of(base, [], 1)]
    assert len({key_of(base, messages, 1), *others}) == 7
    same = spec("http://h/v1", tries=9, concurrency=2, timeout_s=1.0, budget_tokens=5, usd_per_million_prompt_tokens=1.0)
    assert key_of(same, messages, 1) == key_of(base, messages, 1)


def test_a_torn_answer_is_none_and_the_first_whole_one_stays(tmp_path: Path) -> None:
    first, second = Answer("a", True, 1, 2), Answer("b", True, 3, 4)
    assert keep_answer(str(tmp_path), "ab12", first) == keep_answer(str(tmp_path), "ab12", second) == first
    (file,) = tmp_path.rglob("*.json")
    whole = file.read_bytes()
    for end in range(len(whole)):
        file.write_bytes(whole[:end])
        assert read_answer(str(tmp_path), "ab12") is None
    assert keep_answer(str(tmp_path), "ab12", second) == read_answer(str(tmp_path), "ab12") == second
    assert read_answer(str(tmp_path), "ff00") is None


def test_the_key_is_sent_and_is_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY_NAME, KEY + "\n")
    monkeypatch.setitem(BROKEN, "400", (400, "application/json", f'{{"error": "the key {KEY} may not"}}'.encode()))
    monkeypatch.setitem(BROKEN, "401", (401, "application/json", f'{{"error": "no key {KEY}"}}'.encode()))
    with caplog.at_level(logging.DEBUG), scripted_teacher(faults=["400", "500"]) as endpoint:
        found, ledger = ran(items(4), spec(endpoint.url, concurrency=1), tmp_path)
        endpoint.script.faults = ["401"]
        with pytest.raises(ServiceError, match="refuses the key") as error:
            ran(items(6), spec(endpoint.url, concurrency=1), tmp_path)
        assert set(endpoint.keys) == {f"Bearer {KEY}"} and endpoint.fired["400"] == endpoint.fired["401"] == 1
    assert "the key *** may not" in str(found) and list(tmp_path.rglob("*.json"))
    written = "".join(file.read_text() for file in tmp_path.rglob("*.json"))
    for place in (str(found), str(ledger.facts()), str(error.value), caplog.text, written):
        assert KEY not in place and place


@pytest.mark.parametrize("key", ["two\nlines", "Schl\u00fcssel"])
def test_a_key_that_no_header_carries_is_refused_without_showing_it(
    endpoint: ScriptedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv(KEY_NAME, key)
    with pytest.raises(ServiceError, match=KEY_NAME) as error:
        ran(items(1), spec(endpoint.url), tmp_path)
    assert key not in str(error.value) and not endpoint.requests
