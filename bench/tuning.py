"""Trained tokens a second of medschool's packed instruction tuning, beside trainers that fill conversations up to equal length.

A LLaMA of 15 million parameters, rows of 512 tokens, two processes. Conversations are invented: a question and an answer of
random tokens, log-normal lengths, 250 tokens together in the mean, a fifth of them trained (MedC-I has some 320 a conversation).

    ours     conversations packed by medschool into rows: Ray Train, Ray Data, ZeRO 1, journal shipped to MLflow
    chunks   the same with cluster.loss_chunk_tokens, which spares memory and costs a second pass through the output head
    padded   transformers' Trainer, one conversation a row, a micro-batch filled up to its longest one
    sorted   the same, the conversations of a step in order of length, which leaves little to fill up
    trl      TRL's SFTTrainer, as padded; its output head works in chunks

The output head of both arms of ours sees trained tokens alone.

Every step of every arm trains on the same conversations, from the same weights, with the same optimizer and schedule. Their mean
loss of a trained token is compared before any speed is: in fp32 the first five steps agree within 1e-4; in bf16 the others keep
fp32 weights under autocast, so the difference is printed. TRL is no dependency: it is left out, with a line, where it is missing.

Each run is a fresh process group; arms take turns. `trained/s` counts the tokens of answers, on which alone there is a loss;
`all/s` every token that goes through the model, filling included. Both are over the steps after the warm-up, by the clock of
rank 0.
Medians, and for ratios a 95% interval of bootstrapped medians; above 1 is good for ours.

`python bench/tuning.py [--reps 2] [--steps 14] [--warm 4] [--dtypes fp32] [--arms ...] [--tiny]`: some six minutes on two cores.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from chat_loops import filled, micro_batches
from side_by_side import in_fresh_process, interval, machine, spread
from small_run import ENVIRONMENT, SMALL, TINY, Shape, batches_of, setting, write_model, write_rows
from training import BATCH_ROWS, COMPARED, EQUAL, WORKERS, cluster_of, ours, theirs

ARMS = ("ours", "chunks", "padded", "sorted", "trl")
OURS: dict[str, dict[str, int]] = {"ours": {}, "chunks": {"loss_chunk_tokens": 512}}


def write_chats(folder: Path, shape: Shape, row_tokens: int, rows: int) -> Path:
    """A store with a random model and at least `rows` packed rows of invented conversations, in random order; the folder."""
    from medschool.tokens.pack import Rows, pack_whole

    write_model(folder, shape, "fp32")
    draw, kind = np.random.default_rng(0), np.dtype(np.uint16)
    chats, need = list[tuple[np.ndarray, np.ndarray]](), rows * row_tokens
    while need > 0:
        answer = int(np.clip(draw.lognormal(np.log(40 * row_tokens / 512), 1.0), 2, row_tokens // 2))
        question = int(np.clip(draw.lognormal(np.log(150 * row_tokens / 512), 0.8), 4, row_tokens - answer))
        tokens = draw.integers(3, shape.vocab_size, question + answer).astype(kind)
        chats.append((tokens, np.arange(len(tokens)) >= question))
        need -= len(tokens)
    packed = pack_whole([f"chat-{number}" for number in range(len(chats))], chats, row_tokens, 2, kind)
    order = draw.permutation(len(packed.tokens)).tolist()
    mixed = Rows(
        packed.tokens[order], packed.trained[order], [packed.doc_ids[row] for row in order],
        [packed.doc_lengths[row] for row in order], 0, len(chats),
    )  # fmt: skip
    return write_rows(folder, mixed, kind)


def counted(store: Path, steps: int) -> dict[str, list[int]]:
    """For each step: tokens that are trained, tokens of conversations, and the tokens that each arm takes through the model."""
    row_tokens = json.loads((store / "rows" / "about.json").read_text())["row_tokens"]
    os.environ["MEDSCHOOL_CACHE"] = str(store / "cache")
    course, rows = setting(store, "counted", "fp32", steps, BATCH_ROWS, cluster_of(row_tokens, 10))
    plain, ordered = (micro_batches(course, rows, WORKERS, way) for way in (False, True))
    shapes = {name: [sum(filled(part)["input_ids"].numel() for part in step) for step in way] for name, way in
              (("padded", plain), ("sorted", ordered))}  # fmt: skip
    packed = [table.num_rows * row_tokens for table in batches_of(course, rows, 0, 1)]
    return {
        "trained": [sum(label >= 0 for part in step for _, labels in part for label in labels) for step in plain],
        "real": [sum(len(ids) for part in step for ids, _ in part) for step in plain],
        **{arm: packed for arm in OURS},
        **shapes,
        "trl": shapes["padded"],
    }


def figures(arm: str, store: Path, name: str, dtype: str, asked: argparse.Namespace, counts: dict[str, list[int]]) -> Any:
    """One run of one arm: losses, trained tokens a second, all tokens a second."""
    spec = (store, name, dtype, asked.steps, asked.warm)
    found = in_fresh_process(ours, *spec, OURS[arm]) if arm in OURS else in_fresh_process(theirs, arm, *spec, "chat_loops.py")
    seconds = found["times_s"][-1] - found["times_s"][asked.warm - 1]
    rates = {"trained/s": sum(counts["trained"][asked.warm :]) / seconds, "all/s": sum(counts[arm][asked.warm :]) / seconds}
    return found | rates


def compare_losses(arm: str, found: list[float], reference: list[float], dtype: str) -> None:
    """Print the largest relative difference of the first losses from ours; stop where it may not be."""
    largest = max(abs(one - other) / other for one, other in zip(found[:COMPARED], reference, strict=False))
    print(f"  {arm}: loss of a trained token differs from ours by at most {largest:.1e}")
    if dtype == "fp32" and not largest < EQUAL:
        raise SystemExit(f"{arm} trains something else: {found[:COMPARED]} against {reference[:COMPARED]}")


def bench(store: Path, dtype: str, asked: argparse.Namespace) -> None:
    arms = [arm for arm in ARMS if arm in asked.arms.split(",")]
    counts = in_fresh_process(counted, store, asked.steps)
    share = sum(counts["trained"]) / sum(counts["real"])
    told = {arm: f"{1 - sum(counts['real']) / sum(counts[arm]):.0%}" for arm in arms}
    print(f"{share:.0%} of the conversations' tokens are trained; filling: {json.dumps(told)}")
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for rep in range(asked.reps):
        for arm in arms[rep % len(arms) :] + arms[: rep % len(arms)]:
            found[arm].append(figures(arm, store, f"{dtype}-{arm}-{rep}", dtype, asked, counts))
            if rep == 0:
                compare_losses(arm, found[arm][0]["losses"], found["ours"][0]["losses"], dtype)
        now = {arm: round(runs[-1]["trained/s"]) for arm, runs in found.items()}
        print(f"{dtype} rep {rep} (load {os.getloadavg()[0]:.1f}): trained tokens/s {json.dumps(now)}", flush=True)
    for arm, runs in found.items():
        for name in ("trained/s", "all/s"):
            print(f"  {arm:<8} {name:<10} {spread([run[name] for run in runs])}")
    for arm in arms[1:]:
        ratio, low, high = interval(*([run["trained/s"] for run in found[one]] for one in ("ours", arm)))
        print(f"  ours against {arm:<8} trained/s  {ratio:.3f} [{low:.3f}, {high:.3f}]", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reps", type=int, default=2)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--warm", type=int, default=4, help="steps before the clock starts")
    parser.add_argument("--dtypes", default="fp32")
    parser.add_argument("--arms", default=",".join(ARMS), help="beside ours, which always runs")
    parser.add_argument("--tiny", action="store_true", help="a model of 0.1 million parameters and rows of 128 tokens: a trial")
    asked = parser.parse_args()
    asked.arms = f"ours,{asked.arms}"
    libraries = ["ray", "torch", "deepspeed", "transformers", "accelerate"]
    if importlib.util.find_spec("trl"):
        libraries.append("trl")
    else:
        asked.arms = asked.arms.replace("trl", "")
        print("trl: left out, it is not installed (pip install --no-deps --target FOLDER trl, and PYTHONPATH=FOLDER)")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    searched = [ENVIRONMENT["PYTHONPATH"], os.environ.get("PYTHONPATH", "")]
    os.environ.update(ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, searched))})
    folder = Path(tempfile.mkdtemp(prefix="ms-bench-", dir="/tmp"))
    try:
        print(json.dumps(machine(*libraries) | {"load": os.getloadavg()}))
        shape, row_tokens = (TINY, 128) if asked.tiny else (SMALL, 512)
        for dtype in asked.dtypes.split(","):
            store = in_fresh_process(write_chats, folder / dtype, shape, row_tokens, BATCH_ROWS * asked.steps)
            bench(store, dtype, asked)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
