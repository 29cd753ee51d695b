"""Tokens a second and time to the first one of our vllm engine through Ray Serve, beside vLLM's own server over the same weights.

    ours    Ray Serve, our gate and API, AsyncLLM in the replica
    vllm    `python -m vllm.entrypoints.openai.api_server`, with the same engine arguments and environment variables

Clients, texts and figures are those of serve_throughput.py: in fp32 both must say the same. Both servers stand side by side in
the environment of `make vllm` and are asked in turn. On CPUs both compute with --threads threads, and each has processes besides
that want a core of their own. Aims at 8 and 32 clients: 0.6 on two cores, 0.85 on a GPU; the first token within 1.5 times.
Nothing is asserted.

`python bench/serve_vllm.py --python .venv-vllm/bin/python [--model FOLDER] [--dtype fp32] [--gpus 0] [--clients 8,32] [--reps 5]`
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from serve_latency import KEY, free_port
from serve_throughput import CONTEXT, PLACES, Served, bench, compare_texts, random_model, wait_for
from side_by_side import in_fresh_process, machine
from small_run import ENVIRONMENT, own_ray

from medschool.cluster.ray_head import SERVE

START_S = 600


@contextlib.contextmanager
def ours(folder: Path, store: Path, told: argparse.Namespace) -> Iterator[Served]:
    from medschool import artifact
    from medschool.serve.keys import hash_key
    from medschool.serve.on_ray import ChatArgs, deploy

    def upload(prefix: str) -> artifact.Output:
        return artifact.Output(artifact.upload_folder(prefix, folder, "export"))

    args = ChatArgs(
        model=artifact.make(str(store), "train", "0" * 16, {}, upload).manifest_uri, engine="vllm", python=str(told.python),
        dtype=told.dtype, gpus=told.gpus, num_cpus=told.threads, max_context_tokens=CONTEXT, max_concurrent_requests=PLACES,
        max_waiting_requests=PLACES, api_key_sha256=(hash_key(KEY),),
    )  # fmt: skip
    with own_ray(8, told.gpus):
        yield Served(deploy(args, free_port()), "medschool")


@contextlib.contextmanager
def theirs(folder: Path, told: argparse.Namespace) -> Iterator[Served]:
    from medschool.serve.folder import check_folder
    from medschool.serve.vllm_fields import engine_fields, environment

    variables = environment(check_folder(folder, CONTEXT), CONTEXT, PLACES, told.dtype, told.gpus, told.threads)
    fields = engine_fields(folder, CONTEXT, PLACES, told.dtype, told.gpus)
    words = []
    for name, value in fields.items():
        option = f"--{name.replace('_', '-')}"
        if value is not False:
            words += [option] if value is True else [option, json.dumps(value) if isinstance(value, dict) else str(value)]
    port = free_port()
    command = [
        str(told.python), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port),
        "--served-model-name", "medschool", *words,
    ]  # fmt: skip
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(process, log, port, START_S)
            yield Served(f"http://127.0.0.1:{port}", "medschool")
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="of the environment with vLLM")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--clients", default="8,32")
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2, help="answers of each client in a repetition")
    parser.add_argument("--threads", type=int, default=1, help="a server computes with, on CPUs")
    told = parser.parse_args()
    told.python = told.python.absolute()  # not resolved: the link is what makes it the Python of an environment
    folder = Path(tempfile.mkdtemp(prefix="ms-bench-", dir="/tmp"))
    os.environ.update(ENVIRONMENT | SERVE | {"OMP_NUM_THREADS": str(told.threads), "MEDSCHOOL_CACHE": str(folder / "cache")})
    print(json.dumps(machine("ray", "torch", "transformers") | {"threads": told.threads, "load": os.getloadavg()}))
    try:
        model = (told.model or folder / "model").resolve()
        if not told.model:
            in_fresh_process(random_model, model)
        with ours(model, folder / "store", told) as mine, theirs(model, told) as his:
            served = {"ours": mine, "vllm": his}
            compare_texts(served, told.dtype)
            for clients in map(int, told.clients.split(",")):
                bench(served, clients, told.reps, told.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
