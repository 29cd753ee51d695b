"""Requests as an attacker or a broken client sends them: right paths, wrong contents, and HTTP that is none."""

import json
from typing import Any

from hypothesis import strategies as st

CHAT, PLAIN, TOKENIZE, DETOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"
VALID: dict[str, dict[str, Any]] = {
    CHAT: {"model": "echo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0},
    PLAIN: {"model": "echo", "prompt": ["hello", "you"], "max_tokens": 4, "echo": True, "logprobs": 2},
    TOKENIZE: {"prompt": "hello"},
    DETOKENIZE: {"tokens": [104, 105]},
}
"""A request that is answered, for each route that takes a body."""
NAMES = [
    "model", "messages", "prompt", "tokens", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "best_of", "stop",
    "stream", "stream_options", "seed", "logit_bias", "logprobs", "top_logprobs", "echo", "suffix", "presence_penalty",
    "frequency_penalty", "response_format", "tools", "tool_choice", "functions", "user", "metadata", "role", "content",
]  # fmt: skip
ODD = st.sampled_from(
    [None, True, False, 0, -1, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ", "\x00",
     "\ud800", "\U0001f9e0", "echo", "hello", "../../etc/passwd", "{{7*7}}", "<|im_end|>", "x" * 300, [], {}, [[]], [None], {"": None}]
)  # fmt: skip
VALUES = st.recursive(
    ODD | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*NAMES, "type", "text", "1"]), inner, max_size=4)
    ),
    max_leaves=8,
)
Request = tuple[str, bytes]


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A path and a body: a valid one with parameters replaced, added and left out, and its bytes cut, changed or doubled."""
    path = draw(st.sampled_from([*VALID]))
    body = VALID[path] | draw(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
    for name in draw(st.lists(st.sampled_from([*body]), max_size=1)):
        del body[name]
    raw = bytearray(json.dumps(body).encode())
    at = draw(st.integers(0, len(raw)))
    damage = draw(st.sampled_from(["none", "none", "none", "cut", "byte", "bytes", "twice"]))
    if damage == "cut":
        del raw[at:]
    elif damage == "byte":
        raw[at : at + 1] = bytes([draw(st.integers(0, 255))])
    elif damage == "bytes":
        raw[at:at] = draw(st.binary(max_size=8))
    elif damage == "twice":
        raw = raw + raw
    return path, bytes(raw)


KEYED = b"authorization: Bearer %s\r\n"
NOT_HTTP = {
    "a length that is no number": b"POST /tokenize HTTP/1.1\r\nhost: x\r\n%scontent-length: many\r\n\r\n{}",
    "a negative length": b"POST /tokenize HTTP/1.1\r\nhost: x\r\n%scontent-length: -2\r\n\r\n{}",
    "two lengths": b"POST /tokenize HTTP/1.1\r\nhost: x\r\n%scontent-length: 2\r\ncontent-length: 40\r\n\r\n{}",
    "a length and chunks": b"POST /tokenize HTTP/1.1\r\nhost: x\r\n%scontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks by another name": b"POST /tokenize HTTP/1.1\r\nhost: x\r\n%stransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a chunk without a size": b"POST /tokenize HTTP/1.1\r\nhost: x\r\n%stransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a chunk of 2**64 bytes": b"POST /tokenize HTTP/1.1\r\nhost: x\r\n%stransfer-encoding: chunked\r\n\r\nffffffffffffffff1\r\n",
    "a header without a colon": b"GET /v1/models HTTP/1.1\r\nhost: x\r\n%snonsense\r\n\r\n",
    "a zero byte in a header": b"GET /v1/models HTTP/1.1\r\nhost: x\r\n%sx-a: \x00\r\n\r\n",
    "a header of 200 KB": b"GET /v1/models HTTP/1.1\r\nhost: x\r\n%sx-a: " + b"a" * 200_000 + b"\r\n\r\n",
    "20,000 headers": b"GET /v1/models HTTP/1.1\r\nhost: x\r\n%s" + b"x-a: b\r\n" * 20_000 + b"\r\n",
    "a path of raw bytes": b"GET /v1/models/\xff\xfe HTTP/1.1\r\nhost: x\r\n%s\r\n",
    "a path of escaped raw bytes": b"GET /v1/models/%%ff%%fe%%00 HTTP/1.1\r\nhost: x\r\n%s\r\n",
    "a path upwards": b"GET /v1/models/../../../etc/passwd HTTP/1.1\r\nhost: x\r\n%s\r\n",
    "an escaped path upwards": b"GET /v1/models/..%%2f..%%2f..%%2fetc%%2fpasswd HTTP/1.1\r\nhost: x\r\n%s\r\n",
    "somebody else's address": b"GET http://169.254.169.254/latest/meta-data HTTP/1.1\r\nhost: x\r\n%s\r\n",
    "no address": b"OPTIONS * HTTP/1.1\r\nhost: x\r\n%s\r\n",
    "a tunnel": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: x\r\n%s\r\n",
    "a web socket": b"GET /v1/models HTTP/1.1\r\nhost: x\r\n%supgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    "an unknown method": b"BREW /v1/models HTTP/1.1\r\nhost: x\r\n%s\r\n",
    "version 9": b"GET /v1/models HTTP/9.9\r\nhost: x\r\n%s\r\n",
    "HTTP/2 without having agreed on it": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n%s",
    "a TLS greeting": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03%s\r\n\r\n",
    "zeros": b"\x00" * 2000 + b"%s\r\n\r\n",
    "a packed body": b"POST /tokenize HTTP/1.1\r\nhost: x\r\n%scontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\x08\x00",
}
"""Bytes with a place for headers. None of them may be answered as a good request, nor be read as two."""


def raw(name: str, key: str) -> bytes:
    """One of NOT_HTTP with a key in it."""
    return NOT_HTTP[name] % (KEYED % key.encode())
