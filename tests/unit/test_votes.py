"""Votes between two answers: kept as sent with who and when, and taken out as preference pairs."""

import json
from pathlib import Path
from typing import Any

import pytest
from served import INFO, KEY, send
from starlette.types import ASGIApp
from typer.testing import CliRunner

from medschool.cli import app as command_line
from medschool.rows import Dropped
from medschool.serve import votes
from medschool.serve.admission import Limits
from medschool.serve.api import build_api
from medschool.serve.engine import EchoEngine
from medschool.serve.keys import Key, KeyRing, hash_key
from medschool.serve.template import BytesText

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What does the liver do?"}]
ANSWERS = [
    {"model": "base", "version": "v1", "text": "It pumps."},
    {"model": "tuned", "version": "v2", "text": "It cleans blood."},
]
SECOND = {"messages": MESSAGES, "answers": ANSWERS, "better": "second"}


def voting(store: Path | None) -> ASGIApp:
    uri = str(store / votes.FOLDER) if store else ""
    ring = KeyRing([Key("rater-3", hash_key(KEY))])
    return build_api(EchoEngine(), BytesText(), INFO, ring, Limits(200, 8), votes=uri)


def test_a_vote_becomes_a_preference_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for better in ("second", "neither", "first"):
        assert send(voting(tmp_path), "POST", "/v1/votes", json=SECOND | {"better": better}).json() == {"status": "kept"}
    same = [ANSWERS[0], ANSWERS[1] | {"text": "It pumps."}]
    assert send(voting(tmp_path), "POST", "/v1/votes", json=SECOND | {"answers": same}).status_code == 200
    (damaged := tmp_path / "votes" / "2020-01-01" / "000000-x.json").parent.mkdir()
    damaged.write_text('{"better": "first"}')
    found = list(votes.pairs(str(tmp_path)))
    left_out = sorted((one.step, one.reason.split(":")[0]) for one in found if isinstance(one, Dropped))
    assert left_out == [("malformed", "messages"), ("tie", "both answers have the same text"), ("tie", "no answer was better")]
    made = {pair["chosen_model"]: pair for pair in found if isinstance(pair, dict)}
    liked = made["tuned v2"]
    assert liked["prompt"] == MESSAGES and liked["key"] == "rater-3" and liked["at"].endswith("+00:00")
    assert liked["chosen"] == [{"role": "assistant", "content": "It cleans blood."}]
    assert made["base v1"]["chosen"] == liked["rejected"] == [{"role": "assistant", "content": "It pumps."}]
    monkeypatch.setenv("MEDSCHOOL_STORE", str(tmp_path))
    monkeypatch.setenv("MEDSCHOOL_HOME", str(tmp_path / "home"))
    told = CliRunner().invoke(command_line, ["export", "preferences", str(tmp_path / "out.jsonl")])
    assert "2 pairs" in told.stdout and "2 tie" in told.stdout and "1 malformed" in told.stdout
    assert f"{damaged}: messages" in told.stderr
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [pair for pair in found if isinstance(pair, dict)]
    again = CliRunner().invoke(command_line, ["export", "preferences", str(tmp_path / "out.jsonl")])
    assert again.exit_code != 0, "the file was there"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"better": "third"}, "better"),
        ({"answers": ANSWERS[:1]}, "answers"),
        ({"answers": [*ANSWERS, ANSWERS[0]]}, "answers"),
        ({"answers": [ANSWERS[0], {"model": "x", "version": "y"}]}, "answers[1].text"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ],
)
def test_what_is_no_vote_is_refused_by_name(tmp_path: Path, change: dict[str, Any], param: str) -> None:
    answer = send(voting(tmp_path), "POST", "/v1/votes", json=SECOND | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert not list(tmp_path.rglob("*.json"))


def test_a_vote_is_taken_only_where_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert send(voting(tmp_path), "POST", "/v1/votes", json=SECOND, headers={}).status_code == 401
    assert send(voting(None), "POST", "/v1/votes", json=SECOND).json()["error"]["code"] == "no_store"
    monkeypatch.setattr(votes.storage, "put_if_absent", lambda *_: (_ for _ in ()).throw(OSError("away")))
    answer = send(voting(tmp_path), "POST", "/v1/votes", json=SECOND)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
