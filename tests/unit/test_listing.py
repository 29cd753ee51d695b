"""`medschool tokens order`: what it lists is what the stream would feed, for any number of workers, and it trains nothing."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from medschool import artifact
from medschool.artifact import Output, write_file, write_parquet
from medschool.cli import app
from medschool.errors import RecipeError, StageError
from medschool.procedure import stages
from medschool.recipe import Recipe, load
from medschool.stage import Resolved, fingerprint_in, raw_listing, resolve
from medschool.tokens.shards import INDEX, Index, index_bytes, ipc_bytes, rows_schema, shard_path
from medschool.tokens.stream import read_block
from medschool.tokens.withheld import ROWS, ROWS_SCHEMA

ROW_TOKENS, SHARDS = 6, {"books": (9, 4), "papers": (5, 7)}
OUT = {"books": {0: [1, 8]}, "papers": {1: [0]}}
RECIPE = """\
name: listed
seed: 3
train_seeds: [3, 4]
model: {uri: raw/model, dtype: fp32}
sources:
  books: {files: [{uri: raw/a.txt, format: prose, licence: cc0}], licences: [cc0]}
  papers: {files: [{uri: raw/a.txt, format: prose, licence: cc0}], licences: [cc0]}
clean: {min_chars: 4}
tokens: {row_tokens: 6, heldout_tokens: 6, heldout_document_tokens: 6}
pretrain: {batch_rows: 5, length: {steps: 12}, optimizer: {lr: 1e-2, warmup_fraction: 0.1}}
exams:
  clinical: {files: [{uri: raw/a.txt, format: mmlu}]}
variants:
  base: {}
  knowledge: {weights: {books: 3, papers: 1}, weights_from: {4: {papers: 1}}}
