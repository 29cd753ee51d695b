"""An S3 store that misbehaves on request: a proxy of its own process in front of a real one.

    client --HTTP--> FaultyStore (latency, bandwidth, 503, resets, hangs, outages, cut bodies) --HTTP--> SeaweedFS

The signature of an S3 request covers the Host header, and the proxy passes it on untouched; so requests signed for the proxy's
address are valid behind it, and what a client meets is the real store with faults in between. Faults are set and counted over
HTTP at `/-/faults`, so that any process can ask: a test that saw no fault fire has proved nothing.

Used by the fault tests and by bench/stream.py. Bodies pass through in pieces of 256 KiB; nothing is kept.
"""

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

PIECE = 2**18
CONTROL = "/-/faults"


@dataclass(frozen=True)
class Faults:
    """What goes wrong. Shares are of requests that `only` matches, drawn from `seed`."""

    only: str = ""
    """Regular expression searched in `METHOD /path`; empty matches everything."""
    latency_s: float = 0.0
    """Added to every request, matched or not."""
    bytes_per_s: float = 0.0
    """Bandwidth of all answers together; 0 is no limit."""
    slow_share: float = 0.0
    slow_s: float = 2.0
    """Added to a share of requests."""
    slow_down_share: float = 0.0
    """Answered 503 SlowDown; the request never reaches the store."""
    reset_share: float = 0.0
    """Connection reset: half of them before the request reaches the store, half in the middle of the answer."""
    lost_share: float = 0.0
    """The store has done the request, the answer is lost in a reset."""
    hang_share: float = 0.0
    """No answer, for as long as the client waits."""
    cut_share: float = 0.0
    """Bodies that end in the middle, with the connection closed and Content-Length as it was."""
    lie_share: float = 0.0
    """Bodies that end in the middle, with a Content-Length that fits what is left."""
    most: int = 10**9
    """Faults of the shares above end after so many."""
    down_from_s: float = 0.0
    down_s: float = 0.0
    """Outage: connections are reset from `down_from_s` after these faults were set, for `down_s`."""
    seed: int = 0


@dataclass(frozen=True)
class FaultyStore:
    """A running proxy."""

    url: str
    process: subprocess.Popen[bytes]

    def set(self, faults: Faults) -> None:
        """From now on these faults; counters start at zero."""
        request = urllib.request.Request(self.url + CONTROL, json.dumps(asdict(faults)).encode(), method="PUT")
        urllib.request.urlopen(request, timeout=10).close()

    def counts(self) -> Counter[str]:
        """How often each thing happened since `set`: `requests`, `bytes` of answers, and each fault by name."""
        with urllib.request.urlopen(self.url + CONTROL, timeout=10) as answer:
            return Counter(json.load(answer))


