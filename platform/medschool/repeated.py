"""Something that is done again and again beside the work."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(do: Callable[[], object], every_s: float, name: str) -> Iterator[None]:
    """While the block runs, `do` every so many seconds, first after that time, in a thread of this name; ended with the block."""
    over = threading.Event()

    def loop() -> None:
        while not over.wait(every_s):
            do()

    thread = threading.Thread(target=loop, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
