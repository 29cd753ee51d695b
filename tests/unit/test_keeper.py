"""A process that is killed takes along what it started, and nothing else."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from served import wait_until

from medschool.serve.keeper import Keeper

PARENT = """
import subprocess, sys, time
from medschool.serve.keeper import Keeper
mine = subprocess.Popen(["sleep", "60"])
keeper = Keeper()
late = subprocess.Popen(["sleep", "60"])
keeper.learn()
keeper.learn()
if sys.argv[1] == "stopped":
    keeper.stop()
print(mine.pid, late.pid, flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    """A process that ended and that nobody waited for is not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("how", "ended"), [("kept", True), ("stopped", False)])
def test_who_is_killed_takes_along_what_it_started_since(how: str, ended: bool, tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen([sys.executable, str(tmp_path / "parent.py"), how], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        before, since = map(int, parent.stdout.readline().split())
        shells = [child.pid for child in psutil.Process(parent.pid).children() if child.pid not in (before, since)]
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(map(alive, shells)))
    try:
        assert alive(before), "started before it: none of its business"
        wait_until(lambda: alive(since) is not ended)
    finally:
        for pid in (before, since):
            if alive(pid):
                psutil.Process(pid).kill()


def test_a_keeper_of_nothing_ends_nothing() -> None:
    keeper = Keeper()
    keeper.learn()
    keeper.stop()
