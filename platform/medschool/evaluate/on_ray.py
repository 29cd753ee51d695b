"""The evaluation stage as a Ray Data job, and the probes that it asks.

    held-out documents, exam items, probes --cut into tasks--> scorers, each with the model in memory --> one table a kind

Every task says what it is; a scorer takes whichever comes next, longest first, so that none waits for another at the end.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from medschool import storage
from medschool.artifact import Artifact, Output, local_copy, write_parquet
from medschool.evaluate.alongside import Alongside
from medschool.evaluate.answer import ANSWERS_SCHEMA, as_scores, parse_rates, write_answers
from medschool.evaluate.exams import EXAM_SCORES_SCHEMA, score_as_harness, score_exam
from medschool.evaluate.harness import Encode, harness_encoder
from medschool.evaluate.perplexity import LOSSES_SCHEMA, document_losses
from medschool.evaluate.probes import PROBE_SCORES_SCHEMA, Piece, make_probes, score_probes
from medschool.evaluate.protocol import THOUGHT, Sitting, hashes, sitting
from medschool.exams.layout import RATIONALE_INSTRUCTIONS
from medschool.exams.make import items_of, read_items, read_shots
from medschool.instructions.template import ChatTemplate, template_of
from medschool.procedure import phase_sources, probed_variant
from medschool.recipe import Recipe
from medschool.recipe.training import Model
from medschool.rows import PROBE_SCHEMA, ExamItem, Probe, table
from medschool.seed import seed_of
from medschool.tokens.on_ray import heldout_rows
from medschool.tokens.order import Order, Withheld, order_of
from medschool.tokens.shards import Index, read_rows, tokens_of
from medschool.tokens.tokenizer import Tokenizer, load_tokenizer
from medschool.track import TrackedRun
from medschool.train.model import load_model, model_copy

TABLES = {"losses": LOSSES_SCHEMA, "answers": EXAM_SCORES_SCHEMA, "written": ANSWERS_SCHEMA, "probes": PROBE_SCORES_SCHEMA}
"""What an evaluation holds: `<name>.parquet`, one row an item; empty where the recipe asks for none."""
ORDER_OF_ROWS = {"losses": ("source", "id"), "answers": ("exam", "id"), "written": ("exam", "id"), "probes": ("id",)}
TASK_ITEMS = {"losses": 32, "answers": 16, "written": 8, "probes": 32}


@dataclass(frozen=True)
class Examined:
    """What a variant is measured on."""

    heldout: dict[str, Artifact]
    """Token artifacts by source."""
    exams: dict[str, Artifact]
    probes: Artifact | None


def make_scores(recipe: Recipe, checkpoint: Artifact, examined: Examined, prefix_uri: str) -> Output:
    """Score a model on everything the recipe asks for; one Parquet file for each of TABLES."""
    tasks = [{"table": name, "items": items} for name, items in _tasks(recipe, examined)]
    scored = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map(
        _Scorer,
        fn_constructor_kwargs={
            "checkpoint": checkpoint,
            "dtype": recipe.model.dtype,
            "answer_tokens": recipe.evaluate.answer_tokens,
            "template": template_of(recipe),
            "sittings": _sittings(recipe, examined),
        },
        compute=ray.data.ActorPoolStrategy(size=min(recipe.cluster.score_workers, len(tasks))),
        num_cpus=1,
    )
    tables = _tables(recipe, examined, scored.take_all())
    files = tuple(write_parquet(prefix_uri, f"{name}.parquet", rows) for name, rows in tables.items())
    facts = {
        "perplexity": perplexities(tables["losses"]),
        "accuracy": accuracies(tables["answers"]),
        "parse_rate": parse_rates(tables["written"]),
        "protocols": {name: hashes(tables[name]) for name in ("answers", "written")},
        "cut_prompts": cut_prompts(tables["answers"]),
        "workers": min(recipe.cluster.score_workers, len(tasks)),
    }
    return Output(files, facts)


def _tables(recipe: Recipe, examined: Examined, done: Iterable[dict[str, Any]]) -> dict[str, pa.Table]:
    """The tables of TABLES from what the scorers gave for each task."""
    found: dict[str, list[pa.Table]] = {name: [schema.empty_table()] for name, schema in TABLES.items()}
    for task in done:
        found[task["table"]].append(pa.ipc.open_stream(task["rows"]).read_all())
    found["answers"] += _thought_scores(recipe, examined, pa.concat_tables(found["written"]))
    return {
        name: pa.concat_tables(parts).sort_by([(key, "ascending") for key in ORDER_OF_ROWS[name]])
        for name, parts in found.items()
    }


def _tasks(recipe: Recipe, examined: Examined) -> list[tuple[str, list[Any]]]:
    """(table, items) of every task; items are plain values that Ray carries."""
    documents = [
        {"source": source, "id": id_, "tokens": tokens}
        for source, artifact in examined.heldout.items()
        for id_, tokens in zip(*(heldout_rows(artifact).column(name).to_pylist() for name in ("id", "tokens")), strict=True)
    ]
    documents.sort(key=lambda row: (-len(row["tokens"]), row["id"]))
    items = {
        name: [asdict(item) for item in read_items(artifact)[: recipe.exams[name].items]]
        for name, artifact in examined.exams.items()
    }
    probes = storage.read_parquet(examined.probes.uri(PROBES)).to_pylist() if examined.probes else []
    spoken = {name: None if _is_thought(recipe, name) else exam.generated_items for name, exam in recipe.exams.items()}
    chosen = {name: rows for name, rows in items.items() if not _is_thought(recipe, name)}
    work = {
        "written": [item for name, rows in items.items() for item in rows[: spoken[name]]],
        "answers": [
            item for name, rows in chosen.items() for item in sorted(rows, key=lambda item: _company(recipe, name, item))
        ],
        "losses": documents,
        "probes": probes,
    }
    return [
        (name, rows[first : first + TASK_ITEMS[name]])
        for name, rows in work.items()
        for first in range(0, len(rows), TASK_ITEMS[name])
    ]


def _is_thought(recipe: Recipe, exam: str) -> bool:
    """Whether all items of an exam are answered in words, and that is its score."""
    return recipe.exams[exam].protocol == THOUGHT


def _thought_scores(recipe: Recipe, examined: Examined, written: pa.Table) -> list[pa.Table]:
    """Scores of the exams that are sat by a chain of thought, from their answers."""
    return [
        as_scores(written.filter(pc.equal(written.column("exam"), name)), read_items(artifact))
        for name, artifact in examined.exams.items()
        if _is_thought(recipe, name)
    ]


def _company(recipe: Recipe, exam: str, item: dict[str, Any]) -> tuple[str, int]:
    """What puts items together that are scored well together: those with the same worked questions, then those of one length."""
    return item["subject"] if recipe.exams[exam].shots else "", -len(item["question"])


def _sittings(recipe: Recipe, examined: Examined) -> dict[str, Sitting]:
    """How each exam is sat, by name."""
    return {
        name: sitting(recipe.exams[name], read_items(artifact)[: recipe.exams[name].items], read_shots(artifact))
        for name, artifact in examined.exams.items()
    }


class _Scorer:
    """A process that holds the model and works off tasks."""

    def __init__(self, checkpoint: Artifact, dtype: str, answer_tokens: int, template: str, sittings: dict[str, Sitting]) -> None:
        folder = model_copy(checkpoint)
        self._model, self._template = load_model(folder, dtype).eval(), ChatTemplate(folder, template)
        self._answer_tokens, self._sittings = answer_tokens, sittings
        self._folder = folder
        self._conversation = str(self._template.describe()["chat_template"])

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        rows = getattr(self, f"_{task['table']}")(task["items"]).cast(TABLES[task["table"]])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        return {"table": task["table"], "rows": sink.getvalue().to_pybytes()}

    @cached_property
    def _harness(self) -> Encode:
        return harness_encoder(self._folder)

    def _losses(self, rows: Sequence[dict[str, Any]]) -> pa.Table:
        documents = [np.asarray(row["tokens"]) for row in rows]
        return pa.table(
            {
                "source": [row["source"] for row in rows],
                "id": [row["id"] for row in rows],
                "nll_nats": document_losses(self._model, documents),
                "targets": [max(0, len(document) - 1) for document in documents],
            }
        )

    def _answers(self, rows: Sequence[dict[str, Any]]) -> pa.Table:
        return pa.concat_tables(self._sat(name, items) for name, items in _by_exam(rows))

    def _sat(self, name: str, items: list[ExamItem]) -> pa.Table:
        how = self._sittings[name]
        protocol = how.protocol(self._conversation).hash
        if how.kind == "letters":
            return score_exam(self._model, self._template, items, protocol)
        return score_as_harness(self._model, self._harness, items, how, protocol)

    def _written(self, rows: Sequence[dict[str, Any]]) -> pa.Table:
        return pa.concat_tables(self._spoken(name, items) for name, items in _by_exam(rows))

    def _spoken(self, name: str, items: list[ExamItem]) -> pa.Table:
        how = self._sittings[name]
        if how.thought_tokens is not None:
            protocol, asked = how.protocol(self._conversation).hash, RATIONALE_INSTRUCTIONS[0]
            return write_answers(self._model, self._template, items, how.thought_tokens, protocol, asked)
        protocol = how.written(self._conversation, self._answer_tokens).hash
        return write_answers(self._model, self._template, items, self._answer_tokens, protocol)

    def _probes(self, rows: Sequence[dict[str, Any]]) -> pa.Table:
        probes = [Probe(**{**row, "candidates": tuple(row["candidates"])}) for row in rows]
        return score_probes(self._model, self._template.encode, probes)


def _by_exam(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[ExamItem]]]:
    """The items of each exam among `rows`, in their order."""
    found: dict[str, list[ExamItem]] = {}
    for item in items_of(rows):
        found.setdefault(item.exam, []).append(item)
    return list(found.items())


def read_scores(evaluation: Artifact) -> dict[str, pa.Table]:
    """The tables of a finished evaluation, by name."""
    return {name: storage.read_parquet(evaluation.uri(f"{name}.parquet")) for name in TABLES}


def perplexities(losses: pa.Table) -> dict[str, float]:
    """exp(sum of losses / number of targets) of each source."""
    sums = losses.group_by("source").aggregate([("nll_nats", "sum"), ("targets", "sum")]).to_pylist()
    return {
        row["source"]: float(np.exp(row["nll_nats_sum"] / row["targets_sum"]))
        for row in sorted(sums, key=lambda row: row["source"])
    }


def accuracies(answers: pa.Table) -> dict[str, float]:
    """Share of right answers of each exam."""
    exams = sorted(set(answers.column("exam").to_pylist()))
    return {
        exam: float(pc.mean(answers.filter(pc.equal(answers.column("exam"), exam)).column("correct")).as_py()) for exam in exams
    }


def cut_prompts(answers: pa.Table) -> dict[str, int]:
    """Items of each exam whose prompt was cut to fit into the model's context."""
    counts = answers.filter(pc.greater(answers.column("cut_tokens"), 0)).group_by("exam").aggregate([("id", "count")])
    return {row["exam"]: row["id_count"] for row in counts.sort_by("exam").to_pylist()}


