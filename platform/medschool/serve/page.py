"""The chat page: four static files of this package that the API itself serves. No build step, no other host.

    GET /    index.html            GET /page/chat.js, /page/chat.css, /page/icon.svg

They need no key, as the only routes beside liveness, because a browser can send a key only once it has the page that asks for
it; they are the same for everybody and hold nothing of model or data. The page keeps the key in the tab's sessionStorage and is
then a client of the API like any other: it lists the models and streams one answer from each that is chosen, side by side, or
blind, for a vote (`votes`).

The browser is told to let the page do no more than that. `script-src 'self'` runs no inline script, `connect-src 'self'` talks
to this server alone, and with Trusted Types no string can become markup, so the text of a model stays text even where the
page's own code has a defect; a browser that does not know Trusted Types passes over that rule alone. (Sources: W3C, Content
Security Policy Level 3, Trusted Types and Referrer Policy.)

Price: the files are held in memory. Conversations live in the tab; a reload forgets them.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import Response

FOLDER = Path(__file__).with_name("static")
FILES = {
    "/": ("index.html", "text/html"),
    "/page/chat.js": ("chat.js", "text/javascript"),
    "/page/chat.css": ("chat.css", "text/css"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path of each file: its name in FOLDER, and its media type."""
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
HEADERS = {
    "content-security-policy": "; ".join(f"{directive} {value}" for directive, value in POLICY.items()),
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def add_page(api: FastAPI) -> None:
    """Routes of the page's files."""
    for path, (name, media_type) in FILES.items():
        api.get(path, response_model=None)(_file((FOLDER / name).read_bytes(), media_type))


def _file(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return answer
