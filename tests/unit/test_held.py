"""What a training cost, from the records of its worker groups and the steps that it kept."""

import json
import time
from pathlib import Path

import pytest

from medschool.cluster.price import PRICE
from medschool.train import held
from medschool.train.held import Group, Held, cost_of, node_type, read_groups, worker_price


def points(*ends_s: float, step_s: float = 1.0) -> list[dict[str, float]]:
    return [{"step": number, "time_ms": 1000 * end_s, "step_s": step_s} for number, end_s in enumerate(ends_s, 1)]


def test_one_group_is_idle_where_no_step_runs() -> None:
    cost = cost_of([Group({"gpu_train": 4}, 100.0, 60.0)], points(120, 125, 130, step_s=5.0), 1)
    used, idle = 4 * 15.0, 4 * (60 - 15.0)
    assert cost == {
        "workers": 4, "gpus_per_worker": 1, "groups": 1, "worker_seconds": {"gpu_train": 240.0},
        "idle_worker_seconds": idle, "lost_worker_seconds": 0.0,
        "by_node_type": {"gpu_train": {"used": used, "idle": idle, "lost": 0.0, "preempted": 0.0, "usd": None}},
    }  # fmt: skip


def test_steps_that_a_restart_threw_away_are_lost_and_an_elastic_run_counts_each_width() -> None:
    groups = [
        Group(
            {"spot": 4}, 0.0, 100.0, {"spot": 3.6}, preempted=True
        ),  # steps 1 and 2 were kept, then 60 s of work that no checkpoint had
        Group({"spot": 2}, 120.0, 30.0, {"spot": 3.6}),  # came to no step
        Group({"spot": 2, "cpu": 1}, 160.0, 50.0, {"spot": 7.2}),
    ]
    cost = cost_of(groups, points(30, 40, 180, 190, step_s=8.0), 0)
    assert cost["worker_seconds"] == {"cpu": 50.0, "spot": 4 * 100 + 2 * 30 + 2 * 50}
    assert cost["lost_worker_seconds"] == 4 * 60 + 2 * 30
    stepping = 4 * 16 + 3 * 16
    assert cost["idle_worker_seconds"] == sum(cost["worker_seconds"].values()) - cost["lost_worker_seconds"] - stepping
    assert (cost["workers"], cost["groups"]) == (3, 3)
    spot, cpu = cost["by_node_type"]["spot"], cost["by_node_type"]["cpu"]
    assert (spot["used"], spot["lost"], spot["preempted"]) == (4 * 16 + 2 * 16, 4 * 60 + 2 * 30, 4 * 60)
    assert spot["idle"] == 4 * 24 + 2 * 34 and cpu["usd"] is None and (cpu["used"], cpu["idle"]) == (16, 34)
    assert spot["usd"] == pytest.approx(0.001 * (4 * 100 + 2 * 30) + 0.002 * 2 * 50)


def test_nothing_recorded_nothing_said() -> None:
    assert cost_of([], points(1, 2), 0) == {}


def test_a_group_is_recorded_while_it_runs_and_when_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "BEAT_S", 0.0)
    record = Held(str(tmp_path))
    record.beat()
    record.end()
    assert read_groups(str(tmp_path)) == []
    record.begin({"8 CPU": 2}, {})
    deadline_s = time.monotonic() + 20
    while not (found := read_groups(str(tmp_path))) or found[0].seconds < 0.1:  # what a controller that is killed now has left
        assert time.monotonic() < deadline_s
        record.beat()
        time.sleep(0.05)
    (first,) = found
    assert first.nodes == {"8 CPU": 2} and first.workers == 2 and not first.preempted and abs(first.began_s - time.time()) < 20
    record.end()
    record.preempted()  # said after it has ended
    record.begin({"8 CPU": 1}, {"8 CPU": 0.5})
    record.end()
    (again, second) = read_groups(str(tmp_path))
    assert again.began_s == first.began_s and again.seconds >= first.seconds and second.workers == 1
    assert (again.preempted, second.preempted, second.usd_per_hour) == (True, False, {"8 CPU": 0.5})


def test_what_cannot_be_read_or_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "groups").write_text("a file where a folder should be")
    record = Held(str(tmp_path))
    record.begin({"cpu": 1}, {})
    record.end()
    other = tmp_path / "other"
    (other / "groups").mkdir(parents=True)
    (other / "groups" / "1-a.json").write_text('{"nodes": ')
    (other / "groups" / "2-b.json").write_text(json.dumps({"nodes": {"cpu": 1}, "began_s": 2.0, "seconds": 3.0}))
    assert read_groups(str(other)) == [Group({"cpu": 1}, 2.0, 3.0)]


def test_a_node_is_called_by_its_type_else_by_what_it_has() -> None:
    resources = {"CPU": 16.0, "GPU": 1.0, "memory": 1e9, "node:10.0.0.1": 1.0}
    assert node_type({"Resources": resources, "Labels": {"ray.io/node-group": "gpu_train"}}) == "gpu_train"
    assert node_type({"Resources": resources, "Labels": {}}) == "16 CPU, 1 GPU"
    assert node_type({"Resources": {}}) == "node"


def test_a_worker_pays_its_largest_share_of_a_node() -> None:
    node = {"Resources": {"CPU": 96.0, "GPU": 8.0}, "Labels": {PRICE: "27.2"}}
    assert worker_price(node, {"CPU": 8, "GPU": 1}) == pytest.approx(27.2 / 8)
    assert worker_price(node, {"CPU": 48, "GPU": 0}) == pytest.approx(27.2 / 2)
    assert worker_price(node | {"Labels": {}}, {"CPU": 8}) is None and worker_price({}, {"CPU": 8}) is None
    assert worker_price(node | {"Labels": {PRICE: "free"}}, {"CPU": 8}) is None
