"""ZeRO 3 on two hosts of two workers each: with a second copy of the weights on each, the same bits as without, for less traffic.

Ranks are plain processes over gloo, on hosts with addresses of their own; what crosses the cable is counted by the kernel. Which
machine a rank believes to be on decides about the second copy (MEDSCHOOL_NODE_ADDRESS).
Run as a script this file is one such rank: `python test_secondary_partitions.py FOLDER RANK ADDRESS`.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from namespaces import Hosts

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
WORLD, STEPS, SAVED = 4, 6, 3
SETTINGS = ("pretrain.batch_rows=14", "cluster.micro_batch_tokens=128", "tokens.row_tokens=64", "pretrain.optimizer.lr=3e-3")
"""Fourteen rows in micro-batches of two: each rank takes two before an update, so that the copy is used again within a step."""
MACHINES = {"one": "aaaa", "two": "aabb"}


def rank_main(folder: Path, rank: int, address: str) -> None:
    """Train as if on one machine, as on two, and as on two again from the state that was saved half-way."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD),
        "MEDSCHOOL_CACHE": str(folder / f"c{rank}"),
    }
    import torch
    import torch.distributed as dist

    from medschool.train import network, zero

    torch.set_num_threads(1)
    network.prepare(address)
    found_by = zero.zero_options
    whole = {"stage3_param_persistence_threshold": 0}  # weights as small as these would not be dealt out at all
    zero.zero_options = lambda *given: found_by(*given) | whole
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    found = {name: train_on(folder, rank, name, machines) for name, machines in MACHINES.items()}
    found["resumed"] = train_on(folder, rank, "two", MACHINES["two"])
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def train_on(folder: Path, rank: int, name: str, machines: str) -> dict[str, Any]:
    """From the newest state of the run `name`, saving at SAVED; losses, the weights' sha256, and how the weights lay."""
    import torch.distributed as dist
    from deepspeed.utils import groups

    from medschool.cluster.invented import invented_rows, tiny_model
    from medschool.ledger import Ledger
    from medschool.recipe import load
    from medschool.tokens.order import order_of
    from medschool.tokens.stream import feed_of, read_block
    from medschool.train.checkpoint import Position, newest_whole
    from medschool.train.course import Course
    from medschool.train.engine import build_engine
    from medschool.train.loop import train
    from medschool.train.resume import load_state
    from medschool.train.saving import JOURNAL, Saver

    os.environ["MEDSCHOOL_NODE_ADDRESS"] = machines[rank]
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # DeepSpeed has one a process, as a worker has one engine
    recipe = load(ROOT / "recipes" / "quickstart.yaml", [*SETTINGS, "cluster.zero_stage=3", f"pretrain.length.steps={STEPS}"])
    made = [None, None]
    if rank == 0:
        made = [tiny_model(recipe, str(folder), None), invented_rows(recipe, str(folder), "knowledge", 200)]
    dist.broadcast_object_list(made)
    model, rows = made
    order = order_of(recipe, "knowledge", "pretrain", 5, {source: index.shard_rows for source, (_, index) in rows.items()}, {})
    run_uri = str(folder / "runs" / name)
    course = Course(recipe, "pretrain", "t", model, order, STEPS, run_uri, str(folder / "x" / name), None)
    feed = feed_of(order, rows)
    ledger = Ledger(order, feed.row_tokens, {source: rows[source][0].digest for source in order.sources}, model.digest)
    start, scratch = newest_whole(run_uri, lambda _: None), Path(tempfile.mkdtemp(dir=folder))
    engine = build_engine(course, WORLD)
    if start.state_uri:
        ledger = load_state(engine, start, ledger, rank, scratch, lambda _: None)
    else:
        (scratch / JOURNAL).touch()
    batches, losses, copies = (read_block(feed, batch, rank, WORLD) for batch in range(start.batch_index, STEPS)), [], 0
    watched = engine.module.model.layers[0].mlp.up_proj.weight
    gather = watched.all_gather_coalesced

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal copies
        copies += watched.ds_secondary_tensor is not None
        return gather(*given, **named)

    watched.all_gather_coalesced = counted
    dist.barrier()
    sent = sent_bytes()
    for step in train(engine, batches, order, start.batch_index, start.step):
        ledger = ledger.after(step.batch, step.rows)
        losses.append(step.loss)
        if step.step == SAVED and not start.state_uri:
            with Saver(engine, course, rank, WORLD, scratch, print) as saver:
                saver.save(Position(step.batch + 1, step.step), ledger)
            dist.barrier()
    dist.barrier()
    sent = sent_bytes() - sent
    group = groups._get_zero_param_intra_parallel_group_ranks() if engine.zero_hpz_partition_size() > 1 else []
    return {
        "begun": start.step,
        "losses": losses,
        "sha256": sha256_of(engine),
        "partition": engine.zero_hpz_partition_size(),
        "group": list(group),
        "copies": copies,
        "sent": sent,
    }


def sent_bytes() -> int:
    """That this host has put on its cable."""
    return int(Path("/sys/class/net/cable/statistics/tx_bytes").read_text())


def sha256_of(engine: Any) -> str:
    import hashlib

    import deepspeed
    import torch

    digest = hashlib.sha256()
    for weight in engine.module.parameters():
        with deepspeed.zero.GatheredParameters([weight]):
            digest.update(weight.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of each rank, what it saw in the three trainings."""
    folder = tmp_path_factory.mktemp("secondary")
    with Hosts(2) as hosts:
        ranks = [
            hosts.start(
                rank // 2,
                [sys.executable, __file__, str(folder), str(rank), hosts.addresses[rank // 2]],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for rank in range(WORLD)
        ]
        told = [rank.communicate(timeout=1500)[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(text[-3000:] for text in told)
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(WORLD)]


def test_each_machine_gathers_from_its_own_workers(found: list[dict[str, Any]]) -> None:
    assert [of["two"]["group"] for of in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert all(of["two"]["partition"] == 2 and of["one"]["partition"] == 1 for of in found)
    assert all(of["two"]["copies"] > 0 and of["one"]["copies"] == 0 for of in found), "the second copy was never gathered from"


def test_less_crosses_the_network(found: list[dict[str, Any]]) -> None:
    without, with_copy = (sum(of[name]["sent"] for of in found[::2]) for name in ("one", "two"))
    print(
        f"{without / 1e6:.2f} MB sent by both hosts in {STEPS} steps of two micro-batches, {with_copy / 1e6:.2f} MB with the copy"
    )
    assert with_copy < 0.75 * without


def test_not_one_bit_changes_and_a_resume_neither(found: list[dict[str, Any]]) -> None:
    for of in found:
        assert len(of["one"]["losses"]) == STEPS and of["one"]["losses"][0] - of["one"]["losses"][-1] > 0.01
        assert of["two"]["losses"] == of["one"]["losses"] and of["two"]["sha256"] == of["one"]["sha256"]
        assert of["resumed"]["begun"] == SAVED and of["resumed"]["losses"] == of["one"]["losses"][SAVED:]
        assert of["resumed"]["sha256"] == of["one"]["sha256"]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    rank_main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
