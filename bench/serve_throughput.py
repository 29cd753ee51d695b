"""Tokens a second and time to the first one of our transformers engine through Ray Serve, beside `transformers serve`.

    ours          Ray Serve, our API, continuous batching over a cache sized for all places
    default       `transformers serve`: one answer after the other
    continuous    `transformers serve --continuous-batching`, its cache given the same number of tokens as ours

All serve the same weights in the same type, greedily, with as many threads, and are asked by the same client: each of so many
clients asks for a streamed completion of a text of its own, again and again. The three servers stand side by side and are asked
in turn; who is not asked does nothing. Texts are compared first: in fp32 all arms must say the same; in bf16 the share of equal
texts is printed, since batches round differently.

Without --model a random LLaMA of some ten million parameters is made, whose end token is never the likeliest, so each answer has
its full length. `tokens/s` counts what the servers say they wrote. Medians and spread; ratios with a 95% interval of bootstrapped
medians, above 1 is good for ours. Aims: 3 against default, 1 against continuous, at 8 and 32 clients. Nothing is asserted.

`python bench/serve_throughput.py [--model FOLDER] [--dtype fp32] [--clients 8,32] [--reps 5] [--rounds 2] [--arms ...]`
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import httpx
from serve_latency import KEY, free_port
from side_by_side import in_fresh_process, interval, machine, spread
from small_run import ENVIRONMENT, SMALL, own_ray

from medschool.cluster.ray_head import SERVE

ARMS = ("ours", "default", "continuous")
TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16"}
PROMPT_TOKENS, ANSWER_TOKENS, CONTEXT = 128, 64, 512
PLACES = 32
PAGE_TOKENS = 256
"""Of `transformers serve`, by default."""
WORDS = "the heart pumps blood through body lungs liver kidney nerve muscle bone skin vein drug dose trial fever cough pain"


@dataclass(frozen=True)
class Served:
    """Where an arm answers. model: the name that it is asked by."""

    url: str
    model: str


def random_model(folder: Path) -> None:
    """A LLaMA of SMALL's shape with a vocabulary of 300, and its byte-level tokenizer."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = ByteLevelBPETokenizer()
    raw.train_from_iterator([WORDS] * 3, vocab_size=300, special_tokens=["<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw._tokenizer, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = replace(SMALL, vocab_size=len(tokenizer), tie_word_embeddings=False)
    model = LlamaForCausalLM(LlamaConfig(**vars(shape), bos_token_id=0, eos_token_id=1))
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token], skip_special_tokens=True)
        if not (text.isascii() and text.isprintable() and text):  # bytes that are no characters are streamed in other ways
            model.lm_head.weight.data[token] = 0.0  # never the likeliest, and the end token is among them
    model.save_pretrained(folder)
    print(f"a random LLaMA of {sum(weight.numel() for weight in model.parameters()) / 1e6:.1f} million parameters")


@contextlib.contextmanager
def ours(folder: Path, store: Path, dtype: str, threads: int) -> Iterator[Served]:
    from medschool import artifact
    from medschool.serve.keys import hash_key
    from medschool.serve.on_ray import ChatArgs, deploy

    def upload(prefix: str) -> artifact.Output:
        return artifact.Output(artifact.upload_folder(prefix, folder, "export"))

    manifest_uri = artifact.make(str(store), "train", "0" * 16, {}, upload).manifest_uri
    args = ChatArgs(
        model=manifest_uri, dtype=dtype, max_context_tokens=CONTEXT, max_concurrent_requests=PLACES, max_waiting_requests=PLACES,
        num_cpus=threads, api_key_sha256=(hash_key(KEY),),
    )  # fmt: skip
    with own_ray(8):
        yield Served(deploy(args, free_port()), "medschool")


