"""The chat page's files without a browser: open to all, bound by a policy, from this server alone. test_chat_page.py uses them."""

import re
import tomllib
from pathlib import Path

import pytest
from served import api, send
from starlette.applications import Starlette
from starlette.routing import Mount

from medschool.serve.page import FILES, FOLDER

TEXTS = {name: (FOLDER / name).read_text(encoding="utf-8") for name, _ in FILES.values()}
HTML, SCRIPT, STYLE = TEXTS["index.html"], TEXTS["chat.js"], TEXTS["chat.css"]
HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store", "x-medschool-notice": "not for clinical use"}


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_open_and_bound_by_the_policy(path: str) -> None:
    name, media_type = FILES[path]
    answer = send(api(), "GET", path, headers={})
    assert (answer.status_code, answer.content) == (200, (FOLDER / name).read_bytes())
    assert answer.headers["content-type"].split(";")[0] == media_type
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert (rules["default-src"], rules["script-src"], rules["connect-src"]) == ("'none'", "'self'", "'self'")
    assert (rules["require-trusted-types-for"], rules["trusted-types"]) == ("'script'", "'none'")
    assert "unsafe" not in str(rules) and "*" not in str(rules)
    assert answer.headers.items() >= HEADERS.items() and answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/page", "/page/", "/page/index.html", "/page/../v1/models", "/page/%2e%2e/page.py"])
def test_nothing_near_the_page_is_open(path: str) -> None:
    assert send(api(), "GET", path, headers={}).status_code == 401


def test_a_prefix_moves_what_is_open_and_opens_nothing_more() -> None:
    under = Starlette(routes=[Mount("/base", app=api())])
    for path in ("/base/", "/base/page/chat.js", "/base/health/live"):
        assert send(under, "GET", path, headers={}).status_code == 200
    for path in ("/base/v1/models", "/base/base/", "/base/health/live/"):
        assert send(under, "GET", path, headers={}).status_code == 401
    assert send(under, "GET", "/base/v1/models").status_code == 200


def test_the_page_s_paths_take_no_other_method() -> None:
    assert send(api(), "POST", "/", headers={}, content=b"x").status_code == 405


def test_every_file_is_used_and_every_address_is_a_file_of_this_server() -> None:
    named = re.findall(r'(?:src|href)="([^"]*)"', HTML)
    assert {f"/{address}" for address in named} | {"/"} == set(FILES)
    assert {path.name for path in FOLDER.iterdir()} == set(TEXTS)
    addresses = re.findall(r"\w+://[^\"'\s]+", "".join(TEXTS.values()))
    assert addresses == ["http://www.w3.org/2000/svg"], "a name of the SVG format, nothing that is fetched"
    assert not re.findall(r"url\(|@import", STYLE) and not re.findall(r"^import |import\(", SCRIPT, re.MULTILINE)


def test_nothing_runs_inline_and_nothing_parses_markup() -> None:
    assert re.findall(r"<script[^>]*>", HTML) == ['<script type="module" src="page/chat.js">']
    assert not re.findall(r"\son\w+=|\sstyle=|<style|javascript:", HTML)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|DOMParser|srcdoc", SCRIPT)


def test_the_key_is_kept_in_this_tab_alone() -> None:
    assert not re.findall(r"localStorage|indexedDB|\.cookie|caches\b|console\.", SCRIPT)
    assert not re.findall(r"<input[^>]*\sname=", HTML), "a form that is sent without the script would put it into the address"


def test_the_script_asks_for_elements_that_exist() -> None:
    asked = set(re.findall(r'byId\("([\w-]+)"\)|copyOf\("([\w-]+)"\)', SCRIPT))
    ids = re.findall(r'\sid="([\w-]+)"', HTML)
    assert len(ids) == len(set(ids)) and {first or second for first, second in asked} <= set(ids)
    classes = {name for part in re.findall(r'class="([^"]*)"', HTML) for name in part.split()}
    assert set(re.findall(r'"\.([a-z]+)"', SCRIPT)) <= classes


def test_the_files_come_with_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert "static/*" in project["tool"]["setuptools"]["package-data"]["medschool.serve"]
