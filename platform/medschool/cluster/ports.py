"""Free TCP ports on the loopback interface, chosen once and then kept.

Ports come from 20000-31999: below the range from which Linux (32768-60999) and macOS (49152-65535) take ports for outgoing
connections, so a port that is free today is still free tomorrow. Two homes start looking at different places.

The price: between the choice and the service's own bind another process can take the port. The service then fails to start,
and the next `up` chooses again.
"""

import random
import socket
from collections.abc import Mapping

from medschool.errors import ServiceError

FIRST_PORT, LAST_PORT = 20000, 31999


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:`port` now; connections that are only closing do not count."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose(
    names: Mapping[str, int], remembered: Mapping[str, int], wanted: Mapping[str, tuple[str, int]], seed: str
) -> dict[str, int]:
    """A free port for each of `names`.

    names: name -> partner: the service takes port + partner as well; 0 for one that takes just its port.
    remembered: name -> port of last time; kept when free, replaced when taken. Ports of other names are never given out.
    wanted: name -> (variable, port) as the user asked for it; taken by somebody means ServiceError.
    """
    candidates = list(range(FIRST_PORT, LAST_PORT + 1))
    random.Random(seed).shuffle(candidates)
    chosen: dict[str, int] = {}
    for name, partner in names.items():
        if name in wanted:
            chosen[name] = _insist(*wanted[name], partner)
        elif name in remembered and _fits(remembered[name], partner):
            chosen[name] = remembered[name]
        else:
            used = {port for _, port in wanted.values()} | set(remembered.values()) | set(chosen.values())
            used |= {port + names[other] for other, port in chosen.items()}
            chosen[name] = _first(candidates, partner, used)
    return chosen


def _first(candidates: list[int], partner: int, used: set[int]) -> int:
    for port in candidates:
        if port + partner <= LAST_PORT and not {port, port + partner} & used and _fits(port, partner):
            return port
    raise ServiceError(f"no free port between {FIRST_PORT} and {LAST_PORT}", "stop some of the servers on this machine")


def _fits(port: int, partner: int) -> bool:
    return is_free(port) and (not partner or (port + partner < 2**16 and is_free(port + partner)))


def _insist(variable: str, port: int, partner: int) -> int:
    if not _fits(port, partner):
        both = f"port {port} and {port + partner}" if partner else f"port {port}"
        raise ServiceError(
            f"{variable} asks for {both}, but another process listens there",
            f"stop that process, or unset {variable} to let medschool choose a free port",
        )
    return port
