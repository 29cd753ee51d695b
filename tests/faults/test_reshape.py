"""A state saved by some ranks and loaded by others: equal to the last bit, and the steps that follow equal to rounding.

The oracle is the run that never stopped: what its ranks held when the state was saved, and its losses. Ranks are plain processes
over gloo, without Ray; what they call is what a training worker calls. Run as a script this file is one such rank:
`python test_reshape.py FOLDER RANK WORLD_SIZE`.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SAVED, STEPS = 4, 10
SETTINGS = ("pretrain.batch_rows=14", "cluster.micro_batch_tokens=128", "tokens.row_tokens=64", "pretrain.optimizer.lr=3e-3")
"""Fourteen rows: four ranks do not divide them, so that the last one is padded."""


@dataclass(frozen=True)
class Case:
    """One training: by how many ranks, at which stage and precision, from which saved state on."""

    world: int
    stage: int
    dtype: str
    saved_by: int = 0
    """Ranks that saved the state that this one begins from; 0 for one that never stopped."""

    @property
    def name(self) -> str:
        return f"{self.world}-z{self.stage}-{self.dtype}-from{self.saved_by}"


def group(folder: Path, cases: list[Case]) -> None:
    """Run cases of one world size in one process group; what each rank saw is in `folder`/<case>/<rank>.npz."""
    world = cases[0].world
    (folder / f"cases-{world}.json").write_text(json.dumps([asdict(case) for case in cases]))
    (folder / f"meet-{world}").unlink(missing_ok=True)
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank), str(world)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    told = [rank.communicate(timeout=1500)[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(text[-3000:] for text in told)


def rank_main(folder: Path, rank: int, world: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MEDSCHOOL_CACHE": str(folder / f"cache{rank}"),
    }
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    for case in json.loads((folder / f"cases-{world}.json").read_text()):
        train_case(folder, Case(**case), rank)
    dist.barrier()
    dist.destroy_process_group()


def train_case(folder: Path, case: Case, rank: int) -> None:
    """Train as a worker does; a run that never stopped saves its state at SAVED."""
    import tempfile

    import torch.distributed as dist

    from medschool.cluster.invented import invented_rows, tiny_model
    from medschool.ledger import Ledger
    from medschool.recipe import load
    from medschool.tokens.order import order_of
    from medschool.tokens.stream import feed_of, read_block
    from medschool.train import reshape, resume
    from medschool.train.checkpoint import Position, newest_whole
    from medschool.train.course import Course
    from medschool.train.engine import build_engine
    from medschool.train.loop import train
    from medschool.train.resume import load_state
    from medschool.train.saving import JOURNAL, Saver

    recipe = load(
        ROOT / "recipes" / "quickstart.yaml",
        [*SETTINGS, f"cluster.zero_stage={case.stage}", f"model.dtype={case.dtype}", f"pretrain.length.steps={STEPS}"],
    )
    made = [None, None]
    if rank == 0:
        made = [tiny_model(recipe, str(folder), None), invented_rows(recipe, str(folder), "knowledge", 200)]
    dist.broadcast_object_list(made)
    model, rows = made
    order = order_of(recipe, "knowledge", "pretrain", 5, {name: index.shard_rows for name, (_, index) in rows.items()}, {})
    whole = replace(case, world=case.saved_by or case.world, saved_by=0)
    run_uri = str(folder / "runs" / whole.name)
    course = Course(recipe, "pretrain", "t", model, order, STEPS, run_uri, str(folder / "x" / case.name), None)
    feed = feed_of(order, rows)
    ledger = Ledger(order, feed.row_tokens, {name: rows[name][0].digest for name in order.sources}, model.digest)
    start = newest_whole(run_uri, lambda _: None) if case.saved_by else Position()
    assert start.step == (SAVED if case.saved_by else 0)
    scratch = Path(tempfile.mkdtemp(dir=folder))
    engine = build_engine(course, case.world)
    losses, held = [], {}
    if case.saved_by:
        if case.saved_by == case.world:  # nothing needs it; it must not harm
            resume.needs_reshape = lambda *_: case.stage > 0  # type: ignore[assignment]
        else:
            resume.needs_reshape = reshape.needs_reshape
        ledger = load_state(engine, start, ledger, rank, scratch, lambda _: None)
        held = state_of(engine)
    else:
        (scratch / JOURNAL).touch()
    batches = (read_block(feed, batch, rank, case.world) for batch in range(start.batch_index, STEPS))
    lrs = []
    for step in train(engine, batches, order, start.batch_index, start.step):
        ledger = ledger.after(step.batch, step.rows)
        losses.append(step.loss)
        lrs.append(step.lr)
        if step.step == SAVED and not case.saved_by:
            held = state_of(engine)
            with Saver(engine, course, rank, case.world, scratch, print) as saver:
                saver.save(Position(step.batch + 1, step.step), ledger)
    end = state_of(engine)
    out = folder / case.name
    out.mkdir(exist_ok=True)
    np.savez(
        out / f"{rank}.npz",
        losses=losses,
        lrs=lrs,
        counter=engine.global_steps,
        **held,
        **{f"end/{key}": value for key, value in end.items()},
    )


def state_of(engine: Any) -> dict[str, np.ndarray]:
    """What the engine holds, whole, on every rank: the working weights, the fp32 weights, both moments, Adam's count."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    found = {}
    for name, weight in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([weight], enabled=hasattr(weight, "ds_id")):
            found[f"working/{name}"] = weight.detach().float().numpy().copy()
        if engine.zero_optimization_stage() > 0:
            found[f"fp32/{name}"] = safe_get_full_fp32_param(weight).detach().numpy().copy()
            for moment in ("exp_avg", "exp_avg_sq"):
                found[f"{moment}/{name}"] = safe_get_full_optimizer_state(weight, moment).detach().float().numpy().copy()
    counts = (
        {float(state["step"]) for state in engine.optimizer.optimizer.state.values()}
        if engine.zero_optimization_stage()
        else {0.0}
    )
    assert len(counts) == 1, counts
    return found | {"count": np.array(counts.pop())}


