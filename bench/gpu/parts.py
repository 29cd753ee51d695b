"""One part of all.sh: measured, and written as one line of a file of JSON lines with the device, versions and commit.

    mfu_zero1..3   a 1.2-billion LLaMA in bf16 on packed rows of 2,048 tokens through the whole of training: MFU, tokens/s, memory
    drill_zero3    `medschool drill resume` at ZeRO 3, one kill
    memory         what those trainings held at most, beside what `medschool plan` foretells for them
    fsdp           torch's fully_shard over the same rows, and our loop without Ray: the same card, the same losses
    eight_rows     the eight variants of eight_rows.yaml under three orders of the data
    serving        tokens/s and seconds to the first token of the serving engine at 1, 8 and 32 answers at once

`python bench/gpu/parts.py PART RESULTS [--tiny]`. A part that fails raises, and writes nothing. At --tiny all of it runs on CPUs
with a model of 0.1 million parameters.
"""

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests")]

from side_by_side import in_fresh_process, machine  # noqa: E402
from small_run import BILLION, ENVIRONMENT, TINY, journal_of, own_ray, run_ours, setting, write_store  # noqa: E402
from training import torchrun  # noqa: E402

WARM = 5


def sizes(tiny: bool) -> dict[str, Any]:
    return (
        {"shape": TINY, "row_tokens": 64, "batch_rows": 8, "micro_rows": 4, "steps": 8, "gpus": 0}
        if tiny
        else {"shape": BILLION, "row_tokens": 2048, "batch_rows": 32, "micro_rows": 4, "steps": 25, "gpus": 1}
    )


def cluster_of(size: dict[str, Any], zero_stage: int) -> dict[str, Any]:
    return {
        "num_workers": 1, "gpus_per_worker": size["gpus"], "zero_stage": zero_stage, "checkpoint_every_steps": 10**6,
        "micro_batch_tokens": size["micro_rows"] * size["row_tokens"],
    }  # fmt: skip


def store_of(folder: Path, size: dict[str, Any]) -> Path:
    rows = size["batch_rows"] * size["steps"]
    return in_fresh_process(write_store, folder / "store", size["shape"], "bf16", size["row_tokens"], rows)


def mfu(zero_stage: int, folder: Path, size: dict[str, Any]) -> dict[str, Any]:
    """Medians over the steps after the warm-up. MFU is missing where the device's peak is not known (a CPU)."""
    store = store_of(folder, size)
    course, rows = setting(store, "mfu", "bf16", size["steps"], size["batch_rows"], cluster_of(size, zero_stage))
    with own_ray(8, size["gpus"]):
        made = run_ours(course, rows, print)
    points = journal_of(made, course)[WARM:]
    found = {
        name: float(np.median([point[name] for point in points]))
        for name in ("tokens_per_s", "mfu", "step_s")
        if name in points[0]
    }
    peaks = [point["accelerator_peak_bytes"] for point in points if "accelerator_peak_bytes" in point]
    return found | {"peak_bytes": max(peaks, default=None), "loss_last": points[-1]["loss"], "proof": made.facts["proof"]}


