"""The gate: keys, limits a key, slow and large clients, deadlines, the audit log, what is counted."""

import asyncio
import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi.routing import APIRoute
from hypothesis import given, settings
from hypothesis import strategies as st
from served import HELLO, INFO, KEY, CountingEngine, api, ask, chat, on_port, send, stream, wait_until
from typer.testing import CliRunner

from medschool.cli import app as command_line
from medschool.errors import InputError, RecipeError
from medschool.serve import admission, audit, keys
from medschool.serve.api import Limits, build_routes
from medschool.serve.audit import AuditLog, prompt_hash
from medschool.serve.deadline import TimedProtocol
from medschool.serve.engine import EchoEngine
from medschool.serve.faults import ApiError
from medschool.serve.keys import Key, KeyRing, hash_key
from medschool.serve.metrics import Metrics
from medschool.serve.proxy import JsonErrors, Unsteered, proxy_middlewares
from medschool.serve.quota import WINDOW_S, Quota, Window
from medschool.serve.template import BytesText

MINE = {"authorization": f"Bearer {KEY}"}
NO_NUMBER = json.dumps({"name": "bad", "sha256": hash_key("x"), "concurrency": "9"})
ROUTES = [
    (method, route.path)
    for route in build_routes(EchoEngine(), BytesText(), INFO, Limits(200, 8), Metrics()).routes
    if isinstance(route, APIRoute)
    for method in sorted(route.methods)
]


def limited(**limits: int) -> Any:
    """An app whose only key has these limits."""
    return api(CountingEngine(delay_s=0.02), keys=[Key("unit", hash_key(KEY), **limits)])


# ---- keys


def test_every_route_but_liveness_and_the_page_asks_for_the_key() -> None:
    opened = {"/health/live", "/", "/page/chat.js", "/page/chat.css", "/page/icon.svg"}
    assert len(ROUTES) >= 10
    for method, path in ROUTES:
        status = send(api(), method, path.replace("{name:path}", "echo"), headers={}).status_code
        assert status == (200 if path in opened else 401), (method, path)
    counted = {path for _, path in ROUTES} - {"/v1/models/{name:path}"}
    assert counted == set(admission.PATHS), "paths that are counted by name are those that exist"


def test_a_key_is_shown_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    secret = keys.create(str(tmp_path), "ward-7", requests_per_minute=3)
    assert secret.startswith("msk_") and len(secret) >= 46 and secret != keys.create(str(tmp_path), "ward-8")
    text = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert secret not in text and secret.removeprefix("msk_") not in text and hash_key(secret) in text
    first, second = keys.stored(str(tmp_path))
    assert (first.name, first.requests_per_minute, first.tokens_per_minute, second.name) == ("ward-7", 3, None, "ward-8")


@pytest.mark.parametrize("name", ["", "Ward", "../x", "a/b", "a" * 65, "-a", "a\n"])
def test_bad_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="no name"):
        keys.create(str(tmp_path), name)
    with pytest.raises(RecipeError, match="no key"):
        keys.revoke(str(tmp_path), name)


def test_a_key_of_any_characters_is_compared_as_it_was_sent() -> None:
    app = api(keys=[Key("odd", hash_key("schlüssel"))])
    for sent, status in (("schlüssel".encode(), 200), (b"schlussel", 401), (b"\xff\xfe", 401)):
        assert send(app, "GET", "/v1/models", headers=[(b"authorization", b"Bearer " + sent)]).status_code == status


def test_a_name_is_used_once(tmp_path: Path) -> None:
    keys.create(str(tmp_path), "a")
    keys.revoke(str(tmp_path), "a")
    with pytest.raises(RecipeError, match="already"):
        keys.create(str(tmp_path), "a")


def test_a_revoked_key_is_refused_and_a_new_one_let_in_while_it_serves(tmp_path: Path) -> None:
    secret, store = keys.create(str(tmp_path), "a"), str(tmp_path)
    ring = KeyRing([Key("fixed", hash_key(KEY))], keys.keys_uri(store), reread_s=0.02)
    assert ring.find(secret) and ring.find(KEY)
    later = keys.create(store, "b")
    wait_until(lambda: ring.find(later) is not None)
    revoked = keys.revoke(store, "a")
    wait_until(lambda: ring.find(secret) is None)
    assert ring.find(later) and ring.find(KEY) and keys.revoke(store, "a") == revoked
    ring.close()