@contextmanager
def faulty_store(upstream_url: str) -> Iterator[FaultyStore]:
    """A proxy in front of the store at `upstream_url` (http://host:port); without faults until `set` is called."""
    command = [sys.executable, __file__, upstream_url.removeprefix("http://")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield FaultyStore(f"http://127.0.0.1:{int(process.stdout.readline())}", process)
    finally:
        process.kill()
        process.wait()


@contextmanager
def seaweed(home: Path) -> Iterator[dict[str, str]]:
    """A SeaweedFS of its own in `home`, started as `medschool up` starts it; yields the variables that name it."""
    from medschool.cluster.own_store import own_store

    with own_store(home) as store:
        yield store.variables


class _Proxy:
    """The process behind FaultyStore."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = host, port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._free_at = 0.0  # when the line is free again, for the bandwidth limit
        self.set(Faults())

    def set(self, faults: Faults) -> None:
        self.faults, self.counts, self._since = faults, Counter[str](), time.monotonic()
        self._draw, self._only = random.Random(faults.seed), re.compile(faults.only)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client connection: requests one after the other until either side has enough."""
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while await self._answer(reader, writer):
                pass
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        method, path = head.split(b" ", 2)[:2]
        if path == CONTROL.encode():
            return await self._control(head, reader, writer)
        fault = self._next_fault(f"{method.decode()} {path.decode()}")
        self.counts["requests"] += 1
        if fault:
            self.counts[fault] += 1
        await asyncio.sleep(self.faults.latency_s + (self.faults.slow_s if fault == "slow" else 0))
        if fault in {"down", "reset before"}:
            writer.transport.abort()
            return False
        if fault == "hang":
            await reader.read()  # until the client gives up
            return False
        if fault == "slow_down":
            return await _slow_down(head, reader, writer)
        return await self._pass(head, method, reader, writer, fault)

    def _next_fault(self, request: str) -> str:
        """The name of what goes wrong with this request, or ''."""
        faults, age = self.faults, time.monotonic() - self._since
        if faults.down_from_s <= age < faults.down_from_s + faults.down_s:
            return "down"
        if not self._only.search(request):
            return ""
        draw, fired = (
            self._draw.random(),
            self.counts.total() - self.counts["requests"] - self.counts["bytes"] - self.counts["down"],
        )
        if fired >= faults.most:
            return ""
        shares = {
            "slow": faults.slow_share, "slow_down": faults.slow_down_share, "reset before": faults.reset_share / 2,
            "reset within": faults.reset_share / 2, "lost": faults.lost_share, "hang": faults.hang_share,
            "cut": faults.cut_share, "lie": faults.lie_share,
        }  # fmt: skip
        for name, share in shares.items():
            if draw < share:
                return name
            draw -= share
        return ""

    async def _control(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        body = await reader.readexactly(_length(head))
        if head.startswith(b"PUT"):
            self.set(Faults(**json.loads(body)))
        answer = json.dumps(self.counts).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        return False

    async def _pass(
        self, head: bytes, method: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: str
    ) -> bool:
        up_reader, up_writer = await self._connection()
        try:
            continued = b"\r\nexpect:" in head.lower()
            if continued:  # answered here, so that the two sides need not take turns
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            up_writer.write(re.sub(rb"(?i)\r\nexpect:[^\r]*", b"", head))
            await _copy(reader, up_writer, _length(head))
            answer = await up_reader.readuntil(b"\r\n\r\n")
            if fault == "lost":
                raise _Reset
            length = 0 if method == b"HEAD" or answer.split(b" ", 2)[1] in {b"204", b"304"} else _length(answer)
            keep = length // 2 if fault in {"reset within", "cut", "lie"} else length
            if fault == "lie":
                answer = re.sub(rb"(?i)(\r\ncontent-length: *)\d+", rb"\g<1>%d" % keep, answer)
            writer.write(answer)
            await self._body(
                up_reader, writer, keep, chunked=b"\r\ntransfer-encoding: chunked" in answer.lower() and method != b"HEAD"
            )
        except BaseException as error:
            up_writer.close()
            if isinstance(error, _Reset):
                writer.transport.abort()
                return False
            raise
        if keep < length:
            up_writer.close()
            if fault == "reset within":
                writer.transport.abort()
            return False
        self._idle.append((up_reader, up_writer))
        return True

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
        return await asyncio.open_connection(*self._upstream, limit=2 * PIECE)

    async def _body(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int, chunked: bool) -> None:
        if chunked:  # answers in XML; small, and never cut
            while (line := await reader.readline()) and (size := int(line.split(b";")[0], 16)):
                writer.write(line + await reader.readexactly(size + 2))
            writer.write(line + await reader.readexactly(2))
        while length:
            piece = await reader.read(min(PIECE, length))
            if not piece:
                raise ConnectionResetError
            length -= len(piece)
            self.counts["bytes"] += len(piece)
            await self._pace(len(piece))
            writer.write(piece)
            await writer.drain()
        await writer.drain()

    async def _pace(self, size: int) -> None:
        if self.faults.bytes_per_s:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + size / self.faults.bytes_per_s
            if self._free_at - now > 0.002:
                await asyncio.sleep(self._free_at - now)


class _Reset(Exception):
    """The connection is to be reset."""


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(found[1]) if found else 0


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
    while length:
        piece = await reader.read(min(PIECE, length))
        if not piece:
            raise ConnectionResetError
        length -= len(piece)
        writer.write(piece)
        await writer.drain()
    await writer.drain()


async def _slow_down(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """What S3 answers when it is asked too often. The connection is closed, so that the request's body need not be read."""
    body = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
    writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + (b"" if head.startswith(b"HEAD") else body))
    await writer.drain()
    with suppress(OSError):
        await reader.readexactly(_length(head))
    return False


async def _main(upstream: str) -> None:
    host, port = upstream.split(":")
    proxy = _Proxy(host, int(port))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=2 * PIECE)
    print(server.sockets[0].getsockname()[1], flush=True)
    parent = os.getppid()
    while os.getppid() == parent:  # ends with the process that started it
        await asyncio.sleep(1)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
