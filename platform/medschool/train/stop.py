"""A training that is asked to stop leaves at a step that all ranks agree on, with its state saved.

    SIGTERM at the driver --board--> Ray's controller --ask(STOP)--> rank 0 --sum over ranks--> every rank
    notice that a node is taken away --> Ray's controller --ask(PREEMPTION)--> as above

Only rank 0 is told. After every step all ranks add up what they know, one number, so that all see the same wish at the same step.
They save that step and leave: at a stop for good, at a preemption until the group is started again elsewhere.
"""

import time
from typing import TYPE_CHECKING

from medschool.train.watchdog import beat

if TYPE_CHECKING:  # the driver and Ray's controller know the words below, and have no use for torch
    import torch

NOTHING, PREEMPTION, STOP = 0, 1, 2
SAVED = "saved, waiting to be moved to another node"
MOVED_WITHIN_S = 600.0
"""The controller ends a group within seconds of its last rank's saying SAVED; with it gone, the worker ends by itself."""

_asked = NOTHING


def ask(what: int) -> None:
    """In the process of rank 0: wish for PREEMPTION or STOP; a stop is not taken back by a preemption."""
    global _asked
    _asked = max(_asked, what)


def asked() -> int:
    """What this process was asked; NOTHING in all but rank 0's."""
    return _asked


def agreed(device: "torch.device") -> int:
    """What the group was asked, the same on every rank. Every rank calls this after the same step."""
    import torch
    import torch.distributed as dist

    wish = torch.tensor([asked()], dtype=torch.int32, device=device)
    dist.all_reduce(wish)
    return int(wish)


class Stopped(Exception):
    """All ranks have saved `step` and leave for good."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


def leave(wish: int, step: int) -> None:
    """After `step` is saved, on every rank: raise Stopped, or wait for the controller to end this process and start it elsewhere.

    A worker that returned would end the training as finished, one that raised would be charged as a failure.
    """
    if wish == STOP:
        raise Stopped(step)
    beat(SAVED, step)
    time.sleep(MOVED_WITHIN_S)
    raise TimeoutError(f"saved step {step} for a preempted node, and nothing happened for {MOVED_WITHIN_S:g} s")