def test_a_damaged_record_lets_nobody_in_and_a_store_that_is_away_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = keys.create(str(tmp_path), "good"), keys.create(str(tmp_path), "bad")
    ring = KeyRing([], keys.keys_uri(str(tmp_path)), reread_s=3600)
    record = tmp_path / "keys" / "bad.json"
    for text in ("{", "[]", '{"name": "bad"}', '{"name": "bad", "sha256": ""}', '{"name": "bad", "sha256": 1}', NO_NUMBER):
        record.write_text(text)
        os.utime(record, ns=(0, hash(text) % 10**9))
        ring.reread()
        assert ring.find(good) and not ring.find(bad) and not ring.find("")
    with pytest.raises(InputError, match="API key"):
        keys.stored(str(tmp_path))
    monkeypatch.setattr(keys.storage, "list_files", lambda uri: (_ for _ in ()).throw(OSError("away")))
    ring.reread()
    assert ring.find(good)
    ring.close()


def test_every_hash_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    plain = keys.hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: bool(compared.append(b)) or plain(a, b))
    ring = KeyRing([Key(str(number), hash_key(str(number))) for number in range(5)])
    for given_key in ("0", "4", "none"):
        compared.clear()
        assert (ring.find(given_key) is None) == (given_key == "none")
        assert len(compared) == 5


def test_the_command_line_makes_lists_and_revokes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSCHOOL_STORE", str(tmp_path))
    monkeypatch.setenv("MEDSCHOOL_HOME", str(tmp_path / "home"))
    run = CliRunner()
    made = run.invoke(command_line, ["keys", "create", "ward-7", "--requests-per-minute", "60"])
    secret = made.stdout.strip()
    assert KeyRing([], keys.keys_uri(str(tmp_path))).find(secret)
    assert "only time" in made.stderr
    shown = run.invoke(command_line, ["keys", "list"]).stdout
    assert "ward-7" in shown and "60" in shown and secret not in shown and hash_key(secret) not in shown
    assert "revoked since" in run.invoke(command_line, ["keys", "revoke", "ward-7"]).stdout
    (listed,) = json.loads(run.invoke(command_line, ["keys", "list", "--json"]).stdout)
    assert listed["name"] == "ward-7" and listed["revoked_s"] and "sha256" not in listed
    assert not KeyRing([], keys.keys_uri(str(tmp_path))).find(secret)


# ---- limits


@settings(max_examples=100, deadline=None)
@given(
    asked=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12), st.integers(0, 12)), max_size=20), limit=st.integers(1, 20)
)
def test_no_minute_ever_holds_more_than_the_limit(asked: list[tuple[int, int, int]], limit: int) -> None:
    """Against the plain sum over all that was let in; what is refused fits exactly when it is told to come back."""
    window, now_s, let_in = Window(limit), 0, list[list[int]]()

    def held(at_s: float) -> int:
        return sum(cost for taken_s, cost in let_in if at_s - WINDOW_S < taken_s)

    for pause_s, cost, used in asked:
        now_s += pause_s
        wait_s = window.wait_s(cost, now_s)
        if cost > limit:
            assert wait_s == float("inf")
        elif wait_s:
            assert held(now_s) + cost > limit
            assert held(now_s + wait_s) + cost <= limit < held(now_s + wait_s - 1) + cost
        else:
            let_in.append([now_s, min(used, cost)])
            assert held(now_s) - let_in[-1][1] + cost <= limit
            window.take(cost, now_s)(min(used, cost))


def test_what_has_left_the_window_is_not_given_back_again() -> None:
    window = Window(10)
    used = window.take(10, 0)
    assert window.wait_s(10, 60) == 0
    window.take(10, 60)
    used(0)
    assert window.wait_s(1, 61) == 59


def test_a_quota_says_when_to_come_back() -> None:
    now_s = [0.0]
    quota = Quota(Key("a", "", requests_per_minute=2), lambda: now_s[0])
    quota.request()
    now_s[0] = 10
    quota.request()
    with pytest.raises(ApiError, match="2 requests a minute") as refused:
        quota.request()
    assert (refused.value.status, refused.value.headers["retry-after"]) == (429, "50")
    now_s[0] = 60
    quota.request()


