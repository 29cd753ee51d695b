"""Python and YAML of docs/serving.md, run as printed. Its curl lines: test_serve_clients.py."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from served import KEY, on_port
from tiny import write_model

from medschool import artifact
from medschool.artifact import Output, upload_folder
from medschool.recipe.serving import Serve
from medschool.serve.admission import Limits
from medschool.serve.api import ModelInfo, build_api
from medschool.serve.engine import EchoEngine
from medschool.serve.keys import Key, KeyRing, hash_key
from medschool.serve.on_ray import ChatArgs, _load
from medschool.serve.template import BytesText

GUIDE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
QUESTION = "What does the liver do?"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    ring, info = KeyRing([Key("unit", hash_key(KEY))]), ModelInfo("medschool", "v-abc", 1_700_000_000)
    with on_port(build_api(EchoEngine(), BytesText(), info, ring, Limits(1000, 8))) as address:
        yield address


def test_the_python_lines(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("URL", url)
    monkeypatch.setenv("KEY", KEY)
    (lines,) = blocks("python")
    exec(lines, {})
    assert capsys.readouterr().out == f"{QUESTION}\n{len(QUESTION)} tokens"


def test_an_adopted_base_model_is_served_as_a_training_is(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    write_model(folder)
    made = artifact.make(str(tmp_path), "model", "0" * 16, {}, lambda prefix: Output(upload_folder(prefix, folder)))
    args = ChatArgs(model=made.manifest_uri, dtype="fp32", max_context_tokens=16, max_concurrent_requests=1)
    text, engine, version = _load(args, made.manifest_uri)
    engine.stop()
    assert version == made.digest[:16] and text.encode([{"role": "user", "content": "a"}])


def test_the_two_applications_are_what_serve_takes() -> None:
    lines, _ = blocks("yaml")
    chat, base = yaml.safe_load(lines)["applications"]
    assert (chat["route_prefix"], base["route_prefix"]) == ("/", "/base")
    for application in (chat, base):
        assert application["import_path"] == "serve_apps.chat:app"
        ChatArgs.model_validate(application["args"])


def test_the_adapters_are_what_a_recipe_and_the_application_take() -> None:
    _, lines = blocks("yaml")
    told = yaml.safe_load(lines)["serve"]
    spec = Serve.model_validate(told)
    assert list(spec.adapters) == ["ward", "theirs"]
    ChatArgs.model_validate({"model": "m"} | {key: told[key] for key in ("engine", "python", "adapters")})
