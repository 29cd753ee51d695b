"""Whether the machines of a group reach each other at all, before a process group is made of them.

    worker 0 of each machine --listen--> port
    worker 0 of each machine --call--> every other machine's port --missing--> the machine, or the pair, that has no way

A group whose members do not reach each other waits in `init_process_group` for half an hour, and then says a file descriptor
failed. Here each machine calls each other one, both ways, at the address that Ray knows it by, and the error names who does not
answer. Price: one connection a pair of machines, all at once; a few milliseconds where all is well, LIMIT_S where not.

What it does not see: a port range that a firewall closes to others than the one port taken here, and RDMA, which goes past TCP.
"""

import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from secrets import compare_digest

from medschool.train.layout import Layout

LIMIT_S = 5.0
"""For one machine to answer another, retries of a lost packet included (TCP asks again after 1 and 3 s)."""
LISTENS_S = 60.0
CALLS_AT_ONCE = 64


def listen(address: str, word: str) -> int:
    """The port at `address` that answers callers who know the word, from a thread, for LISTENS_S. Raises OSError."""
    server = socket.create_server((address, 0), backlog=512)
    threading.Thread(target=_answer, args=(server, word.encode(), time.monotonic() + LISTENS_S), daemon=True).start()
    port: int = server.getsockname()[1]
    return port


def _answer(server: socket.socket, word: bytes, until_s: float) -> None:
    with server:
        while (left_s := until_s - time.monotonic()) > 0:
            server.settimeout(left_s)
            try:
                caller, _ = server.accept()
            except OSError:
                return
            with caller:
                caller.settimeout(LIMIT_S)
                try:
                    if compare_digest(caller.recv(len(word), socket.MSG_WAITALL), word):
                        caller.sendall(word)
                except OSError:
                    continue


def call(ports: Mapping[str, int], word: str, limit_s: float = LIMIT_S) -> dict[str, str]:
    """Call every address at its port; why not, of those that did not answer within the limit. Empty when all did."""
    with ThreadPoolExecutor(max(1, min(CALLS_AT_ONCE, len(ports)))) as pool:
        answers = dict(zip(ports, pool.map(lambda each: _called(each, ports[each], word.encode(), limit_s), ports), strict=True))
    return {address: why for address, why in answers.items() if why}


def _called(address: str, port: int, word: bytes, limit_s: float) -> str:
    try:
        with socket.create_connection((address, port), timeout=limit_s) as line:
            line.sendall(word)
            return "" if line.recv(len(word), socket.MSG_WAITALL) == word else "something else answers there"
    except OSError as error:
        return "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error))


def missing(layout: Layout, failed: Mapping[str, Mapping[str, str] | None]) -> str:
    """Who does not reach whom, in one sentence; empty where all do.

    failed: of each machine that called, those who did not answer it, and why; None for one that did not even call. A machine
    that no other one gets an answer from is named alone: it is more likely to be cut off than all of its peers are.
    """
    silent = [machine for machine in layout.machines if failed.get(machine) is None]
    if silent:
        return f"{_names(layout, silent)} did not answer Ray within the limit"
    pairs = {(a, b): why for a, others in failed.items() for b, why in (others or {}).items()}
    others = len(layout.machines) - 1
    alone = [each for each in layout.machines if others > 1 and sum(b == each for _, b in pairs) == others]
    said = [f"{_names(layout, alone)} {'is' if len(alone) == 1 else 'are'} reached by no other machine"] if alone else []
    said += [
        f"{layout.named(a)} does not reach {layout.named(b)}: {why}"
        for (a, b), why in pairs.items()
        if a not in alone and b not in alone
    ]
    reasons = sorted({why for (_, b), why in pairs.items() if b in alone})
    return "; ".join(said) + (f" ({', '.join(reasons)})" if reasons else "")


def _names(layout: Layout, machines: list[str]) -> str:
    return ", ".join(map(layout.named, machines))
