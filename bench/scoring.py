"""Questions scored a second by our scorer, beside a batched loop written by hand and lm-evaluation-harness' own model.

    ours    medschool.evaluate.choices: a row a question with all its options, sorted by length; shared beginnings are read once
    loop    transformers, padded on the right, in the order of the questions: for letters a row a question and the logits of its
            last token, for options in words a row an option and the logits of all its tokens
    lm_eval HFLM.loglikelihood of lm-evaluation-harness 0.4.13; it reads the letters of a question in one pass as well

    letters     the question with its lettered options, no worked ones
    letters-5   behind five worked questions of its subject
    words       the question alone, the options in words as endings

All get the same text, the same weights in fp32 and as many rows in a batch, and tokenize inside the clock. Before anything is
timed, every log-probability must agree within 1e-3 and every choice be the same. Arms take turns. Beside the time of the
clock stands that of the processor, which is less disturbed where other programs run. The harness is no dependency: it is left
out, with a line, where it is missing.

    PYTHONPATH=<folder> python bench/scoring.py --model <folder> --mmlu mmlu.jsonl --items 48 --reps 3
"""

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "bench")]

import torch  # noqa: E402
from side_by_side import interval, machine, spread  # noqa: E402

from medschool.evaluate.choices import Choice, choice_log_probs  # noqa: E402
from medschool.evaluate.harness import Encode, encode_pairs, harness_encoder  # noqa: E402
from medschool.evaluate.perplexity import BATCH_TOKENS  # noqa: E402
from medschool.train.model import load_model  # noqa: E402

EQUAL_NATS = 1e-3
LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Question:
    """A prompt, and the endings to choose from; each follows it with its own space."""

    prompt: str
    endings: tuple[str, ...]


Scores = list[list[float]]
"""For each question, the log-probability of each ending in nats."""


