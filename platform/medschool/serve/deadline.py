"""Slow and endless headers are cut off in the HTTP server, where an application cannot see them yet.

uvicorn, and with it Ray Serve's proxy, waits for the end of a request's header for as long as the client likes: its keep-alive
timer stops at the first byte. A few hundred sockets that send a byte now and then ("slow-loris") would sit there for ever.
`TimedProtocol` gives a header HEADER_TIMEOUT_S: from the connection, or from the first byte after the last answer. The body has
its own deadline in the gate, where a client gets an answer that says so; nothing is answered to half a header.

uvicorn's fast parser does not bound a header either, so one connection without a key could fill the memory (as it could in vLLM,
advisory GHSA-rxc4-3w6r-4v47). Here a header above MAX_HEADER_BYTES is refused, and what is no HTTP is refused in the form that
OpenAI's clients read.

    uvicorn:    Config(app, http=TimedProtocol)
    Ray Serve:  see `proxy`

Not covered: a slow TLS handshake, which asyncio ends after 60 s, and the number of connections, which the system's limit of open
files bounds.
"""

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from medschool.serve.faults import ApiError

HEADER_TIMEOUT_S = 10.0
MAX_HEADER_BYTES = 2**16
"""Of all fields together; one read of the socket more, at most, while they come."""


class TimedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, with a deadline and a bound for headers."""

    header_timeout_s = HEADER_TIMEOUT_S
    _due: asyncio.TimerHandle | None = None
    _header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_header()

    def data_received(self, data: bytes) -> None:
        if self._due is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_header()
        super().data_received(data)
        self._header_bytes = self._header_bytes + len(data) if self._due is not None else 0
        if self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(f"the header is above {MAX_HEADER_BYTES} bytes")

    def on_headers_complete(self) -> None:
        self._header_came()
        if sum(len(name) + len(value) for name, value in self.headers) > MAX_HEADER_BYTES:
            raise ValueError(f"the header is above {MAX_HEADER_BYTES} bytes")  # the parser then calls `send_400_response`
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._header_came()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse in OpenAI's form and close, as uvicorn does in plain text."""
        body = json.dumps(ApiError(400, msg).body).encode()
        fields = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        self.transport.write(f"HTTP/1.1 400 Bad Request\r\n{fields}\r\n".encode() + body)
        self.transport.close()

    def _expect_header(self) -> None:
        self._due = self.loop.call_later(self.header_timeout_s, self.transport.abort)

    def _header_came(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