def drill(folder: Path, size: dict[str, Any]) -> dict[str, Any]:
    """The product's own command, on invented rows."""
    gpus = [] if not size["gpus"] else ["--set", "cluster.gpus_per_worker=1"]
    command = [
        sys.executable, "-m", "medschool.cli", "drill", "resume", str(ROOT / "recipes" / "quickstart.yaml"), "--tiny", "--json",
        "--kills", "1", "--world-sizes", "1", "--set", "cluster.zero_stage=3", *gpus,
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    print(ran.stdout, ran.stderr)
    found: dict[str, Any] = json.loads(ran.stdout[ran.stdout.index("{") :])
    return found


def memory(results: Path, tiny: bool) -> dict[str, Any]:
    """Peaks of the trainings above, and the plan's."""
    from medschool.cluster.memory import training_memory
    from medschool.recipe.cluster import Cluster
    from medschool.recipe.training import Shape

    size = sizes(tiny)
    peaks = {line["part"]: line["result"]["peak_bytes"] for line in lines_of(results, tiny) if line["part"].startswith("mfu_")}
    if not peaks:
        raise RuntimeError("no training has been measured: run the parts mfu_zero1 to mfu_zero3 first")
    found: dict[str, Any] = {}
    for part, peak in peaks.items():
        spec = Cluster.model_validate(cluster_of(size, int(part[-1])))
        foretold = training_memory(Shape(**vars(size["shape"])), spec, "bf16", spec.micro_batch_tokens, size["row_tokens"], 1)
        found[part] = {"peak_bytes": peak, "plan": vars(foretold), "peak_to_plan": peak and peak / foretold.peak_bytes}
    return found


def fsdp(folder: Path, size: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second of loops without Ray, and whether their first loss is ours; torchtitan where it is installed."""
    store = store_of(folder, size)
    found: dict[str, Any] = {"torchtitan": "not compared" if importlib.util.find_spec("torchtitan") else "not installed"}
    for arm in ("deepspeed", "fsdp"):
        spec = {"name": arm, "dtype": "bf16", "steps": size["steps"], "batch_rows": size["batch_rows"]}
        spec["cluster"] = cluster_of(size, 1)
        ran = subprocess.run(torchrun(arm, store, spec, 1), capture_output=True, text=True, check=False)
        points = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
        steps = [point for point in points if "step" in point]
        if ran.returncode:
            raise RuntimeError(ran.stderr[-3000:])
        seconds = steps[-1]["time_s"] - steps[WARM - 1]["time_s"]
        found[arm] = {
            "tokens_per_s": (len(steps) - WARM) * size["batch_rows"] * size["row_tokens"] / seconds,
            "loss_first": steps[0]["loss"], "loss_last": steps[-1]["loss"],
            "peak_bytes": next((point["peak_bytes"] for point in points if "peak_bytes" in point), None),
        }  # fmt: skip
    return found | {"deepspeed_to_fsdp": found["deepspeed"]["tokens_per_s"] / found["fsdp"]["tokens_per_s"]}


def eight_rows(folder: Path, tiny: bool) -> dict[str, Any]:
    """The whole study, stage by stage, in MEDSCHOOL_STORE: what is finished there is not made again."""
    from jobs.run import Run
    from jobs.study import study
    from medschool import storage
    from medschool.board import printing
    from medschool.recipe import load

    if tiny:
        from tiny import write_raw

        store, recipe = folder / "store", write_raw(folder / "store")
        settings = ["train_seeds=[3]", "search=null", "instruct.length.steps=2", "pretrain.length.steps=3", "probes=null"]
    else:
        store, recipe, settings = Path(os.environ["MEDSCHOOL_STORE"]), Path(__file__).with_name("eight_rows.yaml"), []
    began = time.time()
    with own_ray(8 if tiny else os.cpu_count() or 8, 0 if tiny else 1), printing(print) as board:
        run = Run(load(recipe, settings), str(store), board)
        for kind in ("model", "tokenizer", "exams", "instructions", "corpus", "tokens", "overlap", "withheld", "chats"):
            run.make(kind)
        if run.recipe.near_duplicates:
            run.make("duplicates")
        study(run)
        run.make("verdict")
        made = run.artifact("verdict")
        files = {
            file.path: json.loads(storage.read_bytes(made.uri(file.path))) for file in made.files if file.path.endswith(".json")
        }
    return {"seconds": time.time() - began, "facts": made.facts, "files": files}


def serving(folder: Path, size: dict[str, Any]) -> dict[str, Any]:
    """Greedy answers of 128 tokens to prompts of 128; every number of them at once after one answer to warm up."""
    from medschool.serve.engine import Sampling
    from medschool.serve.paged import TransformersEngine

    store = store_of(folder, size)
    length, numbers = (16, (1, 4)) if not size["gpus"] else (128, (1, 8, 32))
    engine = TransformersEngine(store / "raw" / "models" / "small", [], 2 * length, max(numbers), "bf16")
    draw = np.random.default_rng(0)

    async def one() -> tuple[float, float, int]:
        began, first, count = time.perf_counter(), 0.0, 0
        async for step in engine.generate(draw.integers(3, 1000, length).tolist(), Sampling(length)):
            count += len(step.tokens)
            first = first or time.perf_counter() - began
        return first, time.perf_counter() - began, count

    async def together(number: int) -> list[tuple[float, float, int]]:
        return await asyncio.gather(*(one() for _ in range(number)))

    async def everything() -> dict[str, Any]:
        await one()
        found = {}
        for number in numbers:
            began = time.perf_counter()
            answers = await together(number)
            seconds = time.perf_counter() - began
            firsts = [first for first, _, _ in answers]
            tokens = sum(count for _, _, count in answers)
            found[str(number)] = {"tokens_per_s": tokens / seconds, "first_token_s": float(np.median(firsts)), "tokens": tokens}
        return found

    try:
        return asyncio.run(everything())
    finally:
        engine.stop()


def lines_of(results: Path, tiny: bool) -> list[dict[str, Any]]:
    """Results of this size."""
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    return [line for line in lines if line["tiny"] == tiny]


def about() -> dict[str, Any]:
    """The device, versions and commit that a result is of."""
    import torch

    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "commit": commit.stdout.strip(),
        **machine("medschool", "torch", "deepspeed", "transformers", "ray"),
    }


def measure(part: str, results: Path, folder: Path, tiny: bool) -> dict[str, Any]:
    size = sizes(tiny)
    if part.startswith("mfu_zero"):
        return mfu(int(part[-1]), folder, size)
    if part == "memory":
        return memory(results, tiny)
    if part == "eight_rows":
        return eight_rows(folder, tiny)
    return {"drill_zero3": drill, "fsdp": fsdp, "serving": serving}[part](folder, size)


def main(words: list[str]) -> None:
    tiny, asked = "--tiny" in words, [word for word in words if not word.startswith("--")]
    part, results = asked[0], Path(asked[1])
    folder = Path(tempfile.mkdtemp(prefix="ms-gpu-", dir="/tmp"))
    os.environ.update(ENVIRONMENT | {"MEDSCHOOL_CACHE": str(folder / "cache")} | ({"DS_ACCELERATOR": "cpu"} if tiny else {}))
    os.environ["PYTHONPATH"] += os.pathsep + str(ROOT / "tests")
    began = time.time()
    try:
        result = measure(part, results, folder, tiny)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    line = {"part": part, "tiny": tiny, "result": result, "seconds": round(time.time() - began, 1), **about()}
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
