"""A trial's limit: what ends in time is as without one, what hangs is told, an error is its own."""

import threading
import time

import pytest

from medschool.ablate.limit import within
from medschool.errors import InputError, StageError


@pytest.mark.parametrize("limit_s", [None, 60.0])
def test_what_ends_in_time_adds_up(limit_s: float | None) -> None:
    done: list[int] = []
    spent_s = within(limit_s, 5.0, lambda: done.append(1), "trial")
    assert done == [1] and 5.0 <= spent_s < 6.0


@pytest.mark.parametrize("limit_s", [None, 60.0])
@pytest.mark.parametrize("error", [InputError("no text", "add some", "here"), TimeoutError("its own"), KeyboardInterrupt()])
def test_an_error_is_the_one_that_was_raised(limit_s: float | None, error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        within(limit_s, 0.0, fail, "trial")
    assert raised.value is error


def test_what_hangs_is_named_with_its_limit() -> None:
    hangs, began_s = threading.Event(), time.monotonic()
    with pytest.raises(StageError, match=r"knowledge: the trial took longer than 0\.2 s") as raised:
        within(0.2, 0.0, hangs.wait, "knowledge")  # type: ignore[arg-type]
    assert "cluster.trial_timeout_s" in raised.value.remedy and time.monotonic() - began_s < 5
    hangs.set()


def test_stages_share_one_limit() -> None:
    hangs, spent_s = threading.Event(), within(60.0, 30.0, lambda: time.sleep(0.01), "trial")
    assert 30.01 <= spent_s < 60
    with pytest.raises(StageError, match=r"longer than 60 s"):
        within(60.0, spent_s + 29.9, hangs.wait, "trial")  # type: ignore[arg-type]
    hangs.set()
