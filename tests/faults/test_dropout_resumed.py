"""A resumed run draws the random numbers that the uninterrupted one would have drawn: dropout, over two ranks, bit by bit.

The oracle is the run that never stopped. A third run resumes without the saved generators, and must differ: else dropout was off.
Run as a script this file is one rank: `python test_dropout_resumed.py FOLDER RANK`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SAVED, STEPS, WORLD = 2, 4, 2
SETTINGS = (
    "pretrain.batch_rows=8",
    "cluster.micro_batch_tokens=128",
    "tokens.row_tokens=64",
    "model.dtype=fp32",
    "cluster.zero_stage=2",
)
LORA = "pretrain.lora={rank: 4, alpha: 8, dropout: 0.5}"


@pytest.mark.long
def test_dropout_goes_on_where_it_was(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path), str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in range(WORLD)
    ]
    told = [rank.communicate(timeout=500)[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(text[-3000:] for text in told)
    losses, weights = {}, {}
    for run in ("whole", "resumed", "unrestored"):
        found = [json.loads((tmp_path / f"{run}-{rank}.json").read_text()) for rank in range(WORLD)]
        losses[run], weights[run] = found[0]["losses"], [each["weights"] for each in found]
    assert len(losses["whole"]) == STEPS and losses["resumed"] == losses["whole"][SAVED:]
    assert weights["resumed"] == weights["whole"]
    assert losses["unrestored"] != losses["resumed"] and weights["unrestored"] != weights["whole"], "dropout drew nothing"


def main(folder: Path, rank: int) -> None:
    import torch
    import torch.distributed as dist

    from medschool.cluster.invented import invented_rows, tiny_model
    from medschool.recipe import load

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    recipe = load(Path(__file__).parents[2] / "recipes" / "quickstart.yaml", [*SETTINGS, LORA, f"pretrain.length.steps={STEPS}"])
    made: list[Any] = [None, None]
    if rank == 0:
        made = [tiny_model(recipe, str(folder), None), invented_rows(recipe, str(folder), "knowledge", 200)]
    dist.broadcast_object_list(made)
    for run in ("whole", "resumed", "unrestored"):
        (folder / f"{run}-{rank}.json").write_text(json.dumps(train_once(folder, run, recipe, *made, rank)))
        dist.barrier()
    dist.destroy_process_group()


def train_once(folder: Path, run: str, recipe: Any, model: Any, rows: Any, rank: int) -> dict[str, Any]:
    """Train to the end; the run that never stops saves its state on the way."""
    import hashlib

    from medschool.ledger import Ledger
    from medschool.tokens.order import order_of
    from medschool.tokens.stream import feed_of, read_block
    from medschool.train import resume
    from medschool.train.checkpoint import Position, newest_whole
    from medschool.train.course import Course
    from medschool.train.engine import build_engine
    from medschool.train.identity import check_resumable
    from medschool.train.loop import train
    from medschool.train.saving import JOURNAL, Saver

    order = order_of(recipe, "knowledge", "pretrain", 5, {name: index.shard_rows for name, (_, index) in rows.items()}, {})
    course = Course(recipe, "pretrain", "t", model, order, STEPS, str(folder / "run"), str(folder / "x"), None)
    feed = feed_of(order, rows)
    ledger = Ledger(order, feed.row_tokens, {name: rows[name][0].digest for name in order.sources}, model.digest)
    start = Position() if run == "whole" else newest_whole(course.run_uri, lambda _: None)
    assert start.step == (0 if run == "whole" else SAVED)
    scratch = folder / f"{run}-{rank}"
    scratch.mkdir()
    check_resumable(start, course, ledger)
    engine = build_engine(course, WORLD)
    if start.state_uri:
        if run == "unrestored":
            resume.restore = lambda data: None
        ledger = resume.load_state(engine, start, ledger, rank, scratch, print)
    else:
        (scratch / JOURNAL).touch()
    batches = (read_block(feed, batch, rank, WORLD) for batch in range(start.batch_index, STEPS))
    losses = []
    with Saver(engine, course, rank, WORLD, scratch, print) as saver:
        for step in train(engine, batches, order, start.batch_index, start.step):
            ledger = ledger.after(step.batch, step.rows)
            losses.append(step.loss)
            if run == "whole" and step.step == SAVED:
                saver.save(Position(step.batch + 1, step.step), ledger)
    trained = [weight.detach() for weight in engine.module.parameters() if weight.requires_grad]
    digest = hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in trained)).hexdigest()
    return {"losses": losses, "weights": digest}


if __name__ == "__main__":
    os.environ |= {
        "RANK": sys.argv[2],
        "LOCAL_RANK": sys.argv[2],
        "WORLD_SIZE": str(WORLD),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    main(Path(sys.argv[1]), int(sys.argv[2]))
