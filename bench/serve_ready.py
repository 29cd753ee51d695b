"""Seconds until the embedded engine answers, on a warm cluster with the weights on this disk: from `deploy` to the first token.

    process    a fresh Python that loads the same folder with transformers and writes one token: what no server can go below
    replica    `deploy` on a Ray that runs, Serve started before, weights in the node's cache: until an answer of one token came

Warm: Ray, Serve and its proxy run, and the page cache holds the weights, for both arms. They take turns. Aim: at most 20 s, and
nothing is asserted. Without --model the random model of serve_throughput.py is served.

`python bench/serve_ready.py [--model FOLDER] [--dtype bf16] [--reps 5]`
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from serve_latency import KEY, free_port
from serve_throughput import random_model
from side_by_side import in_fresh_process, interval, machine, spread
from small_run import ENVIRONMENT, own_ray

from medschool.cluster.ray_head import SERVE

PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[sys.argv[2]])
model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=1, do_sample=False)
"""


def process_s(folder: Path, dtype: str) -> float:
    start_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", PLAIN, str(folder), dtype], check=True, capture_output=True)
    return time.perf_counter() - start_s


def replica_s(manifest_uri: str, dtype: str, port: int, rep: int) -> float:
    """A version of its own each time, so that nothing is left running; Serve and its proxy stay."""
    from ray import serve

    from medschool.serve.keys import hash_key
    from medschool.serve.on_ray import APP_NAME, ChatArgs, deploy

    args = ChatArgs(model=manifest_uri, dtype=dtype, api_key_sha256=(hash_key(KEY),), max_context_tokens=512)
    start_s = time.perf_counter()
    url = deploy(args, port)
    body = {"model": "medschool", "prompt": f"The heart {rep}", "max_tokens": 1}
    answer = httpx.post(f"{url}/v1/completions", json=body, headers={"authorization": f"Bearer {KEY}"}, timeout=60)
    seconds = time.perf_counter() - start_s
    answer.raise_for_status()
    serve.delete(APP_NAME)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--reps", type=int, default=5)
    told = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ms-bench-", dir="/tmp"))
    os.environ.update(ENVIRONMENT | SERVE | {"MEDSCHOOL_CACHE": str(folder / "cache")})
    print(json.dumps(machine("ray", "torch", "transformers") | {"load": os.getloadavg()}))
    try:
        model = (told.model or folder / "model").resolve()
        if not told.model:
            in_fresh_process(random_model, model)
        from medschool import artifact

        def upload(prefix: str) -> artifact.Output:
            return artifact.Output(artifact.upload_folder(prefix, model, "export"))

        made = artifact.make(str(folder / "store"), "train", "0" * 16, {}, upload)
        found: dict[str, list[float]] = {"process": [], "replica": []}
        with own_ray(8):
            port = free_port()
            replica_s(made.manifest_uri, told.dtype, port, 0)  # starts Serve, fills the node's cache
            process_s(model, told.dtype)
            for rep in range(told.reps):
                found["process"].append(process_s(model, told.dtype))
                found["replica"].append(replica_s(made.manifest_uri, told.dtype, port, rep))
                now = {arm: round(values[-1], 1) for arm, values in found.items()}
                print(f"rep {rep} (load {os.getloadavg()[0]:.1f}): s {json.dumps(now)}", flush=True)
        for arm, values in found.items():
            print(f"  {arm:<8} s {spread(values)}")
        ratio, low, high = interval(found["replica"], found["process"])
        print(f"  replica against process {ratio:.2f} [{low:.2f}, {high:.2f}]")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
