"""One file over HTTP: asked again while that may help, gone on with where it broke off, whole under its name or not at all.

    GET url                       <- 200, ETag "x"; the connection breaks after 3 of 7 MB
    GET url, Range: bytes=3M-,
             If-Range: "x"        <- 206: the rest        or 200: the file has changed, and starts again

A break, a timeout, 408, 429 and 5xx are waited out (WAITS_S, or what Retry-After says); any other status, a web page in place of
data, another size or another sha256 is an error at once. Where the sha256 is not known beforehand, the size and the ETag are all
that speaks for the file. A download that was killed starts anew.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from medschool import storage
from medschool.errors import InputError
from medschool.instructions.endpoint import retry_after_s
from medschool.releases.sets import Download

WAITS_S = (1.0, 4.0, 15.0, 60.0)
CONNECT_TRIES = 3
"""A host that no connection can be made to is given up earlier: most often there is no network."""
LONGEST_WAIT_S = 120.0
TIMEOUT_S = 30.0
"""Silence after which a connection is given up."""
MAY_PASS = {408, 429, 500, 502, 503, 504}

Watch = Callable[[int, int | None], None]
"""(bytes so far, all bytes or None where the host does not say), called for each chunk."""


@dataclass
class _Part:
    """The file in the making."""

    path: Path
    tag: str = ""
    """ETag of what is in it; empty where the host gave none that identifies bytes, so that it cannot be gone on with."""


class _MayPassError(Exception):
    """A fault that may be gone the next time; `wait_s` is what the host asks for."""

    def __init__(self, says: str, wait_s: float | None = None) -> None:
        super().__init__(says)
        self.wait_s = wait_s


def download(
    what: Download, target: Path, watch: Watch, say: Callable[[str], None], remedy: str, waits_s: Sequence[float] = WAITS_S
) -> None:
    """Bring a file to `target`. say: is told of each wait. remedy: what the user can do where the file cannot be had.

    Raises InputError, naming the address and the sha256, where the host is out of reach, refuses, or has another file.
    """
    part = _Part(target.with_name(f"{target.name}.part"))
    part.path.unlink(missing_ok=True)
    waits, unconnected = iter(waits_s), 0
    with httpx.Client(follow_redirects=True, timeout=TIMEOUT_S) as client:
        while True:
            try:
                _stream(client, what, part, watch, remedy)
                break
            except (_MayPassError, httpx.TransportError) as error:
                wait_s = next(waits, None)
                unconnected += isinstance(error, httpx.ConnectError)
                if wait_s is None or unconnected == CONNECT_TRIES:
                    part.path.unlink(missing_ok=True)
                    raise _refused(what, f"cannot be reached ({_words(error)})", remedy) from error
                asked_s = (error.wait_s or 0.0) if isinstance(error, _MayPassError) else 0.0
                wait_s = min(max(wait_s, asked_s), LONGEST_WAIT_S)
                say(f"{what.file}: {_words(error)}; asked again in {wait_s:.0f} s")
                time.sleep(wait_s)
    _verify(what, part.path, remedy)
    os.replace(part.path, target)


def _stream(client: httpx.Client, what: Download, part: _Part, watch: Watch, remedy: str) -> None:
    """One request: the file, or the rest of it. Raises _MayPassError, httpx.TransportError, InputError."""
    have = part.path.stat().st_size if part.tag and part.path.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-", "If-Range": part.tag} if have else {})
    with client.stream("GET", what.url, headers=headers) as answer:
        _check_answer(answer, what, remedy)
        if answer.status_code != httpx.codes.PARTIAL_CONTENT:
            have, tag = 0, answer.headers.get("etag", "")
            part.tag = "" if tag.startswith("W/") else tag
        length = answer.headers.get("content-length")
        total = have + int(length) if length else what.size_bytes
        with part.path.open("ab" if have else "wb") as file:
            for chunk in answer.iter_raw():
                file.write(chunk)
                have += len(chunk)
                watch(have, total)


def _check_answer(answer: httpx.Response, what: Download, remedy: str) -> None:
    status = f"{answer.status_code} {answer.reason_phrase}".strip()
    if answer.status_code in MAY_PASS:
        raise _MayPassError(status, retry_after_s(answer.headers))
    if answer.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        raise _refused(what, f"is refused ({status})", remedy)
    if answer.headers.get("content-type", "").startswith("text/html"):
        raise _refused(what, "answers with a web page: a login, a question to a person, or a proxy", remedy)


def _verify(what: Download, path: Path, remedy: str) -> None:
    """Raises InputError, and removes the file, where it has another size or digest than the release."""
    size, found = path.stat().st_size, storage.sha256_file(path)
    problem = ""
    if what.sha256 is not None and found != what.sha256:
        problem = f"has sha256 {found} and {size:,} bytes"
    elif what.size_bytes is not None and size != what.size_bytes:
        problem = f"has {size:,} bytes, the release has {what.size_bytes:,}"
    if problem:
        path.unlink()
        raise _refused(what, problem, remedy)


def _refused(what: Download, problem: str, remedy: str) -> InputError:
    pinned = f"expected sha256 {what.sha256}" if what.sha256 else "no sha256 is published"
    return InputError(f"{problem}; {pinned}", remedy, what.url)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if isinstance(error, httpx.TransportError) else str(error)
