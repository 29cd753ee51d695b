"""Minutes and memory of half a million conversations: built, checked and packed, with the schema of MedC-I's release.

Records are invented: columns and values of `source` are those of axiong/pmc_llama_instructions (513,999 records), in about the
shares of its card, words of MEDLINE abstracts in random order, some 300 tokens a conversation in the mean (the paper's 202
million tokens over the release and ChatDoctor are 320). One in a thousand is broken on purpose, each way in turn: an answer that
names an option the question has not, an empty output, a source that the release does not know. As many must be left out.

The stages run as jobs run them, in a Ray of two cores: `instructions` (read, check, repeats, identifiers, exam questions), and
`chats` (template, masks, contract, held-out text, packing). A thread reads, four times a second, the memory that is a process's
own (USS) of the driver and of every Ray worker. Printed are minutes, the largest worker and the largest sum, for each stage.

`python bench/instructions.py [--rows 513999] [--store URI]`; the store is MEDSCHOOL_STORE's, or a folder with raw/mmlu,
raw/prose, raw/medline and raw/models/smollm2-135m-instruct, as `medschool fetch quickstart` puts them. Over ten minutes.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from memory import watched
from side_by_side import in_fresh_process, machine
from small_run import ENVIRONMENT, ROOT, own_ray

ROWS = 513_999
SHARES = {
    "medqa_train": 30_000, "medmcqa": 183_000, "pubmedqa.ori_pqaa": 200_000, "liveqa": 635, "medicationqa": 690,
    "umls": 50_000, "umls_relation": 49_000,
}  # fmt: skip
BROKEN = ("option", "output", "source")
BROKEN_EVERY = 1_000


def words(draw: random.Random, pool: Sequence[str], mean: int) -> str:
    return " ".join(draw.choices(pool, k=max(3, int(draw.lognormvariate(0, 0.5) * mean))))


def exam(draw: random.Random, pool: Sequence[str], asked: int) -> tuple[str, str]:
    options = "".join(f"{letter}. {words(draw, pool, 5)}\n" for letter in "ABCD")
    answer = f"###Answer: OPTION {draw.choice('ABCD')} IS CORRECT."
    reason = f"###Rationale: {words(draw, pool, 90)}\n" if draw.random() < 0.5 else ""
    return f"###Question: {words(draw, pool, asked)}?\n###Options:\n{options}", reason + answer


def record(draw: random.Random, pool: Sequence[str], source: str, number: int) -> dict[str, Any]:
    if source in ("medqa_train", "medmcqa"):
        given, output = exam(draw, pool, 90 if source == "medqa_train" else 30)
    elif source.startswith("pubmedqa"):
        given = f"###Question: {words(draw, pool, 14)}?\n###Context: {words(draw, pool, 180)}"
        output = words(draw, pool, 40)
    else:
        given, output = words(draw, pool, 6), words(draw, pool, 30)
    instruction = f"{words(draw, pool, 10).capitalize()}."
    return {"instruction": instruction, "input": given, "output": output, "source": source, "sample_id": number}


def broken(row: dict[str, Any], way: str) -> dict[str, Any]:
    match way:
        case "option":
            return row | {"source": "medmcqa", "output": "###Answer: OPTION F IS CORRECT."}
        case "output":
            return row | {"output": ""}
        case _:
            return row | {"source": "unheard_of"}


def records(pool: Sequence[str], rows: int, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    draw, ways = random.Random(0), itertools.cycle(BROKEN)
    sources = draw.choices(list(SHARES), list(SHARES.values()), k=rows)
    for number, source in enumerate(sources):
        row = record(draw, pool, source, number)
        if number % BROKEN_EVERY == BROKEN_EVERY - 1:
            counts["broken"] += 1
            row = broken(row, next(ways))
        yield row


def write_store(store: str, rows: int, folder: Path) -> int:
    """`release.json` as the release has it, one JSON array; the number of records broken on purpose."""
    from tokens import documents_of

    from medschool import storage

    (folder / "raw" / "medc_i").mkdir(parents=True)
    for name in ("mmlu", "prose", "models/smollm2-135m-instruct"):
        (folder / "raw" / name).mkdir(parents=True)
        for info in storage.require_files(storage.join(store, "raw", name)):
            storage.download(info.uri, folder / "raw" / name / info.uri.rsplit("/", 1)[1])
    pool = list(itertools.chain.from_iterable(document.text.split() for document in itertools.islice(documents_of(store), 5_000)))
    counts = Counter[str]()
    with (folder / "raw" / "medc_i" / "release.json").open("w") as file:
        for number, row in enumerate(records(pool, rows, counts)):
            file.write(("[" if number == 0 else ",\n") + json.dumps(row))
        file.write("]")
    recipe = yaml.safe_load((ROOT / "recipes" / "answers.yaml").read_text())
    files = [{"uri": "raw/medc_i/release.json", "format": "medc_i", "licence": "openrail"}]
    recipe["instructions"] = {"medc_i": {"files": files, "licences": ["openrail"], "bad_files": {"max_share": 0.01}}}
    recipe["variants"] = {"base": {}, "instructed": {"instructions": {"medc_i": 1}}}
    recipe["chats"]["row_tokens"] = 2048
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return counts["broken"]


def measured(folder: Path) -> dict[str, dict[str, Any]]:
    """In a process of its own: both stages on a Ray that starts with the first."""
    from jobs.run import Run
    from medschool.board import printing
    from medschool.recipe import load

    os.environ["MEDSCHOOL_CACHE"] = str(folder / "cache")
    found = dict[str, dict[str, Any]]()
    with own_ray(2), printing(lambda line: None) as board:
        run = Run(load(folder / "recipe.yaml"), str(folder), board)
        for kind in ("model", "tokenizer", "exams", "corpus", "duplicates", "tokens"):  # held-out text may be in no conversation
            run.make(kind)
        for kind in ("instructions", "chats"):
            began = time.perf_counter()
            with watched() as peak:
                run.make(kind)
            minutes = (time.perf_counter() - began) / 60
            found[kind] = {"minutes": minutes, "worker MB": peak.worker, "together MB": peak.together, "objects MB": peak.objects}
            found[kind] |= dict(run.artifact(f"{kind}/medc_i").facts)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--store", default=os.environ.get("MEDSCHOOL_STORE"))
    asked = parser.parse_args()
    if not asked.store:
        parser.exit(2, "no store: set MEDSCHOOL_STORE, or give --store\n")
    folder = Path(tempfile.mkdtemp(prefix="ms-bench-", dir="/tmp"))  # short: Ray puts Unix sockets below it
    os.environ.update(ENVIRONMENT)
    try:
        print(json.dumps(machine("ray", "pyarrow")))
        bad = write_store(asked.store, asked.rows, folder)
        size = (folder / "raw" / "medc_i" / "release.json").stat().st_size
        print(f"{asked.rows:,} records, {size / 1e6:,.0f} MB, {bad} of them broken")
        for stage, figures in in_fresh_process(measured, folder).items():
            print(stage, json.dumps(figures, default=str, indent=1), sep="\n", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