def test_requests_a_minute_are_counted_on_every_route_with_a_key() -> None:
    app = limited(requests_per_minute=2)
    found = [send(app, "GET", path) for path in ("/v1/models", "/nowhere", "/health/ready")]
    assert [response.status_code for response in found] == [200, 404, 429]
    assert found[2].json()["error"]["code"] == "requests_limit" and 55 <= int(found[2].headers["retry-after"]) <= 60
    assert send(app, "GET", "/health/live", headers={}).status_code == 200
    assert send(app, "GET", "/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401


def test_tokens_a_minute_are_reserved_and_what_was_not_used_is_given_back() -> None:
    app = limited(tokens_per_minute=65)
    for _ in range(3):  # 5 + 40 reserved, 10 used
        assert chat(app, max_tokens=40).usage.total_tokens == 10
    with pytest.raises(openai.RateLimitError, match="65 tokens a minute") as refused:
        chat(app, max_tokens=40)
    assert int(refused.value.response.headers["retry-after"]) > 50
    with pytest.raises(openai.BadRequestError, match="smaller max_tokens") as never:
        chat(app)
    assert never.value.param == "max_tokens"


def test_answers_at_once_are_bounded_a_key() -> None:
    app = limited(concurrency=2)

    async def use(client: openai.AsyncOpenAI) -> list[Any]:
        asking = [client.chat.completions.create(model="echo", messages=HELLO) for _ in range(3)]
        return list(await asyncio.gather(*asking, return_exceptions=True))

    found = ask(app, use)
    (refused,) = [one for one in found if isinstance(one, openai.RateLimitError)]
    assert refused.code == "concurrency_limit" and sum(not isinstance(one, Exception) for one in found) == 2
    assert chat(app, n=2).choices[1].message.content == "hello"
    with pytest.raises(openai.BadRequestError) as too_many:
        chat(app, n=3)
    assert too_many.value.param == "n"


def test_a_prompt_far_above_the_context_is_refused_without_being_encoded() -> None:
    class Costly(BytesText):
        def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
            raise AssertionError("encoded")

        def encode_text(self, text: str) -> list[int]:
            raise AssertionError("encoded")

    with pytest.raises(openai.BadRequestError, match="900 characters") as refused:
        chat(api(text=Costly()), messages=[{"role": "user", "content": "x" * 900}])
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")
    body = {"model": "echo", "prompt": "x" * 900}
    assert send(api(text=Costly()), "POST", "/v1/completions", json=body).json()["error"]["param"] == "prompt"


# ---- slow clients


class Hasty(TimedProtocol):
    header_timeout_s = 0.2


def closed_after_s(url: str, *parts: bytes, every_s: float = 0.1, most_s: float = 3) -> tuple[float, bytes]:
    """Seconds until the server closes a socket that sends the parts, then the last one again and again; what it answered."""
    host, port = url.removeprefix("http://").split(":")
    start, answer, sent = time.monotonic(), b"", list(parts)
    with socket.create_connection((host, int(port))) as slow:
        slow.settimeout(every_s)
        while time.monotonic() - start < most_s:
            try:
                slow.sendall(sent[0])
                sent = sent[1:] or sent
                if not (data := slow.recv(65536)):
                    break
                answer += data
            except TimeoutError:
                continue
            except OSError:
                break
    return time.monotonic() - start, answer


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer unit-test-key\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (b"GET /", b"a"),
        (b"GET / HTTP/1.1\r\n", b"a: b\r\n"),
        (b"\r\n",),
        (b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n", b"\r\n"),
    ],
    ids=["silence", "path", "headers", "blank lines", "blank lines after an answer"],
)
def test_slow_headers_are_cut_off(parts: tuple[bytes, ...]) -> None:
    with on_port(api(), http=Hasty) as url:
        seconds, answer = closed_after_s(url, *parts)
        assert 0.15 < seconds < 1.5 and (b"200 OK" in answer) == (b"live" in parts[0])


