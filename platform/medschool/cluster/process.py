"""Start processes that outlive this one, recognise them later, and stop exactly those.

A pid alone is not an identity: after its process has ended, the kernel gives the number to somebody else. So a process is
remembered as (pid, start time), and a process is *ours* when one of these holds:

    mark      its environment holds MEDSCHOOL_SERVICE=<mark>, which only `spawn` sets and children inherit
    session   it is in the session that `spawn` opened, whose leader still is ours or has ended, and works in one of our folders
              (some Ray processes write their title over their environment, which makes the mark unreadable)
    child     it descends from one that is ours

The price: one pass over the process table of this machine, some milliseconds.
"""

import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "MEDSCHOOL_SERVICE"
CLOCK_SLACK_S = 2.0
"""Start times are counted from the boot time, which moves a little when the clock is set."""


@dataclass(frozen=True)
class Process:
    """One process, for good: a later process with the same pid is another."""

    pid: int
    started_s: float
    """Start time, seconds since the epoch."""


def identity(pid: int) -> Process:
    """The process that has `pid` now. Raises psutil.NoSuchProcess when there is none."""
    return Process(pid, psutil.Process(pid).create_time())


def is_alive(process: Process) -> bool:
    """Whether exactly this process still runs; a zombie does not, nor does a stranger that got its pid."""
    try:
        found = psutil.Process(process.pid)
        return _is(found, process) and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _holder(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _is(found: psutil.Process, process: Process) -> bool:
    return bool(abs(found.create_time() - process.started_s) < CLOCK_SLACK_S)


def spawn(command: Sequence[str], environment: Mapping[str, str], mark: str, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, so that neither Ctrl-C nor the end of the terminal reaches it.

    Its output is appended to `log`; files that it writes are for this user only.
    """
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            env={**environment, MARK: mark},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
        )


def ours(mark: str, sessions: Iterable[Process], folders: Sequence[Path]) -> list[psutil.Process]:
    """Every running process that is ours (see above). `sessions`: the processes that `spawn` started."""
    leaders = {each.pid for each in sessions if (holder := _holder(each.pid)) is None or _is(holder, each)}
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if _marked(process, mark) or _in_session(process, leaders, folders):
                found.update({each.pid: each for each in [process, *process.children(recursive=True)]})
        except psutil.Error:
            continue
    found.pop(os.getpid(), None)
    return list(found.values())


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return bool(process.environ().get(MARK) == mark)
    except (psutil.Error, OSError):
        return False


def _in_session(process: psutil.Process, leaders: set[int], folders: Sequence[Path]) -> bool:
    try:
        return os.getsid(process.pid) in leaders and any(Path(process.cwd()).is_relative_to(folder) for folder in folders)
    except (psutil.Error, OSError):
        return False


def stop(processes: Sequence[psutil.Process], grace_s: float) -> None:
    """Ask all to end (SIGTERM), wait `grace_s` seconds, then end them (SIGKILL). psutil checks identity before each signal."""
    for process in processes:
        _signal(process, hard=False)
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    for process in alive:
        _signal(process, hard=True)
    psutil.wait_procs(alive, timeout=5)


def _signal(process: psutil.Process, hard: bool) -> None:
    try:
        process.kill() if hard else process.terminate()
    except psutil.NoSuchProcess:
        return


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, for an error message."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"


def deadline(seconds: float) -> float:
    """The moment `seconds` from now, on the clock that never goes back."""
    return time.monotonic() + seconds
