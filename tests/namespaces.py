"""Hosts on one machine: network namespaces with an address each, on a bridge of their own.

    bridge ms<id>  ==  host 0: 10.213.<id>.1   host 1: 10.213.<id>.2   ...      each with a loopback and a cable of its own

Processes of a host reach the other hosts by those addresses alone, and nothing outside. Files and processes are those of this
machine: what is shown is what a network does, not what a disk or a kernel of its own would do. Needs root and Linux.
"""

import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

_NUMBERS = itertools.count(os.getpid())


def _ip(*words: str, host: str | None = None) -> subprocess.CompletedProcess[str]:
    inside = ["ip", "netns", "exec", host] if host else []
    return subprocess.run([*inside, *words], capture_output=True, text=True, check=True)


class Hosts:
    """Context manager: so many hosts. Skips the test where this machine cannot have any."""

    def __init__(self, count: int) -> None:
        self._id = next(_NUMBERS) % 250 + 1
        self._bridge = f"ms{self._id}"
        self.names = [f"ms{self._id}-{number}" for number in range(count)]
        self.addresses = [f"10.213.{self._id}.{number + 1}" for number in range(count)]

    def __enter__(self) -> "Hosts":
        if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
            pytest.skip("hosts in network namespaces need root, ip and tc")
        try:
            _ip("ip", "link", "add", self._bridge, "type", "bridge")
            _ip("ip", "link", "set", self._bridge, "up")
            for host, address in zip(self.names, self.addresses, strict=True):
                _ip("ip", "netns", "add", host)
                _ip("ip", "link", "add", f"{host}b", "type", "veth", "peer", "name", "cable", "netns", host)
                _ip("ip", "link", "set", f"{host}b", "master", self._bridge, "up")
                _ip("ip", "address", "add", f"{address}/24", "dev", "cable", host=host)
                for device in ("lo", "cable"):
                    _ip("ip", "link", "set", device, "up", host=host)
        except subprocess.CalledProcessError as error:
            self.__exit__()
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        return self

    def __exit__(self, *_: object) -> None:
        for host in range(len(self.names)):
            self.kill(host)
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
            subprocess.run(["ip", "link", "delete", f"{name}b"], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", self._bridge], capture_output=True, check=False)

    def start(self, host: int, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """A process on a host."""
        return subprocess.Popen(["ip", "netns", "exec", self.names[host], *command], text=True, **options)

    def run(self, host: int, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """A process on a host, until it has ended."""
        return subprocess.run(
            ["ip", "netns", "exec", self.names[host], *command], text=True, capture_output=True, check=False, **options
        )

    def processes(self, host: int) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.names[host]], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def kill(self, host: int) -> int:
        """The host loses power: SIGKILL for all that runs on it; how many that were."""
        ended = 0
        while pids := self.processes(host):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ended += len(pids)
        return ended

    def cut(self, host: int) -> None:
        """Pull the cable: packets are lost without a word."""
        _ip("ip", "link", "set", f"{self.names[host]}b", "down")

    def mend(self, host: int) -> None:
        _ip("ip", "link", "set", f"{self.names[host]}b", "up")

    def forget(self, host: int, other: int) -> None:
        """From now on `host` drops what it would send to `other`, and reaches everybody else."""
        _ip("ip", "route", "add", "blackhole", f"{self.addresses[other]}/32", host=self.names[host])

    def remember(self, host: int, other: int) -> None:
        _ip("ip", "route", "delete", "blackhole", f"{self.addresses[other]}/32", host=self.names[host])

    def slow(self, host: int) -> str:
        """What a host sends takes long: 50 ms more where the kernel has netem, else 20 Mbit/s. Says which of the two it is."""
        netem = ["tc", "qdisc", "replace", "dev", "cable", "root", "netem", "delay", "50ms"]
        with suppress(subprocess.CalledProcessError):
            _ip(*netem, host=self.names[host])
            return "delay"
        _ip(
            "tc",
            "qdisc",
            "replace",
            "dev",
            "cable",
            "root",
            "tbf",
            "rate",
            "20mbit",
            "burst",
            "16kb",
            "latency",
            "1s",
            host=self.names[host],
        )
        return "rate"