def test_a_client_that_is_not_slow_keeps_its_connection() -> None:
    app = api(EchoEngine(delay_s=0.06))
    with on_port(app, http=Hasty) as url, httpx.Client(base_url=url, headers=MINE) as http:
        for _ in range(2):
            answer = http.post("/v1/chat/completions", json={"model": "echo", "messages": HELLO})
            assert answer.status_code == 200 and answer.elapsed.total_seconds() > 0.25, "longer than the deadline of a header"
            time.sleep(0.25)
        (connection,) = http._transport._pool.connections  # type: ignore[attr-defined]
        assert "Request Count: 2" in connection.info()


@pytest.mark.parametrize("framing", [b"content-length: 1000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n"])
def test_slow_bodies_get_408_and_are_cut_off(framing: bytes) -> None:
    with on_port(api(body_timeout_s=0.3)) as url:
        seconds, answer = closed_after_s(url, HEAD + framing, b"1\r\n \r\n")
        assert 0.25 < seconds < 1.5 and answer.startswith(b"HTTP/1.1 408") and b'"timeout_error"' in answer


@pytest.mark.parametrize("key", [b"unit-test-key", b"wrong"])
def test_an_endless_body_is_cut_off(key: bytes) -> None:
    with on_port(api(body_timeout_s=3)) as url:
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        head = HEAD.replace(b"unit-test-key", key) + b"transfer-encoding: chunked\r\n\r\n"
        seconds, answer = closed_after_s(url, head, chunk, every_s=0.01)
        assert seconds < 2 and answer[:12] == (b"HTTP/1.1 413" if key != b"wrong" else b"HTTP/1.1 401")


def test_ray_s_proxies_get_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn
    from uvicorn.config import HTTP_PROTOCOLS

    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    assert [middleware.cls for middleware in proxy_middlewares()] == [JsonErrors, Unsteered]
    config = uvicorn.Config(lambda: None, factory=True, log_config=None)  # as Ray builds it
    config.load()
    assert config.http_protocol_class is TimedProtocol


def test_the_local_head_and_the_cluster_tell_ray_s_proxies() -> None:
    from medschool.cluster import ray_head

    name, where = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", f"{proxy_middlewares.__module__}:{proxy_middlewares.__name__}"
    assert f'"{name}": "{where}"' in Path(ray_head.__file__).read_text()
    assert f"--env={name}={where} " in (Path(__file__).parents[2] / "cluster.yaml").read_text()


def test_what_a_proxy_refuses_is_in_openai_s_form_and_tells_nothing() -> None:
    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        """As Ray's proxy answers: plain text, in two parts."""
        status = int(scope["path"].strip("/"))
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"retry-after", b"7"), (b"content-length", b"9")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"Trace", "more_body": True})
        await send({"type": "http.response.body", "body": b"back"})

    app = JsonErrors(proxy)
    for status, kind in ((404, "not_found_error"), (429, "rate_limit_error"), (500, "server_error"), (503, "server_error")):
        answer = send(app, "GET", f"/{status}")
        assert (answer.status_code, answer.json()["error"]["type"], answer.headers["retry-after"]) == (status, kind, "7")
        assert "Trace" not in answer.text and answer.headers.get_list("content-type") == ["application/json"]
    assert send(app, "GET", "/200").text == "Traceback"
    assert send(JsonErrors(api()), "GET", "/nowhere").json()["error"]["message"] == "Not Found"


# ---- deadlines of answers


def test_an_answer_that_takes_too_long_is_a_408_that_is_not_tried_again() -> None:
    engine = CountingEngine(delay_s=0.1)
    app = api(engine, answer_timeout_s=0.25, places=1)
    with pytest.raises(openai.APIStatusError) as late:
        chat(app)
    assert (late.value.status_code, late.value.code, late.value.response.headers["x-should-retry"]) == (408, "timeout", "false")
    assert engine.running == 0 and chat(app, max_tokens=1).choices[0].message.content == "h"


def test_a_stream_that_takes_too_long_ends_with_an_error_event() -> None:
    engine = CountingEngine(delay_s=0.1)
    app = api(engine, answer_timeout_s=0.25)
    with pytest.raises(openai.APIError, match="too long"):
        stream(app)
    assert engine.running == 0


