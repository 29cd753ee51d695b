"""Many clients at once, each on its own connection, and what a server's processes hold meanwhile."""

import asyncio
import json
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

MIB = 2**20


@dataclass
class Told:
    """What the clients were told.

    statuses: answers by HTTP status; 0 for a connection that was closed in the middle. first_s: seconds to the first byte of each
    200. unhelpful: 429 that did not say when to come back. torn: streams that did not end as they should.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    first_s: list[float] = field(default_factory=list)
    unhelpful: int = 0
    torn: int = 0

    def p99_s(self) -> float:
        return statistics.quantiles(self.first_s, n=100)[98]


@dataclass(frozen=True)
class Client:
    """One that asks the same again and again. body: None for a GET."""

    host: str
    port: int
    key: str
    path: str
    body: dict[str, Any] | None = None

    @classmethod
    def of(cls, url: str, key: str, path: str, body: dict[str, Any] | None = None) -> "Client":
        host, port = url.removeprefix("http://").split(":")
        return cls(host, int(port), key, path, body)

    def sent(self) -> bytes:
        """The request as bytes."""
        body = b"" if self.body is None else json.dumps(self.body).encode()
        method = "GET" if self.body is None else "POST"
        head = (
            f"{method} {self.path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self.key}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, told: Told) -> None:
        """One request, its answer read to the end."""
        start_s = time.monotonic()
        writer.write(self.sent())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status, first_s = int(head.split()[1]), time.monotonic() - start_s
        if "transfer-encoding: chunked" in head:
            body = await reader.readuntil(b"0\r\n\r\n")
            told.torn += b"data: [DONE]" not in body
        else:
            length = int(head.split("content-length: ")[1].split("\r\n")[0])
            await reader.readexactly(length)
        told.statuses[status] += 1
        if status == 200:
            told.first_s.append(first_s)
        told.unhelpful += status == 429 and "retry-after: " not in head

    async def until(self, end_s: float, told: Told, most: int) -> None:
        """Ask until the clock shows `end_s`, or so many times; a connection that is closed is opened again."""
        while time.monotonic() < end_s and most > 0:
            try:
                reader, writer = await asyncio.open_connection(self.host, self.port, limit=4 * MIB)
            except OSError:
                told.statuses[0] += 1
                await asyncio.sleep(0.1)
                continue
            try:
                while time.monotonic() < end_s and most > 0:
                    most -= 1
                    await self.ask(reader, writer, told)
            except (asyncio.IncompleteReadError, OSError):
                told.statuses[0] += 1
            finally:
                writer.close()


def flood(clients: Sequence[Client], seconds: float, most: int = 2**62) -> Told:
    """All clients at once for so long, each with at most `most` requests."""

    async def run() -> Told:
        told, end_s = Told(), time.monotonic() + seconds
        async with asyncio.timeout(seconds + 60):
            await asyncio.gather(*(client.until(end_s, told, most) for client in clients))
        return told

    return asyncio.run(run())


# ---- what the processes hold


def serving() -> list[psutil.Process]:
    """Replicas and proxies of Ray Serve below this process."""
    found = [(process, " ".join(process.cmdline())) for process in psutil.Process().children(recursive=True)]
    return [process for process, title in found if "ServeReplica" in title or "ProxyActor" in title]


@dataclass(frozen=True)
class Held:
    """Memory, open files and threads of some processes together."""

    rss_mib: float
    files: int
    threads: int


def held(processes: Sequence[psutil.Process]) -> Held:
    return Held(
        sum(process.memory_info().rss for process in processes) / MIB,
        sum(process.num_fds() for process in processes),
        sum(process.num_threads() for process in processes),
    )


def room_for_files(count: int) -> bool:
    """Whether this process may have so many files open; it raises its own limit as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= count


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the least-squares line through (x, y): y a unit of x."""
    xs, ys = zip(*points, strict=True)
    return statistics.linear_regression(xs, ys).slope


def watched(seconds: float, every_s: float, look: Callable[[], None]) -> None:
    """Call `look` every so often for so long."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        time.sleep(every_s)
        look()
