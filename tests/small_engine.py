"""A training state in miniature that is saved as DeepSpeed saves: file by file, through `engine.checkpoint_engine`."""

from pathlib import Path
from typing import Any

import torch

from medschool.artifact import Artifact, ArtifactFile
from medschool.ledger import Ledger
from medschool.recipe import load
from medschool.tokens.order import Order
from medschool.train.course import Course

ROOT = Path(__file__).parents[1]
MODEL = Artifact(
    "model", "f", "m", "p", (ArtifactFile("config.json", 1, "aa"), ArtifactFile("tokenizer.json", 2, "bb")), {}, {}, 0
)


class SmallEngine:
    """`files` files of `floats` numbers each; a step adds one to every number."""

    def __init__(self, files: int = 2, floats: int = 1000) -> None:
        self.weights = [torch.full((floats,), float(number)) for number in range(files)]
        self.checkpoint_engine: Any = None

    def step(self) -> None:
        for weight in self.weights:
            weight += 1

    def train_micro_batch_size_per_gpu(self) -> int:
        return 4

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        for number, weight in enumerate(self.weights):
            self.checkpoint_engine.save({"w": weight, "tied": weight, "number": number}, f"{folder}/{tag}/{number}.pt")


def course_in(run_uri: Path | str, *overrides: str, **changed: Any) -> Course:
    """A course of the quickstart recipe whose states lie in `run_uri`."""
    order = Order({"books": 15, "general": 5}, 20, {"books": (90, 70), "general": (50,)}, seed=3)
    values = {
        "recipe": load(ROOT / "recipes" / "quickstart.yaml", list(overrides)),
        "phase": "pretrain",
        "trial": "t",
        "model": MODEL,
    }
    values |= {"order": order, "steps": 100, "run_uri": str(run_uri), "prefix_uri": "x", "mlflow_run": None}
    return Course(**(values | changed))


def ledger_of(course: Course) -> Ledger:
    return Ledger(course.order, 64, {name: name * 3 for name in course.order.sources}, course.model.digest)


def ledger_at(course: Course, step: int) -> Ledger:
    """The ledger after so many steps, as one worker alone counts."""
    ledger = ledger_of(course)
    for batch in range(step):
        ledger = ledger.after(batch, course.order.mixture.rows_in(batch))
    return ledger
