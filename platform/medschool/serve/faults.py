"""Answers other than 200, in the form that OpenAI's clients read.

    {"error": {"message": ..., "type": ..., "param": the parameter at fault or null, "code": ... or null}}

The clients raise a typed error by the status, and try 408, 409, 429 and 5xx again unless `x-should-retry: false` comes with it.
Source: OpenAI's API reference ("Error codes") and the retry rules of openai-python (`_base_client.py`, `_should_retry`).
"""

import math

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

Body = dict[str, dict[str, str | None]]
KINDS = {401: "authentication_error", 404: "not_found_error", 408: "timeout_error", 429: "rate_limit_error"}


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> Body:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ApiError(Exception):
    """A request that gets no answer.

    retry_after_s: when it may be sent again; a 429 without it may come back after one second. final: trying again is of no use.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float = 1,
        final: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.status, self.body, self.headers = status, error_body(message, kind, param, code), dict(headers or {})
        if status == 429:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
        if final:
            self.headers["x-should-retry"] = "false"


def answer_errors(api: Starlette) -> None:
    """Every error that `api` raises becomes an answer in this form."""
    api.add_exception_handler(ApiError, _api_error)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(Exception, _fault)


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    return JSONResponse(error_body(error.detail, "invalid_request_error"), error.status_code, error.headers)


async def _fault(_: Request, error: Exception) -> JSONResponse:
    """A defect of ours; the server logs its traceback."""
    return JSONResponse(error_body("internal error", "server_error", code=type(error).__name__), 500)
