"""The evaluation stage as a Ray Data job: held-out documents dealt to scorers, each with the model in memory."""

import functools
import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from medschool.artifact import Artifact, Output, write_file
from medschool.evaluate.perplexity import document_losses
from medschool.recipe import Recipe
from medschool.tokens.on_ray import heldout_rows
from medschool.train.model import load_model, model_copy

LOSSES = "losses.parquet"
DOCUMENTS_A_TASK = 32


def make_scores(recipe: Recipe, checkpoint: Artifact, tokens: dict[str, Artifact], prefix_uri: str) -> Output:
    """Score every held-out document of every source: rows (source, id, nll_nats, targets)."""
    rows = pa.concat_tables(
        [
            table.append_column("source", pa.array([name] * table.num_rows))
            for name, table in ((name, heldout_rows(artifact)) for name, artifact in tokens.items())
        ]
    )
    rows = rows.append_column("length", pc.list_value_length(rows.column("tokens"))).sort_by(
        [("length", "descending"), ("id", "ascending")]
    )
    groups = [rows.slice(first, DOCUMENTS_A_TASK).combine_chunks() for first in range(0, len(rows), DOCUMENTS_A_TASK)]
    scored = ray.data.from_arrow(groups).map_batches(
        _Scorer,
        fn_constructor_kwargs={"checkpoint": checkpoint, "dtype": recipe.model.dtype},
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=recipe.cluster.score_workers),
        num_cpus=1,
    )
    table = pa.Table.from_pylist(scored.take_all()).sort_by([("source", "ascending"), ("id", "ascending")])
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return Output((write_file(prefix_uri, LOSSES, sink.getvalue()),), {"perplexity": perplexities(table)})


class _Scorer:
    """A process that holds the model and scores groups of documents."""

    def __init__(self, checkpoint: Artifact, dtype: str) -> None:
        self._model = load_model(model_copy(checkpoint), dtype).eval()

    def __call__(self, rows: pa.Table) -> pa.Table:
        documents = [np.asarray(tokens) for tokens in rows.column("tokens").to_pylist()]
        losses = document_losses(self._model, documents)
        targets = [max(0, len(document) - 1) for document in documents]
        return pa.table({"source": rows.column("source"), "id": rows.column("id"), "nll_nats": losses, "targets": targets})


@functools.lru_cache(maxsize=8)
def read_losses(uri: str) -> pa.Table:
    from medschool import storage

    return pq.read_table(io.BytesIO(storage.read_bytes(uri)))


def perplexities(losses: pa.Table) -> dict[str, float]:
    """exp(sum of losses / number of targets) of each source."""
    sums = losses.group_by("source").aggregate([("nll_nats", "sum"), ("targets", "sum")]).to_pylist()
    return {
        row["source"]: float(np.exp(row["nll_nats_sum"] / row["targets_sum"]))
        for row in sorted(sums, key=lambda row: row["source"])
    }
