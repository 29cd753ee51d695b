"""`medschool exam`: a recipe's exams sat by a model behind an OpenAI-compatible endpoint, ours or another's."""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medschool.commands.arguments import AsJson, Overrides, RecipePath, store_alone
from medschool.errors import InputError, RecipeError, StageError
from medschool.recipe import Recipe, load

if TYPE_CHECKING:
    from medschool.artifact import Artifact
    from medschool.evaluate.at_endpoint import Reader
    from medschool.evaluate.endpoint import Endpoint
    from medschool.stage import Resolved

app = typer.Typer()
SUMMARY = "results.json"


@app.command()
def exam(
    recipe: RecipePath,
    endpoint: Annotated[str, typer.Option(metavar="URL", help="What /chat/completions follows: http://127.0.0.1:8000/v1.")],
    model: Annotated[str, typer.Option(help="The model's name there.")],
    only: Annotated[list[str], typer.Option("--exam", help="One of the recipe's exams; repeatable. All when left out.")] = [],  # noqa: B006
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Tokenizer and config.json of the served model, for lm_eval.")
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Items under way at the same time.")] = 4,
    overrides: Overrides = [],  # noqa: B006 (typer's own form)
    as_json: AsJson = False,
) -> None:
    """Let a model behind an OpenAI-compatible endpoint sit the recipe's exams. Its key comes from MEDSCHOOL_EXAM_KEY; `medschool
    status` prints the address of the model that is served here.

    Exams under lm_eval are asked through /completions with echo and logprobs; under chain_of_thought, and all others, in words
    through /chat/completions. Every answer is kept in a file: a run that was interrupted goes on where it stopped.

    Example: medschool exam recipes/quickstart.yaml --endpoint http://127.0.0.1:8000/v1 --model medschool

    Example: medschool exam recipes/answers.yaml --endpoint http://127.0.0.1:8000/v1 --model base --exam mmlu_clinical --json
    """
    from medschool.evaluate.endpoint import Endpoint

    checked = load(recipe, overrides)
    if unknown := [name for name in only if name not in checked.exams]:
        there_are = ", ".join(checked.exams) or "none"
        raise RecipeError(f"{unknown[0]!r} is no exam of the recipe", f"there are: {there_are}", "--exam")
    if not checked.exams:
        raise RecipeError("the recipe has no `exams`", "give it one", str(recipe))
    store_uri, reader = store_alone(), _reader(tokenizer) if tokenizer else None
    with closing(Endpoint(endpoint, model)) as asked:
        asked.check()
        found = _sat(checked, only or list(checked.exams), store_uri, asked, reader, at_once)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for line in _lines(found):
        print(line)


