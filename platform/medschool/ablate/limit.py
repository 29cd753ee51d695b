"""A limit on the time of a trial, so that one that hangs is told and does not hold a study up.

    do() in a thread beside --ends in time--> its result or its error
                            --too late------> StageError; the thread is left behind and ends with its process

Ray Tune has no such limit: it stops a trial when that reports, and one that hangs reports nothing. A thread cannot be ended from
outside either, so whoever calls this must be a process that ends after the error: a trial of Tune is one. What it started on the
cluster, such as training workers, is owned by that process and ends with it.

Price: one thread. What it does not know: whether something hangs or only takes long.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from medschool.errors import StageError


def within(limit_s: float | None, spent_s: float, do: Callable[[], None], name: str) -> float:
    """Run `do`; the seconds spent with it included. `spent_s` is what the trial `name` had spent before.

    Raises what `do` raises, and StageError when it has not ended after `limit_s` seconds in all; None is no limit.
    """
    began_s, ended = time.monotonic(), Future[None]()
    if limit_s is None:
        do()
        return spent_s + time.monotonic() - began_s
    threading.Thread(target=_run, args=(do, ended), daemon=True).start()
    try:
        ended.result(max(0.0, limit_s - spent_s))
    except TimeoutError:
        if ended.done():  # its own
            raise
        raise StageError(
            f"the trial took longer than {limit_s:g} s, not counting what it waited for others",
            "see what it does in its log in Ray's dashboard; if it only takes long, raise cluster.trial_timeout_s",
            name,
        ) from None
    return spent_s + time.monotonic() - began_s


def _run(do: Callable[[], None], ended: "Future[None]") -> None:
    try:
        do()
        ended.set_result(None)
    except BaseException as error:  # raised where the result is asked for
        ended.set_exception(error)
