"""What the benches of training share: a small random LLaMA, invented packed rows in a local store, and a course over them.

    write_store(folder, ...) --> raw/models/small, rows/        setting(folder, ...) --> Course and rows, as a job would make them

The stages before training are left out: rows are packed by medschool's own packer and stored in its own form, and the model is
adopted as it is from any folder. Documents are of random tokens with log-normal lengths (median 150, 1% above 1,500), so a row
holds a few, some of them cut, as rows of abstracts do.
"""

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SEARCHED = [str(ROOT / "platform"), str(ROOT), str(ROOT / "bench")]
sys.path[:0] = SEARCHED

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_LOG_LEVEL": "CRITICAL",
    "RAY_AUTH_MODE": "disabled",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": os.pathsep.join(SEARCHED),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaMA and of its rows."""

    hidden_size: int = 320
    num_hidden_layers: int = 8
    num_attention_heads: int = 5
    num_key_value_heads: int = 5
    intermediate_size: int = 864
    vocab_size: int = 16_000
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 2048


SMALL = Shape()
"""15.0 million parameters."""
TINY = Shape(64, 2, 4, 2, 128, 1000, True, 256)
"""0.1 million."""
BILLION = Shape(2048, 16, 32, 8, 8192, 128_256, True, 131_072)
"""1.24 billion: the shape of Llama 3.2 1B."""


def write_store(folder: Path, shape: Shape, dtype: str, row_tokens: int, rows: int) -> Path:
    """A store with a random model of `shape` and one shard of rows; the folder."""
    from medschool.tokens.pack import pack

    write_model(folder, shape, dtype)
    draw = np.random.default_rng(0)
    kind = np.dtype(np.uint16 if shape.vocab_size < 2**16 else np.uint32)
    documents, need = list[np.ndarray](), (rows + 1) * row_tokens
    while need > 0:
        length = int(min(4000, max(8, draw.lognormal(5, 1))))
        documents.append(draw.integers(3, shape.vocab_size, length).astype(kind))
        need -= length
    packed = pack([str(number) for number in range(len(documents))], documents, row_tokens, 2, kind)
    return write_rows(folder, packed, kind)


def write_model(folder: Path, shape: Shape, dtype: str) -> None:
    """A random model of `shape` below raw/models/small of a store."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **vars(shape), bos_token_id=1, eos_token_id=2, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    )
    model = LlamaForCausalLM(config)
    model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]).save_pretrained(folder / "raw" / "models" / "small")


def write_rows(folder: Path, packed: Any, kind: Any) -> Path:
    """Packed rows as the one shard of a store; the folder."""
    from medschool.tokens.shards import ipc_bytes, rows_table

    (folder / "rows" / "shards").mkdir(parents=True)
    (folder / "rows" / "shards" / "00000.arrow").write_bytes(ipc_bytes(rows_table(packed, kind)))
    (folder / "rows" / "about.json").write_text(
        json.dumps({"row_tokens": packed.tokens.shape[1], "rows": len(packed.tokens), "dtype": kind.name})
    )
    return folder


def setting(
    folder: Path, name: str, dtype: str, steps: int, batch_rows: int, cluster: Mapping[str, Any], mlflow_run: Any = None
) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """The course of `steps` steps over a store of write_store, and its rows: what make_checkpoint takes."""
    from medschool.artifact import Artifact, upload_folder
    from medschool.recipe import Recipe
    from medschool.tokens.order import order_of
    from medschool.tokens.shards import Index
    from medschool.train.adopt import adopt_model, model_folder
    from medschool.train.course import Course

    about = json.loads((folder / "rows" / "about.json").read_text())
    files = {"files": [{"uri": "raw/none.txt", "format": "prose"}], "licences": ["public-domain"]}
    recipe = Recipe.model_validate(
        {
            "name": "bench", "seed": 0, "model": {"uri": "raw/models/small", "dtype": dtype}, "sources": {"text": files},
            "clean": {"min_chars": 1}, "variants": {"knowledge": {"weights": {"text": 1}}}, "cluster": cluster,
            "tokens": {"row_tokens": about["row_tokens"], "heldout_tokens": 1, "heldout_document_tokens": 1},
            "pretrain": {"batch_rows": batch_rows, "length": {"steps": steps}, "optimizer": {"lr": 3e-4, "warmup_fraction": 0.1}},
        }
    )  # fmt: skip
    index = Index(about["row_tokens"], about["dtype"], 2, (("shards/00000.arrow", about["rows"]),), 0, 0, 0, 0)
    rows = Artifact("tokens/text", "", "", str(folder / "rows"), upload_folder(str(folder / "rows"), folder / "rows"), {}, {}, 0)
    base = model_folder(recipe, str(folder))
    model = Artifact("model", "", "", base, adopt_model(recipe, str(folder)).files, {}, {}, 0)
    order = order_of(recipe, "knowledge", "pretrain", 0, {"text": index.shard_rows}, {})
    course = Course(
        recipe, "pretrain", "knowledge", model, order, steps, f"{folder}/runs/{name}", f"{folder}/made/{name}", mlflow_run
    )
    return course, {"text": (rows, index)}


@contextmanager
def own_ray(num_cpus: int, num_gpus: int = 0) -> Iterator[None]:
    """A Ray of this process's own, ended with the block."""
    import ray

    with tempfile.TemporaryDirectory(prefix="ms-ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:  # short: sockets
        ray.init(
            address="local", num_cpus=num_cpus, num_gpus=num_gpus, include_dashboard=False, log_to_driver=False,
            logging_level=logging.WARNING, object_store_memory=500_000_000, _temp_dir=folder,
        )  # fmt: skip
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            yield
        finally:
            ray.shutdown()


def run_ours(course: Any, rows: dict[str, tuple[Any, Any]], hear: Callable[[str], None] = lambda line: None) -> Any:
    """Train the course under Ray Train, as a job does; what the stage made. `hear` is given each line as it is said."""
    from medschool.board import printing
    from medschool.train.on_ray import make_checkpoint

    with printing(hear) as board:
        return make_checkpoint(course, rows, board)


def batches_of(course: Any, rows: dict[str, tuple[Any, Any]], rank: int, world_size: int) -> list[Any]:
    """This rank's tables of every batch, read before anything is timed."""
    from medschool.tokens.stream import feed_of, read_block

    feed = feed_of(course.order, rows)
    return [read_block(feed, batch, rank, world_size) for batch in range(course.steps)]


def journal_of(made: Any, course: Any) -> list[dict[str, float]]:
    """What was measured at each step of a finished training."""
    from medschool import storage
    from medschool.track import read_journal
    from medschool.train.saving import JOURNAL

    return read_journal(storage.read_bytes(storage.join(course.prefix_uri, JOURNAL)))
