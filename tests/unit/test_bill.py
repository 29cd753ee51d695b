"""What nodes cost: by type, in a span of time, with and without a price."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medschool.cluster.bill import Node, bill, node_of
from medschool.cluster.price import PRICE

HOUR = 3600.0


def test_a_node_counts_while_the_job_ran_and_while_it_was_there() -> None:
    nodes = [
        Node("cpu", True, 0.0, None, 2.0),  # before and after
        Node("cpu", False, 1.5 * HOUR, 2.0 * HOUR, 2.0),  # half an hour
        Node("cpu", False, 0.0, 0.5 * HOUR, 2.0),  # gone before
        Node("gpu", True, 2.5 * HOUR, None, 10.0),
        Node("gpu", True, 9.0 * HOUR, None, 10.0),  # came after
    ]
    cpu, gpu = bill(nodes, 1 * HOUR, 3 * HOUR)
    assert cpu == {"type": "cpu", "nodes": 2, "alive": 1, "hours": 2.5, "usd_per_hour": 2.0, "usd": 5.0}
    assert gpu == {"type": "gpu", "nodes": 1, "alive": 1, "hours": 0.5, "usd_per_hour": 10.0, "usd": 5.0}


def test_without_the_price_of_one_there_is_no_price_of_the_type() -> None:
    (found,) = bill([Node("cpu", True, 0.0, None, None), Node("cpu", True, 0.0, None, 2.0)], 0.0, HOUR)
    assert found["usd"] is None and found["usd_per_hour"] is None and found["hours"] == 2.0
    (gone,) = bill([Node("cpu", False, 0.0, HOUR, None), Node("cpu", True, 0.0, None, 2.0)], 0.0, HOUR)
    assert gone["usd"] is None and gone["usd_per_hour"] == 2.0


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40), st.none() | st.integers(0, 40), st.sampled_from([0.5, 3.0]))),
    st.integers(0, 20),
    st.integers(20, 40),
)
def test_hours_and_usd_are_those_counted_hour_by_hour(
    drawn: list[tuple[str, int, int | None, float]], began: int, ended: int
) -> None:
    nodes = [
        Node(name, end is None, start * HOUR, None if end is None else max(start, end) * HOUR, price)
        for name, start, end, price in drawn
    ]
    found = {each["type"]: each for each in bill(nodes, began * HOUR, ended * HOUR)}
    for name in "ab":
        mine = [node for node in nodes if node.type == name]
        there = [node for hour in range(began, ended) for node in mine if node.began_s <= hour * HOUR < (node.ended_s or 1e12)]
        assert found.get(name, {"hours": 0, "usd": 0})["hours"] == len(there)
        assert found.get(name, {"hours": 0, "usd": 0})["usd"] == pytest.approx(sum(node.usd_per_hour or 0 for node in there))


def test_a_node_is_read_from_ray_s_list() -> None:
    told = {
        "state": "DEAD", "is_head_node": False, "start_time_ms": 1000, "end_time_ms": 61000,
        "labels": {"ray.io/node-group": "gpu_train", PRICE: "27.45"}, "resources_total": {"CPU": 96.0},
    }  # fmt: skip
    assert node_of(told) == Node("gpu_train", False, 1.0, 61.0, 27.45)
    head = {
        "state": "ALIVE",
        "is_head_node": True,
        "start_time_ms": 1000,
        "end_time_ms": 0,
        "labels": {},
        "resources_total": {"CPU": 8.0},
    }
    assert node_of(head) == Node("8 CPU (head)", True, 1.0, None, None)
