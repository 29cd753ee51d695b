"""Ends the processes that this one started when it is gone, however it went: killed, out of memory, crashed.

    this process --pids, a line each--> a shell that reads until the end of the pipe, and then ends them

The pipe closes when this process ends, whatever ended it, and nothing else holds it open. Ray ends the children of a worker that
exits in order, and not of one that is killed; vLLM's engine process does not notice that its front end is gone, and would keep
its memory, a whole GPU, for ever (vllm-project/vllm, issue 55510). Its own workers do notice.

Price: one sleeping shell. A pid that the system gives to another process between its owner's end and ours would be ended too.
"""

import subprocess

import psutil

ENDING = 'pids=; while read -r pid; do pids="$pids $pid"; done; kill -9 $pids 2>/dev/null'
CLEANER = "resource_tracker"
"""Python's own process that removes shared memory when the others are gone; it ends by itself."""


class Keeper:
    """Ends what is started between its making and the last `learn`."""

    def __init__(self) -> None:
        self._shell = subprocess.Popen(["/bin/sh", "-c", ENDING], stdin=subprocess.PIPE, text=True, start_new_session=True)
        self._known = {process.pid for process in _children()}

    def learn(self) -> None:
        """Take in the processes that have been started since."""
        assert self._shell.stdin is not None
        for process in _children():
            if process.pid not in self._known:
                self._known.add(process.pid)
                self._shell.stdin.write(f"{process.pid}\n")
                self._shell.stdin.flush()

    def stop(self) -> None:
        """End nothing any more."""
        self._shell.kill()
        self._shell.wait()


def _children() -> list[psutil.Process]:
    """Processes below this one, but for Python's cleaner."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if not any(CLEANER in word for word in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
