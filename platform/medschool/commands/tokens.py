"""`medschool tokens ...`: what training is fed."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medschool.commands.arguments import AsJson, Overrides, RecipePath, store_alone, table
from medschool.commands.finished import finished
from medschool.errors import RecipeError
from medschool.recipe import Recipe, load

if TYPE_CHECKING:
    from medschool.tokens.fit import Fit
    from medschool.tokens.listing import Listed
    from medschool.tokens.stream import Feed

app = typer.Typer(name="tokens", no_args_is_help=True, help="What training is fed: rows of tokens and their order.")


@app.command()
def order(
    recipe: RecipePath,
    variant: Annotated[str, typer.Option(help="A variant of the recipe that has weights.")],
    trial_seed: Annotated[int | None, typer.Option(help="One of its training seeds; the first when left out.")] = None,
    from_step: Annotated[int, typer.Option(min=1, help="First optimizer step to list.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Steps to list.")] = 1,
    world_size: Annotated[int, typer.Option(min=1, help="Training workers to deal the rows to.")] = 1,
    overrides: Overrides = [],  # noqa: B006 (typer's own form)
    as_json: AsJson = False,
) -> None:
    """List the rows that the workers are fed, step by step, without training. The tokens stages must be finished.

    Example: medschool tokens order recipes/quickstart.yaml --variant knowledge --from-step 100 --world-size 2 --json
    """
    from medschool.tokens.listing import rows_of_steps

    feed = planned_feed(load(recipe, overrides), store_alone(), variant, trial_seed)
    rows = rows_of_steps(feed, from_step, steps, world_size)
    for line in (json.dumps(asdict(row)) for row in rows) if as_json else _table(rows):
        print(line)


@app.command()
def fit(
    recipe: RecipePath,
    against: Annotated[
        list[str], typer.Option(metavar="NAME=FOLDER", help="Another tokenizer, a folder with tokenizer.json; repeatable.")
    ] = [],  # noqa: B006
    general: Annotated[str, typer.Option(help="Source of general text, which biomedical words are told apart from.")] = "general",
    documents: Annotated[int, typer.Option(min=1, help="Documents to sample from each source.")] = 2000,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Report how the tokenizer cuts biomedical words, source by source, against other tokenizers. The corpus must be finished.

    Example: medschool tokens fit recipes/quickstart.yaml --against llama=models/llama
    """
    from medschool.artifact import local_copy
    from medschool.tokens.fit import fits, sample
    from medschool.tokens.tokenizer import load_tokenizer

    checked = load(recipe, overrides)
    if general not in checked.sources:
        raise RecipeError(f"{general!r} is no source", f"name one of {', '.join(checked.sources)}", "--general")
    folders = dict(_named_folder(one) for one in against)
    made = finished(checked, store_alone(), ["tokenizer", *(f"corpus/{name}" for name in checked.sources)])
    tokenizers = {"this recipe's": load_tokenizer(local_copy(made["tokenizer"]))}
    tokenizers |= {name: load_tokenizer(folder) for name, folder in folders.items()}
    samples = {name: sample(made[f"corpus/{name}"], checked.seed, documents) for name in checked.sources}
    found = fits(samples, samples[general].words, tokenizers)
    for line in [json.dumps([asdict(one) for one in found], indent=1)] if as_json else _fit_table(found):
        print(line)


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals or not name:
        raise RecipeError(f"cannot read {text!r}", "write NAME=FOLDER", "--against")
    return name, Path(folder)


def _fit_table(found: list["Fit"]) -> list[str]:
    head = [
        "source",
        "tokenizer",
        "documents",
        "chars/token",
        "tokens/word",
        "biomedical words",
        "tokens/biomedical word",
        "whole",
    ]
    lines = [head]
    for one in found:
        bio, whole = one.tokens_per_biomedical_word, one.whole_biomedical_share
        cells = [f"{one.documents:,}", f"{one.chars_per_token:.2f}", f"{one.tokens_per_word:.2f}", f"{one.biomedical_words:,}"]
        ends = ["-" if bio is None else f"{bio:.2f}", "-" if whole is None else f"{whole:.0%}"]
        lines.append([one.source, one.tokenizer, *cells, *ends])
    return table(lines)


def planned_feed(recipe: Recipe, store_uri: str, variant: str, seed: int | None) -> "Feed":
    """The feed of a variant's pretraining under one seed, from finished stages.

    Raises RecipeError for a variant without weights or a seed that the recipe does not train with, StageError for a stage that
    is not finished.
    """
    from medschool.procedure import phase_sources
    from medschool.tokens.order import order_of
    from medschool.tokens.stream import feed_of
    from medschool.tokens.where import index_of
    from medschool.tokens.withheld import read_withheld

    known = [name for name, spec in recipe.variants.items() if spec.weights is not None]
    if variant not in known:
        raise RecipeError(f"{variant!r} is no variant with weights", f"name one of {', '.join(known)}", "--variant")
    seeds = recipe.train_seeds or (recipe.seed,)
    if seed is not None and seed not in seeds:
        raise RecipeError(f"{seed} is no training seed", f"name one of {', '.join(map(str, seeds))}", "--trial-seed")
    sources = phase_sources(recipe, variant, "pretrain")
    kinds = ("tokens", "withheld") if recipe.exams else ("tokens",)
    found = finished(recipe, store_uri, [f"{kind}/{source}" for kind in kinds for source in sources])
    made = {source: found[f"tokens/{source}"] for source in sources}
    withheld = {source: read_withheld(found[f"withheld/{source}"]) for source in sources if recipe.exams}
    indexes = {name: index_of(item) for name, item in made.items()}
    shard_rows = {name: index.shard_rows for name, index in indexes.items()}
    order = order_of(recipe, variant, "pretrain", seeds[0] if seed is None else seed, shard_rows, withheld)
    return feed_of(order, {name: (made[name], index) for name, index in indexes.items()})


def _table(rows: Iterator["Listed"]) -> list[str]:
    """A line a row; the sha256 is cut to 12 digits, the documents to the first and a count."""
    lines = [["step", "index", "rank", "source", "shard", "row", "sha256", "documents"]]
    for row in rows:
        more = f" and {len(row.documents) - 1} more" if len(row.documents) > 1 else ""
        cut = {"sha256": row.sha256[:12], "documents": "".join(row.documents[:1]) + more}
        lines.append([str(value) for value in (vars(row) | cut).values()])
    return table(lines)
