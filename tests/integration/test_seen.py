"""One short training with everything that is told of it: journal, board, Prometheus endpoint, held-out loss beside it.

The oracle for a loss is every document by itself, without packing, ranks or sources: of the model before the first step, and of
the copies of the weights that were handed out on the way.
"""

import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medschool import artifact
from medschool.artifact import Artifact, Output, write_file
from medschool.board import printing
from medschool.cluster.invented import invented_rows, tiny_model
from medschool.evaluate.perplexity import document_losses
from medschool.procedure import recipe_digest, stages
from medschool.recipe import load
from medschool.recipe.schema import Recipe
from medschool.tokens.on_ray import heldout_rows
from medschool.tokens.order import order_of
from medschool.tokens.shards import HELDOUT, ipc_bytes, tokens_of
from medschool.tokens.stream import feed_of, read_block
from medschool.train.course import Course
from medschool.train.model import load_model, model_copy

pytestmark = pytest.mark.long
STEPS, EVERY = 40, 8
SETTINGS = (
    f"pretrain.length.steps={STEPS}", "tokens.row_tokens=64", "pretrain.batch_rows=14", "cluster.micro_batch_tokens=256",
    "cluster.checkpoint_every_steps=10", f"evaluate.heldout_every_steps={EVERY}", "pretrain.optimizer.lr=1e-3",
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What a training showed."""

    recipe: Recipe
    course: Course
    rows: dict[str, Any]
    output: Output
    journal: list[dict[str, float]]
    lines: list[str]
    metrics: list[str]
    copies: Path
    heldout: dict[str, Artifact]


def heldout_of(store: Path, names: list[str]) -> dict[str, Artifact]:
    """Token artifacts of which only the held-out documents are there."""
    import pyarrow as pa

    def make(name: str) -> Artifact:
        draw = np.random.default_rng(len(name))
        tokens = [draw.integers(3, 300, draw.integers(2, 30)).astype(np.uint16).tolist() for _ in range(12)]
        table = pa.table({"id": [f"{name}{number}" for number in range(12)], "tokens": pa.array(tokens, pa.list_(pa.uint16()))})
        return artifact.make(
            str(store), f"tokens/{name}", "heldout", {}, lambda prefix: Output((write_file(prefix, HELDOUT, ipc_bytes(table)),))
        )

    return {name: make(name) for name in names}


def keeping(copies: str, measure: Callable[[int, str], None]) -> Callable[[int, str], None]:
    """Measures, and keeps the copy for the oracle; a function inside a function travels to workers that do not know this file."""

    def keep(step: int, uri: str) -> None:
        shutil.copytree(uri, f"{copies}/{step}")
        measure(step, uri)

    return keep


class Scraper(threading.Thread):
    """Reads the metrics endpoint of the head until it is told to stop; keeps the answer that has most of ours."""

    def __init__(self) -> None:
        import ray

        super().__init__(daemon=True)
        node = next(node for node in ray.nodes() if node["Alive"])
        self._url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        self.lines: list[str] = []
        self.ended = False

    def run(self) -> None:
        while not self.ended:
            with urllib.request.urlopen(self._url, timeout=10) as answer:
                found = [line for line in answer.read().decode().splitlines() if "medschool_train" in line]
            self.lines = found if len(found) >= len(self.lines) else self.lines
            time.sleep(0.2)


@pytest.fixture(scope="module")
def seen(tiny_store: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    from medschool.evaluate.on_ray import beside_training
    from medschool.train.on_ray import make_checkpoint

    folder = tmp_path_factory.mktemp("seen")
    store, copies = folder / "store", folder / "copies"
    copies.mkdir()
    recipe = load(tiny_store / "tiny.yaml", [*SETTINGS])
    rows = invented_rows(recipe, str(store), "knowledge", 200)
    order = order_of(recipe, "knowledge", "pretrain", 3, {name: index.shard_rows for name, (_, index) in rows.items()}, {})
    course = Course(
        recipe=recipe, phase="pretrain", trial="knowledge", model=tiny_model(recipe, str(store), None), order=order, steps=STEPS,
        run_uri=str(store / "run"), prefix_uri=str(store / "made"), mlflow_run=None,
    )  # fmt: skip
    heldout = heldout_of(store, list(recipe.sources))
    lines: list[str] = []
    scraper = Scraper()
    scraper.start()
    try:
        with printing(lines.append) as board, beside_training(recipe.model, heldout, course.run_uri, None, "pretrain") as measure:
            output = make_checkpoint(course, rows, board, keeping(str(copies), measure))
    finally:
        scraper.ended = True
        scraper.join()
    journal = [json.loads(line) for line in (store / "made" / "metrics.jsonl").read_text().splitlines()]
    return Seen(recipe, course, rows, output, journal, lines, scraper.lines, copies, heldout)


def alone(model: Any, seen: Seen, batch: int) -> dict[str, tuple[float, int]]:
    """Summed loss and number of targets of each source in a batch, one document after the other."""
    table = read_block(feed_of(seen.course.order, seen.rows), batch, 0, 1)
    found: dict[str, tuple[float, int]] = {}
    for tokens, lengths, source in zip(
        tokens_of(table), table.column("doc_lengths").to_pylist(), table.column("source").to_pylist(), strict=True
    ):
        pieces = np.split(tokens, np.cumsum(lengths)[:-1])
        loss, targets = found.get(source, (0.0, 0))
        found[source] = (loss + sum(document_losses(model, [piece])[0] for piece in pieces), targets + len(tokens) - len(pieces))
    return found


def check_losses(point: dict[str, float], expected: dict[str, tuple[float, int]]) -> None:
    by_source = {key.removeprefix("loss/"): value for key, value in point.items() if key.startswith("loss/")}
    assert by_source == pytest.approx({name: loss / targets for name, (loss, targets) in expected.items()}, rel=1e-5)
    total, targets = (sum(pair[index] for pair in expected.values()) for index in (0, 1))
    assert point["loss"] == pytest.approx(total / targets, rel=1e-5) and point["targets"] == targets


def test_the_loss_of_each_source_is_that_of_its_documents_alone(seen: Seen) -> None:
    assert [point["step"] for point in seen.journal] == list(range(1, STEPS + 1))
    check_losses(seen.journal[0], alone(load_model(model_copy(seen.course.model), "fp32").eval(), seen, 0))


def test_a_copy_is_the_model_between_two_steps_and_is_scored_as_such(seen: Seen) -> None:
    """The step after a copy has its loss before the update: that of the copy. Held-out documents are scored one by one."""
    measured = [json.loads(line) for line in Path(seen.course.run_uri, "heldout.jsonl").read_text().splitlines()]
    assert measured and all(point["step"] % EVERY == 0 and point["step"] < STEPS for point in measured)
    for point in measured:
        model = load_model(seen.copies / str(point["step"]), "fp32").eval()
        check_losses(seen.journal[point["step"]], alone(model, seen, point["step"]))
        for name, made in seen.heldout.items():
            documents = [np.asarray(tokens) for tokens in heldout_rows(made).column("tokens").to_pylist()]
            sums = sum(document_losses(model, [document])[0] for document in documents)
            assert point[name] == pytest.approx(sums / sum(len(document) - 1 for document in documents), rel=1e-5)
    assert not Path(seen.course.run_uri, "handout").exists() or not list(Path(seen.course.run_uri, "handout").iterdir())


def test_measuring_beside_it_enters_nothing_that_the_run_makes(seen: Seen) -> None:
    assert all("heldout" not in file.path for file in seen.output.files)
    without = seen.recipe.model_copy(update={"evaluate": seen.recipe.evaluate.model_copy(update={"heldout_every_steps": None})})
    assert recipe_digest(seen.recipe) == recipe_digest(without) and stages(seen.recipe) == stages(without)


def test_a_step_s_time_is_split_without_a_rest(seen: Seen) -> None:
    parts = ("data_wait_s", "step_s", "checkpoint_s", "report_s", "handout_s", "other_s", "start_s")
    for before, point in zip(seen.journal, seen.journal[1:], strict=False):
        assert sum(point.get(part, 0.0) for part in parts) == pytest.approx(point["wall_s"] - before["wall_s"], abs=0.02)
    assert seen.journal[0]["start_s"] > 0.1 and seen.journal[10]["checkpoint_s"] > 0
    assert seen.journal[EVERY]["handout_s"] > 0 and seen.journal[EVERY - 1].get("handout_s", 0.0) == 0
    last = seen.journal[-1]
    assert last["goodput"] == pytest.approx(sum(point["step_s"] for point in seen.journal) / last["wall_s"])
    assert "mfu" not in last and last["rss_bytes"] > 1e8 and last["skipped_batches"] == 0 and last["grad_norm"] > 0


def test_the_board_has_a_line_a_step_and_prometheus_has_the_numbers(seen: Seen) -> None:
    told = [line for line in seen.lines if line.startswith("step ")]
    assert len(told) == STEPS and told[-1].startswith(f"step {STEPS}/{STEPS}  loss {seen.journal[-1]['loss']:.4f}  lr ")
    assert "left" in told[0] and "left" not in told[-1]
    text = "\n".join(seen.metrics)
    for name in ("loss", "tokens_per_second", "learning_rate", "gradient_norm", "goodput_ratio", "worker_memory_bytes"):
        line = next(line for line in seen.metrics if line.startswith(f"ray_medschool_train_{name}{{"))
        assert all(label in line for label in ('run="tiny"', 'phase="pretrain"', 'trial="knowledge"')), line
    for part in ("step", "data_wait", "checkpoint", "report", "other"):
        assert f'part="{part}"' in text
    shown = {line.split('source="')[1].split('"')[0] for line in seen.metrics if "train_source_loss{" in line}
    assert shown == {"books", "papers", "general"}
    losses = [float(line.rsplit(" ", 1)[1]) for line in seen.metrics if line.startswith("ray_medschool_train_loss{")]
    assert any(losses[0] == pytest.approx(point["loss"]) for point in seen.journal)