"""


def finish(store: str, recipe: Recipe, kinds: set[str]) -> None:
    """Commit an artifact for every stage of these kinds: real rows for tokens, real places for withheld, a stub for the others."""
    done: dict[str, Resolved] = {}
    for stage in (stage for stage in stages(recipe) if stage.kind in kinds):
        inputs = {role: done[name].artifact for role, name in stage.inputs.items()}
        fingerprint = fingerprint_in(stage, {role: made for role, made in inputs.items() if made}, raw_listing(stage, store))
        kind, source = stage.kind, stage.name.split("/")[-1]

        def do(prefix: str, kind: str = kind, source: str = source) -> Output:
            if kind == "tokens":
                return Output(token_files(prefix, source))
            if kind == "withheld":
                places = [(shard, row) for shard, rows in OUT[source].items() for row in rows]
                table = pa.table([list(column) for column in zip(*places, strict=True)], schema=ROWS_SCHEMA)
                return Output((write_parquet(prefix, ROWS, table),), {"rows": len(places)})
            return Output((write_file(prefix, "x", f"{kind} {source}".encode()),))

        artifact.make(store, stage.identity, fingerprint, {}, do)
        done[stage.name] = resolve(stage, store, done)
        assert done[stage.name].state == "cached"


def token_files(prefix: str, source: str) -> tuple[artifact.ArtifactFile, ...]:
    files = []
    for shard, rows in enumerate(SHARDS[source]):
        tokens = [[1000 * shard + 10 * row + place for place in range(ROW_TOKENS)] for row in range(rows)]
        ids = [[f"{source}:{shard}:{row}", f"{source}:tail"] for row in range(rows)]
        columns = [tokens, [[True] * ROW_TOKENS] * rows, ids, [[ROW_TOKENS - 1, 1]] * rows]
        files.append(
            write_file(prefix, shard_path(shard), ipc_bytes(pa.table(columns, schema=rows_schema(ROW_TOKENS, "uint16"))))
        )
    shards = tuple((shard_path(shard), rows) for shard, rows in enumerate(SHARDS[source]))
    return (*files, write_file(prefix, INDEX, index_bytes(Index(ROW_TOKENS, "uint16", 0, shards, 1, 0, 0, 0))))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    (folder / "raw" / "model").mkdir(parents=True)
    (folder / "raw" / "a.txt").write_text("text")
    (folder / "raw" / "model" / "tokenizer.json").write_text("{}")
    (folder / "listed.yaml").write_text(RECIPE)
    kinds = {"model", "tokenizer", "exams", "corpus", "duplicates", "overlap", "tokens", "withheld"}
    finish(str(folder), load(folder / "listed.yaml"), kinds)
    return folder


@pytest.fixture
def listed(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MEDSCHOOL_STORE", str(store))
    monkeypatch.setenv("MEDSCHOOL_HOME", str(tmp_path))

    def verb(*words: str) -> str:
        arguments = ["tokens", "order", str(store / "listed.yaml"), "--variant", "knowledge", *words]
        return CliRunner().invoke(app, arguments, catch_exceptions=False).output

    return verb


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_row_is_listed_as_it_is_stored(listed: Any) -> None:
    found = rows(listed("--from-step", "2", "--steps", "8", "--json"))
    assert [row["index"] for row in found] == list(range(5, 45)) and {row["rank"] for row in found} == {0}
    assert [row["step"] for row in found] == [2 + n // 5 for n in range(40)]
    for row in found:
        tokens = np.array([1000 * row["shard"] + 10 * row["row"] + place for place in range(ROW_TOKENS)], dtype="<u2")
        assert row["sha256"] == hashlib.sha256(tokens.tobytes()).hexdigest()
        assert row["documents"] == [f"{row['source']}:{row['shard']}:{row['row']}", f"{row['source']}:tail"]
        assert row["row"] not in OUT[row["source"]].get(row["shard"], [])
    assert {row["source"] for row in found if row["step"] > 4} == {"papers"}
    # rows 5 .. 19 of the run are 4, 4 and 3 of books: 3 to 1 of five rows is 3.75, the rest is carried
    assert Counter(row["source"] for row in found if row["step"] <= 4) == {"books": 11, "papers": 4}


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_any_number_of_workers_gets_the_same_rows_and_what_the_stream_reads(listed: Any, store: Path, world: int) -> None:
    from medschool.commands.tokens import planned_feed

    found = rows(listed("--steps", "6", "--world-size", str(world), "--json"))
    alone = rows(listed("--steps", "6", "--json"))
    assert [{**row, "rank": 0} for row in found] == alone
    feed = planned_feed(load(store / "listed.yaml"), str(store), "knowledge", None)
    for step in range(1, 7):
        for rank in range(world):
            fed = [row for row in read_block(feed, step - 1, rank, world).to_pylist() if row["weight"]]
            mine = [row for row in found if (row["step"], row["rank"]) == (step, rank)]
            keys = ("source", "shard", "row")
            assert [[row[key] for key in keys] for row in mine] == [[row[key] for key in keys] for row in fed]


def test_each_training_seed_has_an_order_of_its_own(listed: Any) -> None:
    assert listed("--json") == listed("--trial-seed", "3", "--json") != listed("--trial-seed", "4", "--json")


def test_the_table_has_a_line_a_row(listed: Any) -> None:
    lines = listed().splitlines()
    assert lines[0].split() == ["step", "index", "rank", "source", "shard", "row", "sha256", "documents"] and len(lines) == 6
    assert all("and 1 more" in line for line in lines[1:])


@pytest.mark.parametrize("words", [["tokens", "order"], *(["ledger", verb] for verb in ("why", "withdraw", "diff"))])
def test_every_verb_of_a_group_has_help_with_an_example(words: list[str]) -> None:
    shown = CliRunner().invoke(app, [*words, "--help"])
    assert shown.exit_code == 0 and f"Example: medschool {' '.join(words)} " in " ".join(shown.output.split()), shown.output


def test_what_cannot_be_listed_is_refused(store: Path, tmp_path: Path) -> None:
    from medschool.commands.tokens import planned_feed

    recipe = load(store / "listed.yaml")
    with pytest.raises(RecipeError, match="'base' is no variant with weights"):
        planned_feed(recipe, str(store), "base", None)
    with pytest.raises(RecipeError, match="5 is no training seed"):
        planned_feed(recipe, str(store), "knowledge", 5)
    with pytest.raises(StageError, match="is not finished"):
        planned_feed(load(store / "listed.yaml", ["tokens.row_tokens=7"]), str(store), "knowledge", None)