def _reader(folder: Path) -> "Reader":
    """The tokenizer in a folder, and the context that its config.json tells. Raises InputError where either is missing."""
    from medschool.evaluate.at_endpoint import Reader
    from medschool.evaluate.harness import harness_encoder

    try:
        context = json.loads((folder / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
        return Reader(harness_encoder(folder), int(context))
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"not a model's folder ({type(error).__name__}: {error})"
        remedy = "it needs config.json with max_position_embeddings, and the tokenizer's files"
        raise InputError(problem, remedy, str(folder)) from error


def _sat(
    recipe: Recipe, names: list[str], store_uri: str, endpoint: "Endpoint", reader: "Reader | None", at_once: int
) -> dict[str, Any]:
    """Scores of every exam as plain JSON values, which also lie beside the answers."""
    from medschool.procedure import resolve_all

    done = resolve_all(recipe, store_uri)
    folder, found = _folder(recipe, endpoint), _in_corpus(recipe, done)
    exams = {
        name: _one(recipe, name, _items(recipe, name, store_uri, done[f"exams/{name}"]), folder, endpoint, reader, at_once, found)
        for name in names
    }
    told = {
        "endpoint": endpoint.url, "model": endpoint.model, "recipe": recipe.name, "confidence": recipe.evaluate.confidence,
        "exams": exams, "folder": str(folder), "notice": "not for clinical use",
    }  # fmt: skip
    (folder / SUMMARY).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return told


def _one(
    recipe: Recipe,
    name: str,
    made: "Artifact",
    folder: Path,
    endpoint: "Endpoint",
    reader: "Reader | None",
    at_once: int,
    in_corpus: Mapping[str, frozenset[str]],
) -> dict[str, Any]:
    """One exam: its entry as in a verdict's JSON, and how many answers could not be read or were refused."""
    import pyarrow as pa

    from medschool.ablate.exam_scores import exam_scores
    from medschool.evaluate.at_endpoint import is_refused, sit, way
    from medschool.evaluate.protocol import sitting
    from medschool.exams.make import read_items, read_shots

    spec = recipe.exams[name]
    items = read_items(made)[: spec.items]
    how = way(endpoint, spec, sitting(spec, items, read_shots(made)), recipe.evaluate.answer_tokens, reader)
    path = folder / f"{name}.{how.hash}.jsonl"
    try:
        rows = sit(items, path, how, at_once, _counter(name, len(items)))
    except BaseException:
        endpoint.stop()
        raise
    table = pa.table({key: [row[key] for row in rows] for key in ("id", "correct")})
    spoken, refused = "text" in rows[0], sum(map(is_refused, rows))
    return exam_scores(table, in_corpus.get(name), recipe.evaluate.confidence) | {
        "written": None, "protocol": how.hash, "protocol_name": how.name, "answers": str(path), "refused": refused,
        "unparsed": sum(row["chosen"] is None for row in rows) if spoken else None,
    }  # fmt: skip


def _items(recipe: Recipe, name: str, store_uri: str, found: "Resolved") -> "Artifact":
    """The exam's artifact; made here, without a job, where it is not there yet."""
    from medschool import artifact
    from medschool.exams.make import make_exam

    if found.artifact is not None:
        return found.artifact
    if found.fingerprint is None:
        raise StageError(f"cannot be read ({found.reason})", "put its files into the store", found.stage.name)
    return artifact.make(
        store_uri, found.stage.identity, found.fingerprint, {}, lambda prefix: make_exam(recipe, name, store_uri, prefix)
    )


def _in_corpus(recipe: Recipe, done: Mapping[str, "Resolved"]) -> dict[str, frozenset[str]]:
    """Ids of each exam's items that stand in the corpus or in instructions; nothing is known where a search is not finished."""
    from medschool.ablate.contamination import found_items
    from medschool.procedure import examined_sets, withheld_sources

    searched = {"overlap": withheld_sources(recipe), "instructions": examined_sets(recipe)}
    made = {kind: {name: done[f"{kind}/{name}"].artifact for name in names} for kind, names in searched.items()}
    finished = {kind: {name: one for name, one in found.items() if one is not None} for kind, found in made.items()}
    return found_items(**finished) if all(len(finished[kind]) == len(found) for kind, found in made.items()) else {}


def _folder(recipe: Recipe, endpoint: "Endpoint") -> Path:
    """Where the answers of this model at this endpoint are kept."""
    from medschool.artifact import digest_of
    from medschool.cluster import state

    name = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in endpoint.model)[:60]
    folder = state.home() / "results" / recipe.name / "endpoint" / f"{name}-{digest_of([endpoint.url, endpoint.model])[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _counter(name: str, items: int) -> Callable[[int], None]:
    """Shows the progress in one line of a terminal; nothing elsewhere."""

    def seen(rows: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{name} {rows:,} of {items:,}", end="\n" if rows == items else "", file=sys.stderr, flush=True)

    return seen


def _lines(found: dict[str, Any]) -> list[str]:
    """The table of the report, what was refused, and where the answers are."""
    from medschool.ablate.exam_table import exam_rows
    from medschool.ablate.report import columns

    told = columns(exam_rows([{"name": found["model"], "exams": found["exams"]}]))
    told += [
        f"{name}: {one['refused']:,} of {one['items']:,} items were refused by the endpoint and count as wrong."
        for name, one in found["exams"].items()
        if one["refused"]
    ]
    return [*told, f"answers {found['folder']}", "Not for clinical use."]
