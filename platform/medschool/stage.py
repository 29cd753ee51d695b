"""The order of stages as data: what each one makes, from what, and which recipe sections decide its content.

    raw files --corpus/<source>--> documents --tokens/<source>--> rows + held-out documents --pretrain/<variant>--> checkpoint
    raw model --model--> weights, --tokenizer--> tokenizer   checkpoint or model --evaluate/<variant>--> losses --verdict--> table

`plan`, the jobs and the tests read this list; nothing else knows the order. A section enters whole: a new key is part of the
fingerprint unless it is dropped here by name, so forgetting one can cost a rerun but never a stale result.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from medschool import storage
from medschool.artifact import Artifact, digest_of, find, fingerprint_of
from medschool.errors import MedschoolError
from medschool.recipe import Recipe

State = Literal["cached", "run", "blocked"]


@dataclass(frozen=True)
class Stage:
    """One stage of one recipe."""

    name: str
    """`corpus/papers`, `pretrain/knowledge`..."""
    sections: Mapping[str, Any]
    """Everything of the recipe that decides the content, as JSON values."""
    inputs: tuple[str, ...] = ()
    """Stages whose artifacts it reads."""
    raw: tuple[str, ...] = ()
    """URIs of raw files that it reads, below the store or absolute."""
    version: int = 1
    """Version of what it writes; raised when the same inputs give other bytes."""

    @property
    def kind(self) -> str:
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Resolved:
    """A stage as it stands in a store. The fingerprint is known once every input is finished."""

    stage: Stage
    state: State
    fingerprint: str | None
    artifact: Artifact | None
    reason: str
    """Why it is blocked or must run, in words."""


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """All stages of a recipe in an order in which they can run."""
    made = [
        Stage("model", {"model": _json(recipe.model)}, raw=(recipe.model.uri,)),
        Stage("tokenizer", {"uri": recipe.model.uri}, raw=(recipe.model.uri,)),
    ]
    for name, source in recipe.sources.items():
        text = {
            "source": {"name": name, "files": _json(source)["files"], "licences": sorted(source.licences)},
            "clean": _json(recipe.clean),
        }
        made.append(Stage(f"corpus/{name}", text, raw=tuple(files.uri for files in source.files)))
    for name in recipe.sources:
        rows = {"tokens": _json(recipe.tokens), "seed": recipe.seed}
        made.append(Stage(f"tokens/{name}", rows, inputs=(f"corpus/{name}", "tokenizer")))
    for name, variant in recipe.variants.items():
        weights = variant.weights
        if weights is None:
            continue
        phase = {"pretrain": _json(recipe.pretrain), "weights": weights, "dtype": recipe.model.dtype, "seed": recipe.seed}
        if recipe.pretrain.length.epochs_of:
            phase["counting_weights"] = counting_weights(recipe)
        sources = sorted({*weights, *([recipe.pretrain.length.epochs_of] if recipe.pretrain.length.epochs_of else [])})
        made.append(Stage(f"pretrain/{name}", phase, inputs=("model", *(f"tokens/{source}" for source in sources))))
    heldout = tuple(f"tokens/{source}" for source in recipe.sources)
    for name, variant in recipe.variants.items():
        model = "model" if variant.weights is None else f"pretrain/{name}"
        made.append(Stage(f"evaluate/{name}", {"dtype": recipe.model.dtype}, inputs=(model, *heldout)))
    verdict = {
        "evaluate": _json(recipe.evaluate),
        "gate": _json(recipe.gate),
        "variants": list(recipe.variants),
        "seed": recipe.seed,
    }
    made.append(Stage("verdict", verdict, inputs=tuple(f"evaluate/{name}" for name in recipe.variants)))
    return tuple(made)


def counting_weights(recipe: Recipe) -> dict[str, int]:
    """Weights of the first variant that trains on the source which counts epochs; they set the length of all variants."""
    counted = recipe.pretrain.length.epochs_of
    return next(variant.weights for variant in recipe.variants.values() if variant.weights and counted in variant.weights)


def _json(section: Any) -> Any:
    return None if section is None else section.model_dump(mode="json")


def resolve(stage: Stage, store_uri: str, done: Mapping[str, Resolved]) -> Resolved:
    """Where a stage stands, given its inputs' standing: finished under its fingerprint, to run, or blocked and why."""
    for name in stage.inputs:
        if done[name].state == "blocked":
            return Resolved(stage, "blocked", None, None, f"waits for {name}, which is blocked")
    try:
        raw = raw_listing(stage, store_uri)
        if missing := [name for name in stage.inputs if done[name].artifact is None]:
            return Resolved(stage, "run", None, None, f"after {', '.join(missing)}")
        fingerprint = fingerprint_in(stage, {name: _artifact(done[name]) for name in stage.inputs}, raw)
        found = find(store_uri, stage.name, fingerprint)
    except MedschoolError as error:
        return Resolved(stage, "blocked", None, None, f"{error.where}: {error.problem}" if error.where else error.problem)
    return Resolved(
        stage, "cached" if found else "run", fingerprint, found, "" if found else "no artifact with this fingerprint yet"
    )


def resolve_all(recipe: Recipe, store_uri: str) -> dict[str, Resolved]:
    """Every stage of the recipe as it stands in the store, in order."""
    done: dict[str, Resolved] = {}
    problem = _store_problem(store_uri)
    for stage in stages(recipe):
        done[stage.name] = Resolved(stage, "blocked", None, None, problem) if problem else resolve(stage, store_uri, done)
    return done


def _store_problem(store_uri: str) -> str:
    """Why nothing can be looked up in the store, asked once instead of once a stage; '' when it answers."""
    if not store_uri:
        return "no object store is known; run `medschool up`, or set MEDSCHOOL_STORE"
    try:
        storage.exists(storage.join(store_uri, "artifacts"))
    except MedschoolError as error:
        return f"{error.problem}; {error.remedy}"
    return ""


def fingerprint_in(stage: Stage, inputs: Mapping[str, Artifact], raw: list[list[str]]) -> str:
    """The fingerprint of a stage whose inputs are finished."""
    return fingerprint_of(stage.name, stage.version, stage.sections, {name: inputs[name].digest for name in stage.inputs}, raw)


def raw_listing(stage: Stage, store_uri: str) -> list[list[str]]:
    """[path below the store, size, tag] of every raw file the stage reads; raises InputError when a pattern matches nothing."""
    return [
        [info.uri.removeprefix(store_uri.rstrip("/") + "/"), str(info.size_bytes), info.tag]
        for uri in stage.raw
        for info in storage.require_files(storage.join(store_uri, uri))
    ]


def _artifact(resolved: Resolved) -> Artifact:
    assert resolved.artifact is not None
    return resolved.artifact


def recipe_digest(recipe: Recipe) -> str:
    """First 12 hex digits of everything in the recipe that decides numbers: without its name and cluster."""
    return digest_of(recipe.model_dump(mode="json", exclude={"name", "cluster"}))[:12]