def wait_for(process: "subprocess.Popen[bytes]", log: IO[bytes], port: int, timeout_s: float) -> None:
    """Return when a server of its own process is healthy. Raises RuntimeError with its log where it ends or is late."""
    end_s = time.monotonic() + timeout_s
    while True:
        if process.poll() is not None or time.monotonic() > end_s:
            log.seek(0)
            raise RuntimeError(f"{process.args} did not start:\n{log.read()[-3000:].decode(errors='replace')}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                return
        time.sleep(0.5)


@contextlib.contextmanager
def theirs(folder: Path, dtype: str, threads: int, continuous: bool) -> Iterator[Served]:
    port = free_port()
    options = ["--continuous-batching", "--cb-num-blocks", str(PLACES * CONTEXT // PAGE_TOKENS)] if continuous else []
    command = [
        str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--port", str(port), "--host", "127.0.0.1",
        "--device", "cpu", "--dtype", TORCH_NAMES[dtype], "--log-level", "error", *options,
    ]  # fmt: skip
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stdout=log, stderr=log)
        try:
            wait_for(process, log, port, 300)
            yield Served(f"http://127.0.0.1:{port}", str(folder))
        finally:
            process.terminate()
            process.wait()


@dataclass(frozen=True)
class Told:
    """One streamed answer."""

    text: str
    tokens: int
    first_s: float


async def one_answer(client: httpx.AsyncClient, served: Served, prompt: str) -> Told:
    body = {"model": served.model, "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0, "stream": True}
    if served.model == "medschool":
        body["stream_options"] = {"include_usage": True}  # the other says it unasked, and refuses the question
    start_s, first_s, text, usage = time.perf_counter(), 0.0, "", None
    async with client.stream("POST", f"{served.url}/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"{served.url}: {event['error']}")
            piece = "".join(choice.get("text") or "" for choice in event["choices"])
            first_s = first_s or (time.perf_counter() - start_s if piece else 0.0)
            text, usage = text + piece, event.get("usage") or usage
    if response.status_code != 200 or usage is None:
        raise RuntimeError(f"{served.url} answered {response.status_code}, usage {usage}")
    return Told(text, usage["completion_tokens"], first_s)


def prompts_of(folder: Path, count: int) -> list[str]:
    """Texts of just PROMPT_TOKENS tokens or a few more, each another."""
    from transformers import AutoTokenizer

    tokenizer, draw, found = AutoTokenizer.from_pretrained(folder), random.Random(0), []
    for _ in range(count):
        words: list[str] = []
        while len(tokenizer(" ".join(words)).input_ids) < PROMPT_TOKENS:
            words.append(draw.choice(WORDS.split()))
        found.append(" ".join(words))
    return found


def asked(served: Served, prompts: list[str], clients: int) -> dict[str, Any]:
    """Tokens a second, times to the first token and texts, the prompts shared out among `clients` clients."""

    async def run() -> tuple[float, list[Told]]:
        limits = httpx.Limits(max_connections=None)
        headers = {"authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(timeout=600, limits=limits, headers=headers) as client:

            async def ask(number: int) -> list[Told]:
                return [await one_answer(client, served, prompt) for prompt in prompts[number::clients]]

            start_s = time.perf_counter()
            found = await asyncio.gather(*map(ask, range(clients)))
            return time.perf_counter() - start_s, [answer for mine in found for answer in mine]

    seconds, answers = asyncio.run(run())
    firsts = [answer.first_s for answer in answers]
    return {
        "tokens/s": sum(answer.tokens for answer in answers) / seconds,
        "first s": statistics.median(firsts),
        "first p99 s": max(firsts) if len(firsts) < 100 else statistics.quantiles(firsts, n=100)[98],
        "tokens": sum(answer.tokens for answer in answers) / len(answers),
        "texts": [answer.text for answer in answers],
    }


def compare_texts(served: dict[str, Served], prompts: list[str], dtype: str) -> None:
    """Warm every arm up, and print how many texts are those of the first arm."""
    found = {arm: in_fresh_process(asked, where, prompts, len(prompts))["texts"] for arm, where in served.items()}
    reference = next(iter(found))
    for arm, texts in found.items():
        equal = sum(one == other for one, other in zip(texts, found[reference], strict=True))
        print(f"  {arm}: {equal} of {len(texts)} texts are those of {reference}")
        if dtype == "fp32" and equal < len(texts):
            raise SystemExit(f"{arm} writes something else: {texts[:2]} against {found[reference][:2]}")


def bench(served: dict[str, Served], prompts: list[str], clients: int, reps: int) -> None:
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in served}
    for rep in range(reps):
        arms, fresh = list(served), prompts[rep::reps]  # texts that no cache has seen
        for arm in arms[rep % len(arms) :] + arms[: rep % len(arms)]:
            found[arm].append(in_fresh_process(asked, served[arm], fresh, clients))
        now = {arm: round(runs[-1]["tokens/s"]) for arm, runs in found.items()}
        print(f"{clients} clients, rep {rep} (load {os.getloadavg()[0]:.1f}): tokens/s {json.dumps(now)}", flush=True)
    for arm, runs in found.items():
        for name in ("tokens/s", "first s", "first p99 s", "tokens"):
            print(f"  {clients} clients  {arm:<11} {name:<11} {spread([run[name] for run in runs])}")
    for arm in served:
        if arm != "ours" and "ours" in served:
            for name, turned in (("tokens/s", False), ("first s", True)):
                pair = [[run[name] for run in found[one]] for one in ("ours", arm)]
                ratio, low, high = interval(*(reversed(pair) if turned else pair))
                print(f"  {clients} clients  ours against {arm:<11} {name:<9} {ratio:.2f} [{low:.2f}, {high:.2f}]", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtype", choices=list(TORCH_NAMES), default="fp32")
    parser.add_argument("--clients", default="8,32")
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2, help="answers of each client in a repetition")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="a server computes with")
    parser.add_argument("--arms", default=",".join(ARMS))
    told = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ms-bench-", dir="/tmp"))
    os.environ.update(ENVIRONMENT | SERVE | {"OMP_NUM_THREADS": str(told.threads), "MEDSCHOOL_CACHE": str(folder / "cache")})
    print(json.dumps(machine("ray", "torch", "transformers") | {"threads": told.threads, "load": os.getloadavg()}))
    try:
        model = (told.model or folder / "model").resolve()
        if not told.model:
            in_fresh_process(random_model, model)
        with contextlib.ExitStack() as stack:
            starts = {
                "ours": lambda: ours(model, folder / "store", told.dtype, told.threads),
                "default": lambda: theirs(model, told.dtype, told.threads, continuous=False),
                "continuous": lambda: theirs(model, told.dtype, told.threads, continuous=True),
            }
            served = {arm: stack.enter_context(starts[arm]()) for arm in told.arms.split(",")}
            compare_texts(served, in_fresh_process(prompts_of, model, 8), told.dtype)
            for clients in map(int, told.clients.split(",")):
                bench(served, in_fresh_process(prompts_of, model, clients * told.rounds * told.reps), clients, told.reps)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
