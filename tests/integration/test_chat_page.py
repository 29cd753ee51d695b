"""The chat page in a real Chromium, used by mouse and keyboard, over the echo engine behind a real HTTP server."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import SHIFT, Browser, Tab, opened, program
from served import INFO, KEY, BrokenEngine, CountingEngine, api, on_port, wait_until
from starlette.types import ASGIApp, Receive, Scope, Send

from medschool.serve import audit
from medschool.serve.admission import Limits
from medschool.serve.api import ModelInfo, build_api
from medschool.serve.audit import AuditLog
from medschool.serve.engine import EchoEngine
from medschool.serve.keys import Key, KeyRing, hash_key
from medschool.serve.template import BytesText

pytestmark = pytest.mark.skipif(program() is None, reason="no Chromium: apt-get install chromium")
CONTEXT = 4000
ATTACK = """<img src=x onerror="document.title='hit'"><script>document.title='hit'</script><b>bold</b> &lt;"""
DONE = "document.querySelectorAll('.answer[aria-busy=false]').length === {} && !document.querySelector('[aria-busy=true]')"
SHOWN = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".unseen") && e.checkVisibility())"""
CONTRASTS = f"""(() => {{
  const parts = color => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = e => {{ const own = parts(getComputedStyle(e).backgroundColor); return own[3] === 0 ? behind(e.parentElement) : own; }};
  return {SHOWN}.filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {{
    const [a, b] = [light(parts(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    return [e.outerHTML.slice(0, 60), (a + 0.05) / (b + 0.05)]; }}); }})()"""