def questions(path: Path, task: str, count: int) -> list[Question]:
    """The first so many questions of each of four subjects, behind their five worked ones where the task has any."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    subjects = ("anatomy", "clinical knowledge", "college medicine", "professional medicine")
    found = []
    for subject in subjects:
        mine = [row for row in rows if row["topic"] == subject][: 5 + -(-count // len(subjects))]
        worked = "".join(f"{lettered(row)} {row['correct_answer']}\n\n" for row in mine[:5]) if task == "letters-5" else ""
        for row in mine[5:]:
            words = task == "words"
            prompt = f"Question: {row['question']}\nAnswer:" if words else f"{worked}{lettered(row)}"
            found.append(Question(prompt, tuple(f" {row[f'answer_{key.lower()}'] if words else key}" for key in LETTERS)))
    return found[:count]


def lettered(row: dict[str, str]) -> str:
    return f"{row['question']}\n" + "".join(f"{key}. {row[f'answer_{key.lower()}']}\n" for key in LETTERS) + "Answer:"


# ---- the arms -----------------------------------------------------------------------------------------------------------------


def by_us(model: Any, encode: Encode, asked: Sequence[Question]) -> Scores:
    choices = []
    for question in asked:
        pairs = encode_pairs(encode, question.prompt, question.endings)
        choices.append(Choice(tuple(pairs[0][0]), tuple(tuple(ending) for _, ending in pairs)))
    return choice_log_probs(model, choices)


def by_loop(model: Any, encode: Encode, rows: int, asked: Sequence[Question]) -> Scores:
    pairs = [[encode_pairs(encode, question.prompt, (ending,))[0] for ending in question.endings] for question in asked]
    if all(len(ending) == 1 for one in pairs for _, ending in one):
        last = _logits(model, [one[0][0] for one in pairs], [1] * len(pairs), rows)
        return [[float(found[0, ending[0]]) for _, ending in one] for one, found in zip(pairs, last, strict=True)]
    flat = [pair for one in pairs for pair in one]
    found = _logits(model, [before + ending[:-1] for before, ending in flat], [len(ending) for _, ending in flat], rows)
    sums = [float(part[range(len(ending)), ending].double().sum()) for part, (_, ending) in zip(found, flat, strict=True)]
    scores = iter(sums)
    return [[next(scores) for _ in one] for one in pairs]


def _logits(model: Any, texts: list[list[int]], lasts: list[int], rows: int) -> list[torch.Tensor]:
    """Log-probabilities at the last so many positions of each text, in batches of so many rows."""
    found = []
    for first in range(0, len(texts), rows):
        part, kept = texts[first : first + rows], lasts[first : first + rows]
        longest = max(map(len, part))
        ids = torch.zeros((len(part), longest), dtype=torch.int64)
        for row, text in enumerate(part):
            ids[row, : len(text)] = torch.tensor(text)  # padding stands behind: a causal model never sees it
        with torch.inference_mode():
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            for row, (text, count) in enumerate(zip(part, kept, strict=True)):
                logits = model.lm_head(hidden[row, len(text) - count : len(text)])
                found.append(logits.float().log_softmax(dim=-1))
    return found


def by_harness(model: Any, asked: Sequence[Question]) -> Scores:
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", {}, (question.prompt, ending), place)
        for question in asked
        for place, ending in enumerate(question.endings)
    ]
    scores = iter(model.loglikelihood(requests, disable_tqdm=True))
    return [[next(scores)[0] for _ in question.endings] for question in asked]


# ---- side by side -------------------------------------------------------------------------------------------------------------


def check_equal(found: dict[str, Scores]) -> str:
    """A line on how far the arms are apart; stops where they may not be."""
    told = []
    for arm, scores in found.items():
        pairs = list(zip(scores, found["ours"], strict=True))
        far = max(abs(a - b) for mine, other in pairs for a, b in zip(mine, other, strict=True))
        chosen = sum(mine.index(max(mine)) != other.index(max(other)) for mine, other in pairs)
        told.append(f"{arm} {far:.1e} nats, {chosen} other choices")
        if far > EQUAL_NATS or chosen:
            raise SystemExit(f"{arm} scores something else: {told[-1]}")
    return "; ".join(told[1:])


def bench(task: str, arms: dict[str, Callable[[Sequence[Question]], Scores]], asked: Sequence[Question], reps: int) -> None:
    print(f"{task}: {len(asked)} questions, furthest from ours: {check_equal({arm: do(asked) for arm, do in arms.items()})}")
    rates: dict[str, dict[str, list[float]]] = {arm: {"s": [], "CPU s": []} for arm in arms}
    for rep in range(reps):
        for arm in [*list(arms)[rep % len(arms) :], *list(arms)[: rep % len(arms)]]:
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            arms[arm](asked)
            rates[arm]["s"].append(len(asked) / (time.perf_counter() - began_s))
            rates[arm]["CPU s"].append(len(asked) / (time.process_time() - began_cpu_s))
    for arm, found in rates.items():
        for unit, values in found.items():
            print(f"  {arm:<8} questions/{unit:<6} {spread(values)}")
    for arm in list(arms)[1:]:
        told = {unit: interval(rates["ours"][unit], rates[arm][unit]) for unit in ("s", "CPU s")}
        said = ", ".join(f"by {unit} {ratio:.2f} [{low:.2f}, {high:.2f}]" for unit, (ratio, low, high) in told.items())
        print(f"  ours against {arm:<8} {said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--mmlu", type=Path, required=True)
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--tasks", default="letters,letters-5,words")
    told = parser.parse_args()
    print(json.dumps(machine("torch", "transformers") | {"load": os.getloadavg(), "threads": torch.get_num_threads()}))
    model, encode = load_model(told.model, "fp32").eval(), harness_encoder(told.model)
    harness = None
    if importlib.util.find_spec("lm_eval"):
        from lm_eval.models.huggingface import HFLM

        harness = HFLM(pretrained=model, tokenizer=str(told.model), batch_size=1, device="cpu")
    else:
        print("lm_eval: left out, it is not installed (put a folder with lm-eval==0.4.13 on PYTHONPATH)")
    for task in told.tasks.split(","):
        asked = questions(told.mmlu, task, told.items)
        lengths = [len(encode(question.prompt)) for question in asked]
        rows = max(1, BATCH_TOKENS * len(lengths) // sum(lengths))
        arms: dict[str, Callable[[Sequence[Question]], Scores]] = {
            "ours": lambda some: by_us(model, encode, some),
            "loop": lambda some, rows=rows: by_loop(model, encode, rows, some),  # type: ignore[misc]
        }
        if harness is not None:
            harness.batch_size_per_gpu = rows
            arms["lm_eval"] = lambda some: by_harness(harness, some)
        print(f"{sum(lengths) / len(lengths):.0f} tokens a prompt, {rows} rows in a batch")
        bench(task, arms, asked, told.reps)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
