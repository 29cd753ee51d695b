"""An S3 store of one command's own, as `medschool up` starts it, that can be ended and started again on its data and port.

    own_store(folder) --> OwnStore.variables lead there --lose, start--> ... --> ended

It is lost by SIGKILL, as by a power cut of its machine but for the disk's cache. Price: two seconds, 0.1 GiB of memory.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from medschool.cluster import ports, process, state
from medschool.cluster.object_store import STORE, ask
from medschool.errors import ServiceError

READY_S = 60.0
GRACE_S = 5.0


class OwnStore:
    """The store of a home folder (medschool.cluster.state)."""

    def __init__(self, home: Path) -> None:
        state.prepare(home)
        services = state.load(home)
        chosen = ports.choose({name: STORE.partner for name in STORE.ports}, {}, {}, seed=services.identity)
        self._services = state.Services(home, ports=chosen)
        self._child: subprocess.Popen[bytes] | None = None
        self.variables = STORE.variables(self._services)
        """What a client needs in its environment."""

    def start(self) -> None:
        """Start it, and wait until objects can be read. Raises ServiceError with the end of its log when it does not come up."""
        services, log = self._services, self._services.log("store")
        environment = {**os.environ, **self.variables, **STORE.settings(services)}
        self._child = process.spawn(STORE.command(services), environment, services.mark("store"), services.home, log)
        limit = process.deadline(READY_S)
        while problem := STORE.problem(self.variables):
            if self._child.poll() is not None or time.monotonic() > limit:
                told = f"the store did not start ({problem}):\n{process.tail(log)}"
                raise ServiceError(told, "mend what the log says", str(log))
            time.sleep(0.2)
        STORE.finish(services)

    def lose(self) -> None:
        """SIGKILL for its process."""
        self._end(0)

    def problem(self) -> str:
        """'' when it answers a signed question, else what is wrong."""
        return ask(self.variables, "head_bucket", Bucket=state.BUCKET)

    def stop(self) -> None:
        """End it for good."""
        self._end(GRACE_S)

    def _end(self, grace_s: float) -> None:
        if self._child is None or self._child.poll() is not None:
            return
        found = psutil.Process(self._child.pid)
        members = [found, *found.children(recursive=True)]
        if grace_s:
            process.stop(members, grace_s)
        else:
            for member in members:
                member.kill()
        self._child.wait()


@contextmanager
def own_store(home: Path) -> Iterator[OwnStore]:
    """A running store with its data and secrets in `home`. Raises ServiceError when it does not come up."""
    store = OwnStore(home)
    try:
        store.start()
        yield store
    finally:
        store.stop()
