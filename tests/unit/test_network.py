"""What the workers of several machines are told of the network, and what is made of an all-reduce before a training."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup

from medschool.recipe import load
from medschool.train import network, rendezvous
from medschool.train.layout import Layout
from medschool.train.network import DEEPSPEED_BUCKET, Machine, bucket_elements, environment, zero_options
from medschool.train.preflight import Link, Measured, Preflight, ring_rounds
from medschool.train.reach import call, listen, missing
from medschool.train.zero import deepspeed_config

ROOT = Path(__file__).parents[2]
NICS = {"lo": ("127.0.0.1",), "docker0": ("172.17.0.1",), "ens5": ("10.0.0.7", "10.0.0.8"), "ens6": ()}


def test_ray_train_numbers_the_workers_of_one_node_one_after_the_other() -> None:
    nodes = ["n2", "n0", "n1", "n0", "n2", "n1", "n0", "n2", "n1"]  # as a placement group may give them
    gpus = [0, 2, 1, 0, 1, 0, 1, 2, 2]
    workers = [
        SimpleNamespace(
            metadata=SimpleNamespace(node_id=node, node_ip=f"10.0.0.{node[1]}", accelerator_ids={"GPU": [str(gpu)]}), resources={}
        )
        for node, gpu in zip(nodes, gpus, strict=True)
    ]
    assert not Layout(tuple(worker.metadata.node_ip for worker in workers)).contiguous
    placed = WorkerGroup._assign_worker_ranks(workers)
    layout = Layout(tuple(worker.metadata.node_ip for worker in placed))
    assert layout.contiguous and layout.machine_workers == 3 and len(layout.machines) == 3
    assert [worker.distributed_context.world_rank for worker in placed] == list(range(9))
    assert [worker.distributed_context.local_rank for worker in placed] == [0, 1, 2] * 3
    assert [worker.metadata.accelerator_ids["GPU"] for worker in placed] == [["0"], ["1"], ["2"]] * 3


@pytest.mark.parametrize(
    ("addresses", "workers", "contiguous"),
    [("aabb", 2, True), ("aaab", None, True), ("abab", None, False), ("abc", 1, True), ("aaaa", 4, True), ("a", 1, True)],
)
def test_a_layout_knows_whether_secondary_partitions_are_possible(addresses: str, workers: int | None, contiguous: bool) -> None:
    layout = Layout(tuple(addresses))
    assert (layout.machine_workers, layout.contiguous) == (workers, contiguous)
    assert sorted(rank for ranks in layout.ranks.values() for rank in ranks) == list(range(len(addresses)))


def test_gloo_and_nccl_get_the_interface_of_ray_s_address_and_no_other() -> None:
    found = environment(Machine(NICS), "10.0.0.8")
    assert found["GLOO_SOCKET_IFNAME"] == "ens5" and found["NCCL_SOCKET_IFNAME"] == "=ens5"
    assert not [name for name in found if name.startswith("FI_")]
    elsewhere = environment(Machine(NICS), "192.0.2.9")  # behind an address translation: nothing is known, nothing is set
    assert not [name for name in elsewhere if name.endswith("IFNAME")]


@pytest.mark.parametrize(
    ("kind", "rdma", "expected"),
    [
        ("p4de.24xlarge", ("efa",) * 4, {"FI_PROVIDER": "efa", "FI_EFA_FORK_SAFE": "1", "FI_EFA_USE_DEVICE_RDMA": "1"}),
        ("g5.48xlarge", ("efa",), {"FI_PROVIDER": "efa", "FI_EFA_FORK_SAFE": "1"}),  # its EFA does not read remote memory
        ("", ("mlx5_core",), {}),
        ("p4de.24xlarge", (), {}),  # without the device in the container
    ],
)
def test_efa_is_used_where_it_is(kind: str, rdma: tuple[str, ...], expected: dict[str, str]) -> None:
    found = environment(Machine(NICS, rdma, kind), "10.0.0.7")
    assert {name: value for name, value in found.items() if name.startswith("FI_")} == expected
    assert found["MEDSCHOOL_NODE_FABRIC"] == ("rdma" if rdma else "ethernet")


def test_a_machine_is_read_from_its_kernel(tmp_path: Path) -> None:
    (tmp_path / "bus" / "efa").mkdir(parents=True)
    for device in ("rdmap0", "rdmap1"):
        (tmp_path / "class" / "infiniband" / device / "device").mkdir(parents=True)
        (tmp_path / "class" / "infiniband" / device / "device" / "driver").symlink_to(tmp_path / "bus" / "efa")
    dmi = tmp_path / "class" / "dmi" / "id"
    dmi.mkdir(parents=True)
    (dmi / "sys_vendor").write_text("Amazon EC2\n")
    (dmi / "product_name").write_text("p4de.24xlarge\n")
    found = network.this_machine(tmp_path)
    assert found.rdma == ("efa", "efa") and found.kind == "p4de.24xlarge" and "127.0.0.1" in found.interfaces["lo"]
    (dmi / "sys_vendor").write_text("another\n")
    assert network.this_machine(tmp_path).kind == ""


def test_what_a_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"NCCL_SOCKET_IFNAME": "^docker"})
    network.prepare("127.0.0.1")
    assert os.environ["NCCL_SOCKET_IFNAME"] == "^docker" and os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert os.environ["MEDSCHOOL_NODE_ADDRESS"] == "127.0.0.1"


@given(st.integers(1, 4096), st.sampled_from([2, 4]))
def test_a_bucket_uses_nine_tenths_of_the_bandwidth_and_is_no_larger_than_that_takes(workers: int, width: int) -> None:
    size = bucket_elements(workers, width) * width
    slot_s = size / workers / network.ETHERNET_BYTES_PER_S
    used = slot_s / (slot_s + network.ETHERNET_LATENCY_S)
    assert size <= DEEPSPEED_BUCKET * width
    if network.SMALLEST_BUCKET_BYTES < size < (DEEPSPEED_BUCKET - 1) * width:
        assert used == pytest.approx(network.EFFICIENCY, abs=1e-6)
    elif size <= network.SMALLEST_BUCKET_BYTES:
        assert used >= network.EFFICIENCY - 1e-6


def test_deepspeed_is_told_of_machines_only_where_there_are_several() -> None:
    two, one = Layout(("a",) * 8 + ("b",) * 8), Layout(("a",) * 16)
    assert zero_options(one, 3, 2, False) == {} == zero_options(two, 0, 2, False)
    assert zero_options(Layout(two.addresses, rdma=True), 3, 2, False) == {"zero_hpz_partition_size": 8}
    found = zero_options(two, 3, 2, False)
    assert found["zero_hpz_partition_size"] == 8 and found["reduce_bucket_size"] == bucket_elements(16, 2) < DEEPSPEED_BUCKET
    for other in (zero_options(two, 2, 2, False), zero_options(two, 3, 2, True), zero_options(Layout(("a", "b")), 3, 2, False)):
        assert "zero_hpz_partition_size" not in other
    assert "zero_hpz_partition_size" not in zero_options(Layout(("a", "a", "b")), 3, 2, False)


def test_the_paper_s_training_keeps_a_copy_of_the_weights_on_each_machine() -> None:
    recipe = load(ROOT / "recipes" / "pmc_llama_13b.yaml")
    layout = Layout(tuple(f"10.0.0.{rank // 8}" for rank in range(32)), rdma=True)
    zero = deepspeed_config(recipe, "pretrain", 32, layout)["zero_optimization"]
    assert zero == {"stage": 3, "zero_hpz_partition_size": 8}
    assert deepspeed_config(recipe, "pretrain", 32)["zero_optimization"] == {"stage": 3}


@given(st.integers(2, 40))
def test_every_machine_is_measured_with_both_neighbours_and_never_twice_at_once(count: int) -> None:
    machines = tuple(map(str, range(count)))
    rounds = ring_rounds(machines)
    pairs = [pair for some in rounds for pair in some]
    assert len(rounds) <= 3
    assert all(len({end for pair in some for end in pair}) == 2 * len(some) for some in rounds)
    expected = {frozenset((str(each), str((each + 1) % count))) for each in range(count)}
    assert len(pairs) == len(expected) and {frozenset(pair) for pair in pairs} == expected


FAST, LATE, THIN = Measured(2e-4, 1e9), Measured(5e-2, 9e8), Measured(2e-4, 1e8)


def flight(*links: tuple[str, str, Measured]) -> Preflight:
    layout = Layout(tuple("aabbccdd"[: 2 * len({end for link in links for end in link[:2]})]))
    return Preflight(layout, tuple(Link((one, other), measured) for one, other, measured in links), FAST)


@pytest.mark.parametrize("bad", [LATE, THIN])
def test_a_slow_machine_a_slow_cable_and_a_slow_network_are_told_apart(bad: Measured) -> None:
    machine = flight(("a", "b", FAST), ("b", "c", bad), ("c", "a", bad))
    assert machine.slow_machines() == ("c",)
    assert [line for line in machine.lines() if "c (ranks 4 to 5) is slow" in line and "elsewhere 0.2 ms" in line]
    assert len(machine.lines()) == 2
    cable = flight(("a", "b", FAST), ("b", "c", FAST), ("c", "d", bad), ("d", "a", FAST))
    assert cable.slow_machines() == ()
    assert "between c (ranks 4 to 5) and d (ranks 6 to 7) it is slow" in cable.lines()[1]
    evenly = flight(("a", "b", bad), ("b", "c", bad), ("c", "a", bad))
    assert evenly.slow() == () == evenly.slow_machines() and len(evenly.lines()) == 1


def test_two_machines_are_measured_and_not_judged() -> None:
    found = flight(("a", "b", LATE))
    assert found.slow() == () and len(found.lines()) == 1
    assert "4 workers on 2 machines" in found.lines()[0] and "between machines 50 ms, 0.9 GB/s" in found.lines()[0]


def test_differences_that_scheduling_makes_are_not_called_slow() -> None:
    assert flight(("a", "b", Measured(5e-5, 1e9)), ("b", "c", Measured(9e-4, 1e9)), ("c", "a", Measured(5e-5, 5e8))).slow() == ()


def test_who_does_not_answer_is_named_alone_and_a_pair_as_a_pair() -> None:
    layout = Layout(tuple("aabbcc"))
    assert missing(layout, {"a": {}, "b": {}, "c": {}}) == ""
    assert missing(layout, {"a": {}, "b": None, "c": {}}) == "b (ranks 2 to 3) did not answer Ray within the limit"
    silent = {"a": {"c": "no answer"}, "b": {"c": "refused"}, "c": {"a": "no answer", "b": "no answer"}}
    assert missing(layout, silent) == "c (ranks 4 to 5) is reached by no other machine (no answer, refused)"
    one_way = missing(layout, {"a": {"b": "refused"}, "b": {}, "c": {}})
    assert one_way == "a (ranks 0 to 1) does not reach b (ranks 2 to 3): refused"
    two = Layout(("a", "b"))
    assert missing(two, {"a": {"b": "x"}, "b": {"a": "y"}}).count("does not reach") == 2, "of two nobody knows whose fault it is"


def test_a_caller_is_answered_who_knows_the_word() -> None:
    port = listen("127.0.0.1", "word")
    assert call({"127.0.0.1": port}, "word") == {}
    assert "127.0.0.1" in call({"127.0.0.1": port}, "xxxx", limit_s=1)
    closed = listen("127.0.0.2", "word")
    assert call({"127.0.0.3": closed}, "word", limit_s=1) == {"127.0.0.3": "Connection refused"}


class Group:
    """Workers of several machines in this process: what each is asked to do is done at once, at its own loopback address."""

    def __init__(self, *addresses: str, deaf: str = "") -> None:
        self.addresses, self._deaf, self.asked, self.ended = addresses, deaf, list[str](), False

    def get_workers(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(metadata=SimpleNamespace(node_ip=address)) for address in self.addresses]

    def get_worker_group_state(self) -> SimpleNamespace:
        return SimpleNamespace(shutdown=lambda: setattr(self, "ended", True))

    def execute_single_async(self, rank: int, do: Callable[..., object], *given: object) -> object:
        self.asked.append(do.__name__)
        if self.addresses[rank] == self._deaf and do is listen:
            return 1  # a port that nobody answers at
        return do(*given)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Group]:
    """Groups that got so far that torch's process group was made, which is not made here."""
    found: list[Group] = []
    monkeypatch.setattr(rendezvous._TorchBackend, "on_start", lambda self, group, config: found.append(group))
    monkeypatch.setattr(rendezvous, "_answers", lambda asked: asked)
    monkeypatch.setattr(rendezvous, "prepare", lambda address: None)
    return found


def test_a_group_on_several_machines_looks_before_it_meets(begun: list[Group]) -> None:
    backend, config = rendezvous.OnNetwork(backend="gloo").backend_cls(), rendezvous.OnNetwork(backend="gloo")
    alone, several = Group("127.0.0.1", "127.0.0.1"), Group("127.0.0.2", "127.0.0.2", "127.0.0.3")
    backend.on_start(alone, config)
    assert alone.asked == [] and begun == [alone], "nothing is looked at on one machine"
    backend.on_start(several, config)
    assert begun == [alone, several]
    assert sorted(several.asked) == ["<lambda>"] * 3 + ["call"] * 2 + ["listen"] * 2, "one worker of each machine calls"


def test_a_group_without_a_way_does_not_meet_and_says_who(begun: list[Group]) -> None:
    config = rendezvous.OnNetwork(backend="gloo")
    group = Group("127.0.0.2", "127.0.0.3", "127.0.0.4", deaf="127.0.0.3")
    with pytest.raises(
        WorkerGroupStartupFailedError, match=r"127\.0\.0\.3 \(rank 1\) is reached by no other machine \(Connection"
    ):
        config.backend_cls().on_start(group, config)
    assert begun == [] and group.ended, "workers that stay would keep the places of the next ones"