def seen(folder: Path, case: Case, rank: int = 0) -> dict[str, np.ndarray]:
    return dict(np.load(folder / case.name / f"{rank}.npz"))


KINDS = [(1, "fp32"), *((stage, "fp32") for stage in (0, 2, 3)), *((stage, "bf16") for stage in (0, 1, 2, 3))]
PAIRS = [(2, 1), (1, 2), (2, 2), (4, 2), (2, 4)]
"""(Ranks that saved, ranks that load); two that load what two saved go through the joined form as well."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Every run that never stopped, then every one that began from its state: one process group for each number of ranks."""
    some = 1 if "not long" in request.config.option.markexpr else None
    folder, kinds, pairs = tmp_path_factory.mktemp("reshape"), KINDS[:some], PAIRS[:some]
    for world in sorted({saved for saved, _ in pairs}):
        group(folder, [Case(world, *kind) for kind in kinds])
    for world in sorted({loads for _, loads in pairs}):
        group(folder, [Case(world, *kind, saved) for kind in kinds for saved, loads in pairs if loads == world])
    return folder


def first_is_short(cases: list[tuple[Any, ...]]) -> list[Any]:
    return [cases[0], *(pytest.param(*case, marks=pytest.mark.long) for case in cases[1:])]


@pytest.mark.parametrize(("stage", "dtype"), first_is_short(KINDS))
@pytest.mark.parametrize(("saved", "loads"), first_is_short(PAIRS))
def test_not_one_bit_changes_and_the_next_steps_are_those_of_the_run_that_never_stopped(
    trained: Path, stage: int, dtype: str, saved: int, loads: int
) -> None:
    whole, again = seen(trained, Case(saved, stage, dtype)), seen(trained, Case(loads, stage, dtype, saved))
    held = [name for name in again if name.split("/")[0] in ("working", "fp32", "exp_avg", "exp_avg_sq", "count")]
    assert len(held) > 20 and (
        stage == 0 or any(np.abs(again[name]).max() > 0 for name in held if name.startswith("exp_avg_sq/"))
    )
    for name in held:
        assert np.array_equal(whole[name], again[name]), f"{name}: {np.abs(whole[name] - again[name]).max()}"
    assert np.array_equal(whole["lrs"][SAVED:], again["lrs"]) and whole["counter"] == again["counter"] == STEPS
    expected, found = whole["losses"][SAVED:], again["losses"]
    assert len(found) == STEPS - SAVED and np.abs(found - expected).max() / expected.min() < 1e-4
    assert whole["losses"][0] - whole["losses"][-1] > 0.01, "nothing was learnt, so nothing was proven"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    rank_main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
