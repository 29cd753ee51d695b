"""A study in miniature: a recipe of four variants, invented scores of its trials, and a store in which all before the verdict is done."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from medschool import artifact
from medschool.ablate.compare import Scored
from medschool.artifact import Output, write_file, write_parquet
from medschool.overlap.search import OVERLAP, OVERLAP_SCHEMA, REMOVED
from medschool.procedure import stages
from medschool.recipe import Recipe
from medschool.stage import Resolved, Stage, resolve

SOURCES = ("books", "papers", "general")
KNOWLEDGE = {"books": 15, "papers": 4, "general": 1}
BASE: dict[str, Any] = {
    "name": "sample",
    "seed": 7,
    "model": {"uri": "raw/models/tiny", "dtype": "fp32"},
    "sources": {name: {"files": [{"uri": f"raw/{name}/*", "format": "prose"}], "licences": ["cc0"]} for name in SOURCES},
    "clean": {"min_chars": 10},
    "tokens": {"row_tokens": 32, "heldout_tokens": 100, "heldout_document_tokens": 32},
    "pretrain": {"batch_rows": 20, "length": {"steps": 2}, "optimizer": {"lr": 1e-3, "warmup_fraction": 0.1}},
    "instruct": {"batch_rows": 20, "length": {"steps": 2}, "optimizer": {"lr": 1e-3, "warmup_fraction": 0.1}},
    "chats": {"row_tokens": 64},
    "instructions": {"school": {"files": [{"uri": "raw/school/*", "format": "mmlu"}], "licences": ["mit"]}},
    "exams": {"clinical": {"files": [{"uri": "raw/exam/*", "format": "mmlu"}]}},
    "variants": {
        "base": {},
        "control": {"weights": {"general": 20}},
        "knowledge": {"weights": KNOWLEDGE},
        "instructed": {"weights": KNOWLEDGE, "instructions": {"school": 1}},
    },
    "evaluate": {"bootstrap_resamples": 300},
    "probes": {"items": 20},
    "gate": {"candidates": ["instructed", "knowledge"], "control": "control", "improves": ["papers"], "keeps": ["clinical"]},
}


def recipe_with(**changes: Any) -> Recipe:
    return Recipe.model_validate({key: value for key, value in (BASE | changes).items() if value is not None})


def losses(level: float, source: str, noise: int) -> list[dict[str, Any]]:
    hard = np.random.default_rng(1).normal(3.0, 0.5, 24)
    jitter = np.random.default_rng(noise).normal(0, 0.01, 24)
    return [
        {"source": source, "id": f"{source}:{k}", "nll_nats": 30 * float(hard[k] * level + jitter[k]), "targets": 30}
        for k in range(24)
    ]


def scored(
    variant: str,
    seed: int | None,
    levels: dict[str, float],
    right: int,
    facts: tuple[int, int],
    trained_seeds: tuple[int, ...] = (7,),
    name: str = "",
) -> Scored:
    """A trial with losses at `levels`, the first `right` of 60 items right, and the first of 20 facts and 20 twins right."""
    rows = [row for source in SOURCES for row in losses(levels.get(source, 1.0), source, seed or 0)]
    probes = [
        {
            "id": f"graph/books:{owner}:{k}", "kind": "graph/books", "seed": owner, "answer": 1, "chosen": 1 if k < known else 0,
            "correct": k < known, "log_prob": -3.0 + (0.1 * known + 0.01 * k), "tokens": 3,
        }
        for owner, known in [*((owner, facts[0]) for owner in trained_seeds), (None, facts[1])]
        for k in range(20)
        if seed in (None, owner) or owner is None
    ]  # fmt: skip
    items = [
        {"exam": "clinical", "id": f"i{k:02}", "answer": 0, "chosen": int(k >= right), "correct": k < right} for k in range(60)
    ]
    said = [
        {"exam": "clinical", "id": f"i{k:02}", "text": "hm", "chosen": 0 if k < 2 else None, "correct": k < 1} for k in range(8)
    ]
    tables = [pa.Table.from_pylist(found) for found in (rows, items, said, probes)]
    return Scored(name or variant, variant, seed, *tables)


def trials(knowledge: float = 0.95, instructed_right: int = 20, instructed: float = 0.95) -> list[Scored]:
    return [
        scored("base", None, {}, 15, (8, 8)),
        scored("control", 7, {"general": 0.97}, 15, (8, 8)),
        scored("knowledge", 7, {"papers": knowledge, "books": 0.9}, 16, (18, 10)),
        scored("instructed", 7, {"papers": instructed, "books": 0.91}, instructed_right, (17, 10)),
    ]


# ---- promotion ----------------------------------------------------------------------------------------------------------------

KEEPS = {"against": "base", "exams": ["clinical"], "sources": ["general"], "accuracy_margin": 0.3, "perplexity_margin": 0.1}
SERVE = {"registered_model": "sample", "alias": "champion"}
PROOF = {"largest_logit_difference": 1e-4, "argmax_agreement": 1.0, "positions": 512}


def promoted_recipe(**changes: Any) -> Recipe:
    """One of which `knowledge` and `instructed` can be promoted."""
    gate = BASE["gate"] | {"candidates": ["knowledge", "instructed"]}
    return recipe_with(**({"retention": KEEPS, "serve": SERVE, "gate": gate} | changes))


HELD = {"clinical": {"items": 60, "found": 1, "documents": 2}}
"""What was found of the exam, in every source and set."""


def facts_of(stage: Stage) -> dict[str, Any]:
    """What a finished stage of this kind says of itself."""
    return {
        "corpus": {"licences": {"cc0": 1200, "cc-by": 34}},
        "instructions": {"licences": {"mit": 55}, "overlap": {"checked": 55, "removed": 1}, "exams": HELD},
        "chats": {"contract": {"trained_tokens": 4321}},
        "overlap": {"exams": HELD},
        "withheld": {"exams": {"clinical": {"rows": 3}}},
        "pretrain": {"proof": PROOF, "tokens": 1280, "steps": 2},
        "instruct": {"proof": PROOF, "tokens": 2560, "steps": 2},
    }.get(stage.kind, {})


def finish(recipe: Recipe, store: Path, without: tuple[str, ...] = ()) -> None:
    """Every stage before the verdict as a finished artifact in the store, but those named."""
    for name in ("models/tiny", "school", "exam", "books", "papers", "general"):
        (store / "raw" / name).mkdir(parents=True, exist_ok=True)
        (store / "raw" / name / "file.txt").write_text(name)
    done: dict[str, Resolved] = {}
    for stage in stages(recipe):
        found = resolve(stage, str(store), done)
        if found.fingerprint and not found.artifact and stage.name not in ("verdict", *without):
            artifact.make(str(store), stage.identity, found.fingerprint, {}, lambda prefix, of=stage: _made(of, prefix))
            found = resolve(stage, str(store), done)
        done[stage.name] = found


def _made(stage: Stage, prefix: str) -> Output:
    files = [write_file(prefix, "ledger.json", stage.name.encode())]
    if stage.kind == "evaluate":
        trial = next(one for one in trials() if one.name == stage.name.removeprefix("evaluate/"))
        kept: dict[str, pa.Table] = {key: getattr(trial, key) for key in ("losses", "answers", "written", "probes")}
        files += [write_parquet(prefix, f"{key}.parquet", rows) for key, rows in kept.items()]
    if stage.kind in ("overlap", "instructions"):
        item, path = ("i00", OVERLAP) if stage.kind == "overlap" else ("i01", REMOVED)
        said = [{"id": f"doc:{k}", "exam": "clinical", "item": item, "share": 1.0, "hits": 8} for k in range(2)]
        files.append(write_parquet(prefix, path, pa.Table.from_pylist(said, OVERLAP_SCHEMA)))
    return Output(tuple(files), facts_of(stage))
