"""Slow clients are cut off in the HTTP server, where an application cannot see them yet.

uvicorn, and with it Ray Serve's proxy, waits for the end of a request's header for as long as the client likes: its keep-alive
timer stops at the first byte. A few hundred sockets that send a byte now and then ("slow-loris") would sit there for ever.
`TimedProtocol` gives a header HEADER_TIMEOUT_S: from the connection, or from the first byte after the last answer. The body has
its own deadline in the gate, where a client gets an answer that says so; nothing is answered to half a header.

    uvicorn:    Config(app, http=TimedProtocol)
    Ray Serve:  see `proxy`

Not covered: a slow TLS handshake, which asyncio ends after 60 s, and the number of connections, which the system's limit of open
files bounds.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_TIMEOUT_S = 10.0


class TimedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, with a deadline for headers."""

    header_timeout_s = HEADER_TIMEOUT_S
    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_header()

    def data_received(self, data: bytes) -> None:
        if self._due is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_header()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._header_came()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._header_came()
        super().connection_lost(exc)

    def _expect_header(self) -> None:
        self._due = self.loop.call_later(self.header_timeout_s, self.transport.abort)

    def _header_came(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
