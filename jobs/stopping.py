"""SIGTERM at the driver, as `ray job stop` sends it: what saves at a stop saves first, then the job ends with 143.

A second SIGTERM ends the job at once. The signal's handler runs wherever the main thread happens to be, as a rule in the middle
of a call to Ray: it only starts a thread, which asks, waits, and sends the second one itself.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from medschool.board import Board
from medschool.cluster.ray_head import JOB_STOP_WAIT_S

EXIT_CODE = 128 + signal.SIGTERM
GRACE_S = JOB_STOP_WAIT_S - 10.0
"""For trainings to finish a step and save."""
LINGER_S = 5.0
"""For the main thread to end by itself once everything is saved."""
ASK_EVERY_S = 0.2


@contextmanager
def stopping(board: Board) -> Iterator[None]:
    """While the block runs, SIGTERM asks through `board`, and ends the process GRACE_S later at most."""
    asked, ended = threading.Event(), threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            sys.exit(EXIT_CODE)
        asked.set()
        threading.Thread(target=_end, args=(board, ended), daemon=True).start()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        ended.set()
        signal.signal(signal.SIGTERM, before)


def _end(board: Board, ended: threading.Event) -> None:
    deadline_s = time.monotonic() + GRACE_S
    with suppress(Exception):  # a Ray that is gone must not keep the process
        board.ask_to_stop()
        if board.saves_at_stop():
            board.put("stopping: the state is saved at the next step")
            while board.saves_at_stop() and time.monotonic() < deadline_s and not ended.wait(ASK_EVERY_S):
                pass
            ended.wait(LINGER_S)
    if not ended.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