"""Of each element with text: its contrast with what it stands on, by WCAG 2.2's formula of relative luminance."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def engine() -> CountingEngine:
    return CountingEngine(delay_s=0.005)


@pytest.fixture(scope="module")
def url(engine: CountingEngine) -> Iterator[str]:
    with on_port(api(engine, context=CONTEXT)) as address:
        yield f"{address}/"


def entered(browser: Browser, url: str, key: str = KEY, **options: Any) -> Tab:
    """A tab in which a person has typed the key."""
    tab = browser.tab(url, **options)
    tab.until("document.activeElement.id === 'key'")
    tab.write(key)
    tab.press("Enter")
    tab.until("document.activeElement.id === 'prompt'")
    return tab


def asked(tab: Tab, text: str, answers: int = 1) -> None:
    """Type and send; wait until so many answers have ended in the whole conversation."""
    tab.write(text)
    tab.press("Enter")
    tab.until(DONE.format(answers))


def test_an_answer_is_shown_while_it_is_written_with_its_figures(browser: Browser, url: str) -> None:
    tab = entered(browser, url)
    assert tab.text("#models label") == "echo v-abc" and tab.js("document.title") == "echo - medschool chat"
    question = "The heart pumps blood through the body; the lungs take up oxygen and give off carbon dioxide."
    tab.js(
        """window.seen = [], new MutationObserver(() => seen.push(document.querySelector(".text").textContent))
        .observe(document.querySelector("#log"), {childList: true, characterData: true, subtree: true})"""
    )
    asked(tab, question)
    seen = set(tab.js("seen"))
    assert len(seen) > 3 and all(question.startswith(part) for part in seen)
    assert (tab.text(".question"), tab.js("document.querySelector('.text').textContent")) == (question, question)
    found = re.fullmatch(r"\d+\.\d\d s to the first token, 93 tokens, ([\d.]+) tokens/s", tab.text(".numbers"))
    assert found and 1 < float(found[1]) < 1000, "they came over at least a tenth of a second, not at once"
    assert not tab.complaints()


def test_system_prompt_and_conversation_are_sent_and_a_new_chat_forgets_them(browser: Browser, url: str) -> None:
    tab = entered(browser, url)
    tab.click("summary")
    tab.click("#system")
    tab.write("Be brief.")
    tab.click("#prompt")
    asked(tab, "a")
    asked(tab, "b", 2)
    assert tab.js("[...document.querySelectorAll('.text')].map(e => e.textContent)") == [
        "Be brief.\na",
        "Be brief.\na\nBe brief.\na\nb",
    ]
    tab.click("#fresh")
    asked(tab, "c")
    assert tab.js("document.querySelector('.text').textContent") == "Be brief.\nc"


def test_stopping_ends_the_answer_here_and_in_the_engine(browser: Browser, url: str, engine: CountingEngine) -> None:
    tab = entered(browser, url)
    for stop in (lambda: tab.press("Escape"), lambda: tab.click("#stop")):
        tab.click("#fresh")
        tab.write("first line")
        tab.press("Enter", SHIFT)
        tab.write("long " * 30)
        tab.press("Enter")
        tab.until("document.querySelector('.text')?.textContent.length > 3")
        assert tab.text("#send, #stop") == "Stop" and engine.running == 1
        stop()
        tab.until(DONE.format(1))
        wait_until(lambda: not engine.running)
        assert re.search(r"about \d+ tokens.*, stopped$", tab.text(".numbers")) and not tab.text(".fault")
        assert tab.text(".question").startswith("first line\nlong") and tab.js("document.activeElement.id") == "prompt"
    written = tab.js("document.querySelector('.text').textContent")
    asked(tab, "on", 2)
    assert tab.js("[...document.querySelectorAll('.text')].pop().textContent").endswith(f"{written}\non"), "it is kept"


def test_the_answer_is_copied(browser: Browser, url: str) -> None:
    tab = entered(browser, url)
    asked(tab, "copy me")
    tab.click(".copy")
    tab.until("document.querySelector('.copy').innerText !== 'Copy'")
    assert tab.text(".copy") == tab.text("#told") == "Copied"
    tab.js("document.querySelector('#prompt').focus()")
    tab.ask("Input.dispatchKeyEvent", type="keyDown", key="v", code="KeyV", modifiers=2, commands=["paste"])
    assert tab.js("document.querySelector('#prompt').value") == "copy me"


# ---- what goes wrong


def test_a_wrong_key_is_told_and_forgotten(browser: Browser, url: str) -> None:
    tab = browser.tab(url)
    tab.until("document.activeElement.id === 'key'")
    for wrong in ("wrong", "schl\u00fcssel \u2713"):
        tab.js("document.querySelector('#key').value = ''")
        tab.write(wrong)
        tab.click("#enter button")
        tab.until("document.querySelector('#key-fault').innerText.includes('not known here')")
        assert tab.js("sessionStorage.length + localStorage.length") == 0 and not tab.js("document.cookie")
    tab.write(KEY)
    tab.press("Enter")
    tab.until("document.activeElement.id === 'prompt'")
    assert tab.js("Object.values(sessionStorage)") == [KEY] and KEY not in tab.js("document.documentElement.outerHTML")
    tab.go(url)
    tab.until("document.activeElement.id === 'prompt'")
    tab.js("sessionStorage.setItem('medschool.key', 'revoked')")
    tab.write("hello")
    tab.press("Enter")
    tab.until("document.activeElement.id === 'key'")
    assert "not known here, or was revoked" in tab.text("#key-fault") and tab.js("sessionStorage.length") == 0
    assert browser.tab(url).js("sessionStorage.length") == 0, "another tab does not have it"


def test_too_many_requests_count_down_until_it_can_be_tried_again(browser: Browser) -> None:
    with on_port(api(keys=[Key("unit", hash_key(KEY), requests_per_minute=2)])) as address:
        tab = entered(browser, f"{address}/")
        asked(tab, "one")
        asked(tab, "two", 2)
        assert "Too many requests" in tab.text(".fault") and "2 requests a minute" in tab.text(".fault")
        first = re.fullmatch(r"Try again in (\d\d) s", tab.text(".again"))
        assert first and 30 < int(first[1]) <= 60
        tab.until(f"document.querySelector('.again').innerText === 'Try again in {int(first[1]) - 1} s'")
        assert tab.js("document.querySelector('.again').disabled")


def test_what_was_refused_can_be_tried_again(browser: Browser) -> None:
    engine = CountingEngine(delay_s=0.05)
    with on_port(api(engine, keys=[Key("unit", hash_key(KEY), concurrency=1)])) as address:
        tab = entered(browser, f"{address}/")
        asked(tab, "one")
        body = {"model": "echo", "messages": [{"role": "user", "content": "long " * 30}], "stream": True}
        headers = {"authorization": f"Bearer {KEY}"}
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, headers=headers):
            asked(tab, "two", 2)
            assert "Too many requests" in tab.text(".fault") and "1 answers at once" in tab.text(".fault")
        wait_until(lambda: not engine.running)
        tab.until("!document.querySelector('.again').disabled")
        tab.click(".again")
        tab.until("[...document.querySelectorAll('.text')].pop().textContent === 'one\\none\\ntwo'")
        tab.until(DONE.format(2))
        assert not tab.text(".fault, .again")


def refused_by_the_audit_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ASGIApp:
    monkeypatch.setattr(audit, "MAX_WAITING", 0)
    log = AuditLog(str(tmp_path))
    log.close()
    return api(audit=log)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (refused_by_the_audit_log, "The server is not ready. Try again shortly. the audit log can not be written; request req_"),
        (lambda *_: api(BrokenEngine()), "The answer is not complete. the model failed; the answer is not complete"),
    ],
    ids=["503", "fault"],
)
def test_faults_are_told_in_words(
    browser: Browser, make: Callable[..., ASGIApp], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with on_port(make(tmp_path, monkeypatch)) as address:
        tab = entered(browser, f"{address}/")
        asked(tab, "hello")
        assert tab.text(".fault").strip().startswith(words)
        assert tab.text(".again") == "Try again"
        assert tab.text(".numbers").endswith("not complete") == (tab.text(".text") != "")


def test_a_server_that_is_gone_is_told_in_words(browser: Browser) -> None:
    server: AbstractContextManager[str] = on_port(api())
    with server as address:
        tab = entered(browser, f"{address}/")
    asked(tab, "hello")
    assert tab.text(".fault").strip() == "The server cannot be reached. Check the network and try again."


# ---- text stays text


def test_markup_in_an_answer_stays_text(browser: Browser, url: str) -> None:
    tab = entered(browser, url)
    title = tab.js("document.title")
    asked(tab, ATTACK)
    assert tab.js("[...document.querySelectorAll('.question, .text')].map(e => e.textContent)") == [ATTACK, ATTACK]
    assert tab.js("document.querySelectorAll('#log :is(img, script, b)').length") == 0
    assert tab.js("document.title") == title and not tab.complaints()


def test_the_browser_itself_refuses_markup_scripts_and_other_servers(browser: Browser, url: str) -> None:
    tab = entered(browser, url)
    for attempt in ("document.body.innerHTML = '<b>x</b>'", "eval('1')", "document.write('x')"):
        with pytest.raises(AssertionError, match=r"Trusted|unsafe-eval"):
            tab.js(attempt)
    with pytest.raises(AssertionError, match="Failed to fetch"):
        tab.js("fetch('http://localhost:9/')")
    assert any("connect-src" in complaint for complaint in tab.complaints())


# ---- how it looks


@pytest.mark.parametrize("width", [320, pytest.param(1280, marks=pytest.mark.long)])
def test_nothing_is_wider_than_the_screen(browser: Browser, url: str, width: int) -> None:
    tab = browser.tab(url, width=width, height=844)

    def must_fit() -> None:
        wide = f"{SHOWN}.filter(e => e.getBoundingClientRect().right > innerWidth || e.getBoundingClientRect().left < 0)"
        assert tab.js(f"{wide}.map(e => e.outerHTML.slice(0, 80))") == []
        assert tab.js("document.querySelector('#log').scrollWidth <= document.querySelector('#log').clientWidth")
        assert tab.js("document.documentElement.scrollWidth") <= width
        notice = "document.querySelector('#notice').getBoundingClientRect()"
        assert tab.js(f"{notice}.top >= 0 && {notice}.bottom <= innerHeight") and "Not for clinical use" in tab.text("#notice")

    for key, then in (
        ("w" * 200, "document.querySelector('#key-fault').innerText"),
        (KEY, "!document.querySelector('#ask').hidden"),
    ):
        tab.js("document.querySelector('#key').focus()")
        tab.write(key)
        tab.press("Enter")
        tab.until(then)
        must_fit()
    tab.click("summary")
    tab.click("#prompt")
    asked(tab, "pneumonoultramicroscopicsilicovolcanoconiosis" * 4)
    must_fit()
    asked(tab, "too long" * CONTEXT, 2)
    assert "too long for this model" in tab.text(".fault")
    must_fit()


def test_the_view_follows_the_answer_unless_a_person_scrolls_away(browser: Browser, url: str) -> None:
    tab = entered(browser, url, width=390, height=500)
    asked(tab, "l\n" * 20)
    below = "(log => log.scrollHeight - log.clientHeight - log.scrollTop)(document.querySelector('#log'))"
    asked(tab, "end", 2)
    tab.until(f"{below} < 2 && document.querySelector('#log').scrollTop > 50")
    tab.write("on")
    tab.press("Enter")
    tab.until("document.querySelectorAll('.text').length === 3 && document.querySelector('[aria-busy=true]')")
    tab.js("document.querySelector('#log').scrollTop = 0")
    tab.until(DONE.format(3))
    assert tab.js("document.querySelector('#log').scrollTop") == 0


def test_both_palettes_can_be_read(browser: Browser, url: str) -> None:
    tab = entered(browser, url)

    def must_be_readable() -> None:
        for scheme in ("light", "dark"):
            tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            back = [int(part) for part in re.findall(r"\d+", tab.js("getComputedStyle(document.body).backgroundColor"))]
            assert sum(back) < 100 if scheme == "dark" else sum(back) > 700
            found = tab.js(CONTRASTS)
            assert len(found) > 8 and [pair for pair in found if pair[1] < 4.5] == []

    asked(tab, "hello")
    must_be_readable()
    tab.js("sessionStorage.setItem('medschool.key', 'revoked')")
    tab.write("again")
    tab.press("Enter")
    tab.until("document.activeElement.id === 'key'")
    must_be_readable()


def test_motion_stops_where_a_person_asks_for_less(browser: Browser, url: str) -> None:
    tab = entered(browser, url)
    tab.write("long " * 40)
    tab.press("Enter")
    tab.until("document.querySelector('[aria-busy=true] .text')")
    moving = "getComputedStyle(document.querySelector('.text'), '::after').animationName"
    assert tab.js(moving) == "blink"
    tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    assert tab.js(moving) == "none"
    tab.press("Escape")


def test_all_controls_have_names_and_the_keyboard_reaches_them_in_order(browser: Browser, url: str) -> None:
    tab = entered(browser, url)
    asked(tab, "hello")
    nodes = [node for node in tab.ask("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes]
    controls = {name for role, name in named if role in ("button", "textbox", "checkbox", "DisclosureTriangle")}
    assert controls == {"New chat", "Forget key", "Copy the answer of echo", "System prompt", "Message", "Send"}
    assert ("log", "Conversation") in named and "status" in dict(named), "answers and notes are announced"
    tab.js("document.querySelector('#fresh').focus()")
    order = []
    for _ in range(7):
        order.append(tab.js("document.activeElement.id || document.activeElement.className || document.activeElement.tagName"))
        tab.press("Tab")
    assert order == ["fresh", "leave", "log", "copy", "SUMMARY", "prompt", "send"]


# ---- side by side


def beside(main: ASGIApp, base: ASGIApp) -> ASGIApp:
    """Two applications, one at /base, told so in ASGI's `root_path` as Ray Serve's proxy does."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/base/"):
            await base({**scope, "root_path": "/base"}, receive, send)
        else:
            await main(scope, receive, send)

    return app


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("votes")


