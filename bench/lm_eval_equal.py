"""The protocol `lm_eval` beside lm-evaluation-harness 0.4.13 itself: same choice, same log-likelihoods, item by item.

Both get the same weights in fp32 and the same files. The harness's own task files are used; only where they load data from is
changed to a local file. It is no dependency of this project: install it into a folder, with what it imports that is not here
already, and put that on PYTHONPATH:

    pip install --no-deps --target <folder> lm-eval==0.4.13 sacrebleu==2.6.0 portalocker tabulate colorama tenacity tiktoken

    PYTHONPATH=<folder> python bench/lm_eval_equal.py --model <folder> --mmlu mmlu.jsonl --pubmedqa ori_pqal.json
    PYTHONPATH=<folder> python bench/lm_eval_equal.py --model ... --mmlu ... --pubmedqa ... --endpoint URL --served NAME
    PYTHONPATH=<folder> python bench/lm_eval_equal.py --golden tests/golden/lm_eval_equal.json

The first form compares on real questions, with and without worked ones, and prints a line a task. MedQA and MedMCQA are not at
hand everywhere: MMLU's questions of professional medicine and clinical knowledge are asked in their two forms. The second form
asks an endpoint that serves the same weights in fp32, such as the job `serve` puts up (its key: MEDSCHOOL_EXAM_KEY), once by our
client and once by the harness's own `local-completions`; its `hf` has them at hand as before. The third form writes what the
harness says of the invented questions of tests/exam_files.py, which the unit tests compare with.
"""

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "tests")]

from exam_files import SUBJECTS, records, write_formula_model  # noqa: E402

from medschool.evaluate.at_endpoint import ending_log_probs  # noqa: E402
from medschool.evaluate.endpoint import Endpoint, Refused  # noqa: E402
from medschool.evaluate.harness import Asked, Scored, asked, harness_encoder, score_items, scored  # noqa: E402
from medschool.exams.formats import EXAM_FORMATS  # noqa: E402
from medschool.exams.harness import shots_of  # noqa: E402
from medschool.rows import ExamItem  # noqa: E402
from medschool.train.model import load_model  # noqa: E402

Records = list[dict[str, Any]]
TASKS = {"medqa": "medqa/medqa.yaml", "medmcqa": "medmcqa/medmcqa.yaml", "pubmedqa": "pubmedqa/pubmedqa.yaml"}
TOLERANCE_NATS = 1e-3
AT_ONCE = 4
"""Requests under way to an endpoint."""
CLINICAL = ("professional medicine", "clinical knowledge")


@dataclass(frozen=True)
class Case:
    """One task of the harness on one set of records."""

    form: str
    subject: str
    asked: Records
    worked: Records
    shot_count: int

    @property
    def task(self) -> str:
        return f"{self.form}{'_' * bool(self.subject)}{self.subject}"

    @property
    def name(self) -> str:
        return f"{self.task}, {self.shot_count} worked"


