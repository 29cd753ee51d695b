"""The connection to S3, and the patience with it: every request that is asked again is asked again here.

A store that is slow, busy, silent or away is asked again, with growing random waits, for PATIENCE_S; then comes a StorageError.
A store that refuses, or that has no such key, is not asked twice. An answer that is shorter than its Content-Range says is a
failed answer too. All retries are made by `guard`: those of botocore and s3fs, three layers that multiply, are off.
"""

import functools
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import fsspec
from aiobotocore.session import AioSession
from aiohttp import ClientError as HttpError
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from medschool.errors import StorageError

T = TypeVar("T")

CHUNK_BYTES = 8 * 2**20
"""What one request of a long read asks for."""
PATIENCE_S = 120.0
"""How long a store that fails is asked again: outages of a minute are survived."""
_asked_s: ContextVar[float | None] = ContextVar("asked_s", default=None)
LONGEST_WAIT_S = 8.0
READ_TIMEOUT_S = 20.0
"""Silence on a connection after which it is given up."""
NO_ANSWER = (HTTPClientError, BotoConnectionError, IncompleteReadError, HttpError, ConnectionError, TimeoutError)
BUSY = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "500", "502", "503", "504"}
log = logging.getLogger(__name__)


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def filesystem(uri: str) -> fsspec.AbstractFileSystem:
    """The fsspec file system of `uri`; S3 listings are never cached, because other processes write too."""
    return _s3(os.environ.get("AWS_ENDPOINT_URL", ""), os.getpid()) if is_s3(uri) else fsspec.filesystem("file")


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Ask a failing store no longer than this, in place of PATIENCE_S: for questions that a person waits for."""
    before = _asked_s.set(seconds)
    try:
        yield
    finally:
        _asked_s.reset(before)


@functools.cache
def _s3(endpoint_url: str, pid: int) -> fsspec.AbstractFileSystem:
    session = AioSession()
    session.register("after-call.s3.GetObject", _check_length)
    settings = {"retries": {"total_max_attempts": 1}, "connect_timeout": 5, "read_timeout": READ_TIMEOUT_S}
    fs = fsspec.filesystem(
        "s3",
        session=session,
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs=settings,
        default_block_size=CHUNK_BYTES,
    )
    fs.retries = 1
    return fs


def _check_length(parsed: dict[str, Any], **_: Any) -> None:
    """Refuse an answer whose Content-Length is not that of its Content-Range: a body cut short on its way looks whole."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/.*", parsed.get("ContentRange", ""))
    if found and int(found[2]) + 1 - int(found[1]) != parsed["ContentLength"]:
        expected = int(found[2]) + 1 - int(found[1])
        raise IncompleteReadError(actual_bytes=parsed["ContentLength"], expected_bytes=expected)


def guard(call: Callable[..., T]) -> Callable[..., T]:
    """Ask again where botocore, s3fs and aiohttp say in `call(uri, ...)` that the store failed; then StorageError with a remedy.

    The whole call is repeated, so it must be one that may be: all verbs here are. A missing key stays FileNotFoundError.
    """

    @functools.wraps(call)
    def guarded(uri: str, *args: Any, **kwargs: Any) -> T:
        return patiently(lambda: call(uri, *args, **kwargs), uri)

    return guarded


def patiently(call: Callable[[], T], uri: str) -> T:
    waits = _waits()
    while True:
        try:
            return call()
        except FileNotFoundError:
            raise
        except (ClientError, BotoCoreError, HttpError, ResponseParserError, OSError) as error:
            if not is_s3(uri):
                raise
            wait_s = next(waits, None) if _may_pass(error) else None
            if wait_s is None:
                raise _explain(error, uri) from error
            log.log(logging.WARNING if wait_s > 1 else logging.DEBUG, "%s: %s; asked again in %.1f s", uri, error, wait_s)
        time.sleep(wait_s)


def _waits() -> Iterator[float]:
    """Seconds to wait before each further try: random, so that many workers do not come back at once, up to twice as long each
    time, until the patience is at its end."""
    limit, longest = time.monotonic() + (_asked_s.get() or PATIENCE_S), 0.2
    while (left := limit - time.monotonic()) > 0:
        yield min(left, random.uniform(longest / 2, longest))
        longest = min(2 * longest, LONGEST_WAIT_S)


def _may_pass(error: Exception) -> bool:
    """Whether the store failed, rather than refused."""
    return isinstance(error, (*NO_ANSWER, ResponseParserError)) or error_code(error) in BUSY


def error_code(error: BaseException) -> str:
    """The S3 error code of `error` or of what caused it, else ''."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ClientError):
            return str(seen.response.get("Error", {}).get("Code", ""))
        seen = seen.__cause__
    return ""


def _explain(error: Exception, uri: str) -> StorageError:
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "the default S3 endpoint")
    code = error_code(error)
    if code in {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403", "Forbidden", "ExpiredToken"} or isinstance(
        error, PermissionError
    ):
        return StorageError(
            f"{endpoint} refuses these credentials ({code or error})",
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or unset them to use the ones of `medschool up`",
            uri,
        )
    if type(error).__name__ == "NoCredentialsError":
        return StorageError(
            "no S3 credentials found", "run `medschool up`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", uri
        )
    if isinstance(error, NO_ANSWER):
        return StorageError(
            f"{endpoint} does not answer ({error})", "run `medschool doctor`; start the store with `medschool up`", uri
        )
    return StorageError(f"the store answered {code or type(error).__name__}: {error}", "run `medschool doctor`", uri)