@pytest.fixture(scope="module")
def pair_url(votes: Path) -> Iterator[str]:
    def model(name: str, version: str) -> ASGIApp:
        ring = KeyRing([Key("unit", hash_key(KEY))])
        info = ModelInfo(name, version, INFO.created_s)
        return build_api(EchoEngine(0.005), BytesText(), info, ring, Limits(CONTEXT, 8), votes=str(votes))

    with on_port(beside(model("tuned", "v2"), model("base", "v1"))) as address:
        yield f"{address}/?with=base"


def test_two_models_answer_side_by_side_each_with_its_own_conversation(browser: Browser, pair_url: str) -> None:
    tab = entered(browser, pair_url)
    assert tab.text("#models label").split("\n") == ["tuned v2", "base v1"]
    asked(tab, "a", 2)
    boxes = tab.js("[...document.querySelectorAll('.answer')].map(e => (b => [b.x, b.y])(e.getBoundingClientRect()))")
    assert boxes[0][1] == boxes[1][1] and boxes[1][0] > boxes[0][0] + 300
    tab.click("#models label:nth-of-type(2)")
    tab.click("#prompt")
    asked(tab, "b", 3)
    tab.click("#models label:nth-of-type(1)")
    assert tab.js("[...document.querySelectorAll('#models input')].map(e => e.checked)") == [True, False], "one stays"
    tab.click("#models label:nth-of-type(2)")
    tab.click("#prompt")
    asked(tab, "c", 5)
    shown = tab.js(
        "[...document.querySelectorAll('.answer')].map(e => [...e.querySelectorAll('h3, .text')].map(p => p.textContent))"
    )
    assert shown == [
        ["tuned v2", "a"],
        ["base v1", "a"],
        ["tuned v2", "a\na\nb"],
        ["tuned v2", "a\na\nb\na\na\nb\nc"],
        ["base v1", "a\na\nc"],
    ]
    tab.ask("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    first, second = tab.js("[...document.querySelectorAll('.answer')].slice(-2).map(e => e.getBoundingClientRect().toJSON())")
    assert first["x"] == second["x"] and second["top"] >= first["bottom"], "on a phone they stand below each other"


@pytest.mark.parametrize("drawn", [0, 1])
def test_a_blind_vote_is_kept_and_then_shows_the_names(browser: Browser, pair_url: str, votes: Path, drawn: int) -> None:
    tab = entered(browser, pair_url)
    before = set(votes.rglob("*.json"))
    tab.js(f"(crypto.getRandomValues = (bytes) => bytes.fill({drawn}), 0)")
    tab.click("#blind-row")
    assert "keeps the question and both answers" in tab.text("#blind-hint").replace("\n", " ")
    tab.click("#prompt")
    asked(tab, "a", 2)
    asked(tab, "b", 4)
    names = ["tuned v2", "base v1"] if drawn else ["base v1", "tuned v2"]
    assert tab.text("#log .who").split("\n") == ["Answer A", "Answer B"] * 2
    assert not re.search("tuned|base|token", tab.text("#log")) and tab.js("document.querySelectorAll('.vote').length") == 1
    assert tab.text(".text").split("\n") == ["a", "a", "b", "b"], "each question stands alone"
    tab.click(".vote button[value=second]")
    tab.until("!document.querySelector('.vote button')")
    assert tab.text("#log .who").split("\n")[2:] == names and "Kept: the second" in tab.text(".vote")
    (kept,) = set(votes.rglob("*.json")) - before
    vote = json.loads(kept.read_text())
    assert (vote["better"], vote["key"], vote["messages"]) == ("second", "unit", [{"role": "user", "content": "b"}])
    assert [f"{answer['model']} {answer['version']}" for answer in vote["answers"]] == names
    assert [answer["text"] for answer in vote["answers"]] == ["b", "b"] and not tab.complaints()


def test_the_key_is_sent_to_no_other_place(browser: Browser, pair_url: str) -> None:
    root = pair_url.split("?")[0]
    others = ("//other.example", "https://other.example", "../x", "a/b", "")
    tab = entered(browser, root + "?with=" + "&with=".join(others))
    assert tab.text("#models label") == "tuned v2"
    asked_for = tab.js("performance.getEntriesByType('resource').map(e => e.name)")
    assert sorted(name.removeprefix(root) for name in asked_for) == [
        "page/chat.css",
        "page/chat.js",
        "page/icon.svg",
        "v1/models",
    ]