# ---- the probes ---------------------------------------------------------------------------------------------------------------

PROBES = "probes.parquet"
ROWS_A_PROBE = 4
"""Training rows read for each probe wanted: not every row holds a fact that can be asked about."""


def make_probe_set(
    recipe: Recipe,
    rows: dict[str, tuple[Artifact, Index]],
    tokenizer: Artifact,
    steps: int,
    prefix_uri: str,
    withheld: Withheld,
) -> Output:
    """Probes from rows that the gate's first candidate is trained on, under each seed, with twins from the held-out documents."""
    spec = recipe.probes
    assert spec is not None
    tool = load_tokenizer(local_copy(tokenizer))
    names = phase_sources(recipe, probed_variant(recipe), "pretrain")
    pieces = [piece for name in names for piece in _heldout_pieces(name, rows[name][0], tool)]
    shard_rows = {name: rows[name][1].shard_rows for name in names}
    for seed in recipe.train_seeds or (recipe.seed,):
        order = order_of(recipe, probed_variant(recipe), "pretrain", seed, shard_rows, withheld)
        pieces += _trained_pieces(recipe, rows, tool, order, steps)
    probes = make_probes(pieces, spec.items, spec.candidates, recipe.seed)
    counts: dict[str, dict[str, int]] = {}
    for probe in probes:
        kind = counts.setdefault(probe.kind, {"trained": 0, "twins": 0})
        kind["twins" if probe.seed is None else "trained"] += 1
    return Output((write_parquet(prefix_uri, PROBES, table(probes, PROBE_SCHEMA)),), counts)