def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "GRACE_S", 0.1)
    engine = CountingEngine()
    app = api(engine, answer_timeout_s=0.1, places=1)
    body = json.dumps({"model": "echo", "messages": HELLO, "stream": True}).encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [(b"authorization", f"Bearer {KEY}".encode())],
    }
    scope |= {
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
        "server": ("x", 80),
        "client": ("x", 1),
        "root_path": "",
    }

    async def deaf() -> float:
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        start = time.monotonic()

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.Event().wait()

        async def never(message: Any) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        await app(scope, receive, never)
        return time.monotonic() - start

    assert 0.15 < asyncio.run(asyncio.wait_for(deaf(), 3)) < 2
    assert engine.running == 0 and chat(app, max_tokens=1)


# ---- what is written down


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.rglob("*.jsonl")) for line in path.read_text().splitlines()]


def test_the_audit_log_says_who_when_and_how_much_but_not_what(tmp_path: Path) -> None:
    log = AuditLog(str(tmp_path), flush_s=3600)
    app = api(audit=log)
    secret_words = [{"role": "user", "content": "patient Zebra-77"}]
    chat(app, messages=secret_words, max_tokens=3, n=2)
    stream(app, messages=HELLO)
    ask(app, lambda client: client.completions.create(model="echo", prompt=["ab", "c"], max_tokens=4))
    send(app, "POST", "/v1/chat/completions", headers={}, json={"model": "echo", "messages": secret_words})
    log.close()
    first, second, third = records(tmp_path)
    assert (first["key"], first["version"], first["path"], first["outcome"]) == ("unit", "v-abc", "/v1/chat/completions", "done")
    assert (first["prompt_tokens"], first["answers"], first["answer_tokens"]) == (16, 2, 6)
    assert first["prompt_sha256"] == prompt_hash(secret_words) and first["request_id"].startswith("req_")
    assert second["prompt_sha256"] == prompt_hash(HELLO) and second["answer_tokens"] == 5
    assert (third["prompt_tokens"], third["prompt_sha256"]) == (3, prompt_hash(["ab", "c"]))
    text = "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))
    assert "Zebra" not in text and KEY not in text


def test_an_answer_that_was_left_or_failed_is_on_record(tmp_path: Path) -> None:
    log = AuditLog(str(tmp_path), flush_s=3600)
    with on_port(api(EchoEngine(delay_s=0.05), audit=log)) as url, httpx.Client(base_url=url, headers=MINE) as http:
        body = {"model": "echo", "messages": [{"role": "user", "content": "x" * 150}], "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            next(response.iter_lines())
        wait_until(lambda: len(log._waiting) == 1)
    with pytest.raises(openai.APIError):
        chat(api(EchoEngine(delay_s=0.1), audit=log, answer_timeout_s=0.05))
    log.close()
    assert [record["outcome"] for record in records(tmp_path)] == ["left", "timeout"]


def test_the_audit_log_appends_and_waits_for_a_store_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(str(tmp_path), flush_s=3600)
    log.append(number=1)
    assert log.flush()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    put = audit.storage.put_if_absent
    monkeypatch.setattr(audit.storage, "put_if_absent", lambda *_: (_ for _ in ()).throw(OSError("away")))
    monkeypatch.setattr(audit, "MAX_WAITING", 2)
    log.append(number=2)
    assert not log.flush() and not log.full
    log.append(number=3)
    assert log.full
    with pytest.raises(openai.InternalServerError) as refused:
        chat(api(audit=log))
    assert (refused.value.status_code, refused.value.code) == (503, "audit_unavailable")
    monkeypatch.setattr(audit.storage, "put_if_absent", put)
    log.close()
    assert [record["number"] for record in records(tmp_path)] == [1, 2, 3]
    assert all(path.read_bytes() == content for path, content in before.items())


def test_metrics_count_and_name_nothing_that_a_client_sent() -> None:
    app = api()
    chat(app, max_tokens=3)
    send(app, "GET", "/planted-path")
    send(app, "GET", "/v1/models", headers={})
    text = send(app, "GET", "/metrics").text
    assert 'medschool_serve_requests_total{path="/v1/chat/completions",status="200"} 1.0' in text
    assert 'medschool_serve_requests_total{path="/v1/models",status="401"} 1.0' in text
    assert 'medschool_serve_tokens_total{kind="answer"} 3.0' in text and 'kind="prompt"} 5.0' in text
    assert "medschool_serve_first_token_seconds_count 1.0" in text and "medschool_serve_answers_in_flight 0.0" in text
    assert "planted" not in text and "hello" not in text
