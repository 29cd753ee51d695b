"""The line in which trainings and scorings of all jobs wait for room."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from medschool.cluster.admission import LAPSE_S, Line

ROOM = {"CPU": 8.0, "GPU": 2.0}


def cpus(count: float) -> dict[str, float]:
    return {"CPU": count, "GPU": 0.0}


def test_two_that_fit_together_begin_together_and_a_third_waits_for_one_of_them() -> None:
    line = Line(lambda: 0.0)
    assert line.ask("a", "first", cpus(4), ROOM, False) == []
    assert line.ask("b", "second", cpus(4), ROOM, False) == []
    assert line.ask("c", "third", cpus(2), ROOM, False) == ["first", "second"]
    line.leave("a")
    assert line.ask("c", "third", cpus(2), ROOM, False) == []


def test_nobody_overtakes_so_that_small_claims_do_not_starve_a_large_one() -> None:
    line = Line(lambda: 0.0)
    line.ask("a", "small", cpus(2), ROOM, False)
    assert line.ask("b", "whole", cpus(8), ROOM, False) == ["small"]
    assert line.ask("c", "later", cpus(2), ROOM, False) == ["small", "whole"]
    line.leave("a")
    assert line.ask("c", "later", cpus(2), ROOM, False) == ["whole"]
    assert line.ask("b", "whole", cpus(8), ROOM, False) == []


def test_a_claim_counts_at_most_the_room_and_what_it_does_not_need_does_not_hold_it_up() -> None:
    line = Line(lambda: 0.0)
    assert line.ask("a", "elastic", {"CPU": 4.0, "GPU": 64.0}, ROOM, False) == []
    assert line.ask("b", "on CPUs", cpus(4), ROOM, False) == []
    assert line.ask("c", "on a GPU", {"CPU": 0.0, "GPU": 1.0}, ROOM, False) == ["elastic", "on CPUs"]


def test_an_owner_that_is_gone_holds_nobody_up() -> None:
    now = [0.0]
    line = Line(lambda: now[0])
    line.ask("a", "killed", cpus(8), ROOM, False)
    now[0] = LAPSE_S
    assert line.ask("b", "next", cpus(8), ROOM, False) == ["killed"]
    now[0] += 0.1
    assert line.ask("b", "next", cpus(8), ROOM, False) == []


def test_a_line_that_starts_again_learns_who_is_at_work() -> None:
    line = Line(lambda: 0.0)
    assert line.ask("b", "new", cpus(4), {"CPU": 2.0}, False) == []
    again = Line(lambda: 0.0)
    assert again.ask("a", "at work", cpus(8), {}, True) == []
    assert again.ask("b", "new", cpus(4), ROOM, False) == ["at work"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 10), st.booleans()), max_size=60))
def test_what_is_admitted_has_room_in_the_order_of_arrival(events: list[tuple[int, int, bool]]) -> None:
    """Against a plain model: each event asks or leaves for one of six; needs are those of the first time it asked."""
    line, waiting, inside, needs = Line(lambda: 0.0), list[int](), set[int](), dict[int, Any]()
    for who, size, leaves in events:
        if leaves:
            line.leave(str(who))
            waiting = [one for one in waiting if one != who]
            inside.discard(who)
            continue
        if who not in inside and who not in waiting:
            waiting.append(who)
            needs[who] = min(size, 8)
        ahead = waiting[: waiting.index(who)] if who in waiting else []
        fits = sum(needs[one] for one in [*inside, *ahead, who]) <= 8
        told = line.ask(str(who), str(who), cpus(size if who not in inside else needs[who]), ROOM, False)
        assert (told == []) == (who in inside or fits)
        if told == [] and who in waiting:
            waiting.remove(who)
            inside.add(who)
        assert sum(needs[one] for one in inside) <= 8
    for who in list(inside):
        line.leave(str(who))
    for who in waiting:
        assert line.ask(str(who), str(who), cpus(needs[who]), ROOM, False) == []
        line.leave(str(who))