def _heldout_pieces(source: str, tokens: Artifact, tool: Tokenizer) -> list[Piece]:
    held = heldout_rows(tokens)
    texts = tool.decode(held.column("tokens").to_pylist())
    return [Piece(source, id_, text, None) for id_, text in zip(held.column("id").to_pylist(), texts, strict=True)]


def _trained_pieces(
    recipe: Recipe, rows: dict[str, tuple[Artifact, Index]], tool: Tokenizer, order: Order, steps: int
) -> list[Piece]:
    """Pieces of documents in a sample of the rows that training in this order sees, as text."""
    assert recipe.probes is not None
    pieces, seed = [], order.seed
    for name, count in order.mixture.rows_before(steps).items():
        places = sorted(range(count), key=lambda place: seed_of(seed, "probe", name, place))[: ROWS_A_PROBE * recipe.probes.items]
        by_shard: dict[int, set[int]] = {}
        for place in places:
            _, shard, row = order.locate(name, place)
            by_shard.setdefault(shard, set()).add(row)
        for shard, wanted in sorted(by_shard.items()):
            stored = read_rows(rows[name][0].uri(rows[name][1].shards[shard][0]), sorted(wanted))
            pieces += _pieces(name, stored, tool, seed)
    return pieces


def _pieces(source: str, stored: pa.Table, tool: Tokenizer, seed: int) -> list[Piece]:
    found = []
    for tokens, ids, lengths in zip(
        tokens_of(stored), stored.column("doc_ids").to_pylist(), stored.column("doc_lengths").to_pylist(), strict=True
    ):
        ends = np.cumsum(lengths)
        texts = tool.decode([tokens[end - length : end].tolist() for end, length in zip(ends, lengths, strict=True)])
        found += [Piece(source, id_, text, seed) for id_, text in zip(ids, texts, strict=True)]
    return found


# ---- beside training ----------------------------------------------------------------------------------------------------------

LAST_MEASURE_S = 30.0
"""How long the end of a training waits for a measurement under way."""


@contextmanager
def beside_training(
    model: Model, heldout: dict[str, Artifact], run_uri: str, run: TrackedRun | None, phase: str
) -> Iterator[Any]:
    """What medschool.train calls with each copy of the weights (train.handout.Measure): scores it in a process of its own.

    The process takes one logical CPU; where none is free it waits for one, and training does not.
    """
    actor = (
        ray.remote(Alongside).options(num_cpus=1, max_restarts=-1, max_task_retries=0).remote(model, heldout, run_uri, run, phase)
    )
    try:
        yield partial(_measured, actor)
    finally:
        with suppress(Exception):
            ray.get(actor.close.remote(), timeout=LAST_MEASURE_S)
        ray.kill(actor)


def _measured(actor: Any, step: int, folder_uri: str) -> None:
    ray.get(actor.measure.remote(step, folder_uri))