def by_harness(model: Any, case: Case, folder: Path) -> list[dict[str, Any]]:
    """log_probs, acc and acc_norm (None where the task has none) of each record, by lm-evaluation-harness."""
    import lm_eval
    from lm_eval import evaluator
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    tasks = Path(lm_eval.__file__).parent / "tasks"
    config = load_yaml(tasks / TASKS.get(case.form, f"mmlu/default/mmlu_{case.subject}.yaml"))
    files = {}
    for split, rows in (("test", case.asked), ("dev", case.worked)):
        path = folder / f"{case.form}{case.subject}{case.shot_count}{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        files[split] = str(path)
    for key in ("training_split", "validation_split", "dataset_name", "include", "tag", "task_alias"):
        config.pop(key, None)
    config |= {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
    config |= {"fewshot_split": "dev", "fewshot_config": {"sampler": "first_n", "split": "dev"}}
    task = ConfigurableTask(config=config | {"num_fewshot": case.shot_count})
    found = evaluator.simple_evaluate(model, tasks=[task], num_fewshot=case.shot_count, bootstrap_iters=0, log_samples=True)
    samples = sorted(next(iter(found["samples"].values())), key=lambda sample: sample["doc_id"])
    return [
        {"log_probs": [answer[0][0] for answer in sample["resps"]], "acc": sample["acc"], "acc_norm": sample.get("acc_norm")}
        for sample in samples
    ]


def by_us(model: Any, folder: Path, case: Case) -> Records:
    """The same of the same records, through our reader and scorer; `cut`: tokens that did not fit."""
    items, worked = read(case.form, case.asked), read(case.form, case.worked)
    return list(map(as_harness, items, score_items(model, harness_encoder(folder), items, worked, case.shot_count)))


def by_endpoint(endpoint: Endpoint, folder: Path, case: Case) -> Records:
    """The same from a served model; `folder` has its tokenizer and config.json. Raises where the endpoint refuses an item."""
    items, worked, encode = read(case.form, case.asked), read(case.form, case.worked), harness_encoder(folder)
    rows = [asked(item, encode, shots_of(item, worked, case.shot_count), context_tokens(folder) - 2) for item in items]

    def of(row: Asked) -> Scored:
        found = ending_log_probs(endpoint, row)
        if isinstance(found, Refused):
            raise SystemExit(f"{row.item.id}: {found.says}")
        return scored(row, found)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(map(as_harness, items, pool.map(of, rows)))


def as_harness(item: ExamItem, mine: Scored) -> dict[str, Any]:
    """Our score of an item in the harness's words."""
    right = {"acc": mine.chosen == item.answer, "acc_norm": mine.chosen_norm == item.answer}
    return {"log_probs": mine.log_probs, "cut": mine.cut_tokens, **right}


def context_tokens(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"])


def read(form: str, rows: Records) -> list[ExamItem]:
    """The records through the reader of their form, which for PubMedQA takes one object by PMID. Raises when any is dropped."""
    lines = json.dumps(dict(enumerate(rows))) if form == "pubmedqa" else "\n".join(map(json.dumps, rows))
    name = "medmcqa_from_0" if form == "medmcqa" else form
    found = list(EXAM_FORMATS[name](lines.encode(), "file", "exam"))
    assert all(isinstance(row, ExamItem) for row in found), found
    return [row for row in found if isinstance(row, ExamItem)]


# ---- invented questions -------------------------------------------------------------------------------------------------------


def invented_cases() -> list[Case]:
    """Every task with and without worked questions; MMLU once for each subject."""
    found = []
    for shot_count in (0, 1):
        for form in TASKS:
            found.append(Case(form, "", records(form, False), records(form, True), shot_count))
        for subject in SUBJECTS:
            asked, worked = ([row for row in records("mmlu", kind) if row["subject"] == subject] for kind in (False, True))
            found.append(Case("mmlu", subject, asked, worked, shot_count))
    return found


def write_golden(path: Path) -> None:
    """What the harness says of the invented questions, for both kinds of tokenizer."""
    told: dict[str, Any] = {
        "made_by": f"PYTHONPATH=<folder> python bench/lm_eval_equal.py --golden {path}",
        "lm_eval": importlib.metadata.version("lm_eval"),
        "cases": [],
    }
    for kind in ("bos", "border"):
        with tempfile.TemporaryDirectory() as name:
            write_formula_model(folder := Path(name, "model"), kind)
            harness = harness_model(folder)
            for case in invented_cases():
                scores = by_harness(harness, case, Path(name))
                for score in scores:
                    score["log_probs"] = [round(value, 6) for value in score["log_probs"]]
                told["cases"].append({"tokenizer": kind, "name": case.name, "items": scores})
    head = json.dumps({key: told[key] for key in ("made_by", "lm_eval")}, indent=1)[:-2]
    cases = ",\n".join("  " + json.dumps(case) for case in told["cases"])
    path.write_text(f'{head},\n "cases": [\n{cases}\n ]\n}}\n', encoding="utf-8")


def harness_model(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", batch_size=8, device="cpu")


def harness_client(url: str, served: str, folder: Path) -> Any:
    """The harness's `local-completions`, as docs/serving.md says to call it."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    os.environ["OPENAI_API_KEY"] = os.environ["MEDSCHOOL_EXAM_KEY"]
    return LocalCompletionsAPI(
        model=served, base_url=f"{url}/completions", tokenizer_backend="huggingface", tokenizer=str(folder),
        max_length=context_tokens(folder), num_concurrent=AT_ONCE,
    )  # fmt: skip


def over_http(api: Any, case: Case) -> Records:
    with tempfile.TemporaryDirectory() as folder:
        return by_harness(api, case, Path(folder))


# ---- real questions -----------------------------------------------------------------------------------------------------------


def real_cases(mmlu: Path, pubmedqa: Path, count: int, shot_count: int) -> list[Case]:
    """Four tasks and more, each of `count` questions where there are as many."""
    rows = [json.loads(line) for line in mmlu.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if len({" ".join(row[f"answer_{key}"].split()) for key in "abcd"}) == 4]
    found = []
    for subject in ("professional medicine", "clinical knowledge", "anatomy", "college biology"):
        mine = [_as_hub(row) for row in rows if row["topic"] == subject]
        found.append(Case("mmlu", subject.replace(" ", "_"), mine[5 : 5 + count], mine[:5], shot_count))
    clinical = [_as_hub(row) for row in rows if row["topic"] in CLINICAL][: count + 5]
    for form in ("medqa", "medmcqa"):
        mine = [_in_form(form, number, row) for number, row in enumerate(clinical)]
        found.append(Case(form, "", mine[5:], mine[:5], shot_count))
    abstracts = list(json.loads(pubmedqa.read_text(encoding="utf-8")).values())
    keys = ("QUESTION", "CONTEXTS", "final_decision")
    mine = [{key: row[key] for key in keys} for row in abstracts[: count + 2]]
    return [*found, Case("pubmedqa", "", mine[2:], mine[:2], min(2, shot_count))]


def _as_hub(row: dict[str, str]) -> dict[str, Any]:
    choices, answer = [row[f"answer_{key}"] for key in "abcd"], "ABCD".index(row["correct_answer"])
    return {"question": row["question"], "choices": choices, "answer": answer, "subject": row["topic"].replace(" ", "_")}


def _in_form(form: str, number: int, row: dict[str, Any]) -> dict[str, Any]:
    """A question of MMLU as MedQA or MedMCQA has it."""
    if form == "medqa":
        endings = {f"ending{index}": option for index, option in enumerate(row["choices"])}
        return {"id": str(number), "sent1": row["question"], "sent2": "", **endings, "label": row["answer"]}
    named = dict(zip(("opa", "opb", "opc", "opd"), row["choices"], strict=True))
    return {"id": str(number), "question": row["question"], **named, "cop": row["answer"], "subject_name": row["subject"]}


def compare(cases: Sequence[Case], reference: Any, others: Mapping[str, Callable[[Case], Records]]) -> bool:
    """Print a line for each case and each of the `others`; whether all find what the `reference`, the harness's `hf`, finds."""
    equal = True
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            expected = by_harness(reference, case, Path(folder))
        harness_s = time.perf_counter() - started
        accuracy = sum(bool(his["acc"]) for his in expected) / len(expected)
        for name, ask in others.items():
            started = time.perf_counter()
            rows = list(zip(ask(case), expected, strict=True))
            seconds = time.perf_counter() - started
            far = max(abs(a - b) for mine, his in rows for a, b in zip(mine["log_probs"], his["log_probs"], strict=True))
            choice = sum(best(mine["log_probs"]) != best(his["log_probs"]) for mine, his in rows)
            right = sum(bool(mine["acc"]) != bool(his["acc"]) for mine, his in rows)
            right += sum(bool(mine["acc_norm"]) != bool(his["acc_norm"]) for mine, his in rows if his["acc_norm"] is not None)
            equal = equal and far <= TOLERANCE_NATS and not choice and not right
            print(
                f"{case.name:36} {name:18} {len(rows):4} items  acc {accuracy:.3f}  other choice {choice}  other acc {right}  "
                f"furthest {far:.1e} nats  cut {sum(mine.get('cut', 0) > 0 for mine, _ in rows)}  "
                f"{seconds:.0f} s, harness {harness_s:.0f} s",
                flush=True,
            )
    return equal


def best(log_probs: Sequence[float]) -> int:
    return max(range(len(log_probs)), key=log_probs.__getitem__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--mmlu", type=Path)
    parser.add_argument("--pubmedqa", type=Path)
    parser.add_argument("--endpoint", help="what /completions follows, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--served", help="the model's name there")
    parser.add_argument("--tasks", nargs="*", help="those alone, such as medqa mmlu_anatomy")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--shots", type=int, nargs="*", default=[0, 3])
    told = parser.parse_args()
    if told.golden:
        write_golden(told.golden)
        return
    cases = [case for count in told.shots for case in real_cases(told.mmlu, told.pubmedqa, told.items, count)]
    if told.tasks:
        cases = [case for case in cases if case.task in told.tasks]
    hf = harness_model(told.model)
    if told.endpoint:
        endpoint = Endpoint(told.endpoint, told.served)
        endpoint.check()
        api = harness_client(told.endpoint, told.served, told.model)
        others: dict[str, Callable[[Case], Records]] = {
            "our client": lambda case: by_endpoint(endpoint, told.model, case),
            "local-completions": lambda case: over_http(api, case),
        }
    else:
        model = load_model(told.model, "fp32").eval()
        others = {"our scorer": lambda case: by_us(model, told.model, case)}
    sys.exit(not compare(cases, hf, others))


if __name__ == "__main__":
    main()
