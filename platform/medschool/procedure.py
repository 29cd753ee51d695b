"""The order of stages as data: what each one makes, from what, and which recipe sections decide its content.

    raw files --corpus/<source>--> documents --tokens/<source>--> rows + held-out documents
    raw files --exams/<exam>--> items        raw files + items --instructions/<set>--> conversations --chats/<set>--> rows
    raw model --model--> weights, --tokenizer--> tokenizer          rows of the candidate --probes--> facts and their twins

    weights --pretrain/<trial>--> checkpoint --instruct/<trial>--> checkpoint --evaluate/<trial>--> scores of every item
    scores of all trials --verdict--> what helped

A trial is one variant under one training seed. `plan`, the jobs and the tests read this list; nothing else knows the order. A
section enters whole: a new key is part of the fingerprint unless it is dropped here by name, so forgetting one can cost a rerun
but never a stale result. Two stages name what they take instead, because most of those sections is not theirs: `probes` of the
training, `evaluate` of the section of its name.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from medschool import storage
from medschool.artifact import digest_of
from medschool.errors import MedschoolError
from medschool.recipe import Recipe
from medschool.recipe.schema import Training
from medschool.stage import Resolved, Stage, resolve

Phase = Literal["pretrain", "instruct"]
PHASES: tuple[Phase, ...] = ("pretrain", "instruct")


@dataclass(frozen=True)
class Trial:
    """One variant under one training seed."""

    name: str
    """The variant's name, with the seed behind it where there are several."""
    variant: str
    seed: int | None
    """None for a variant that does not train."""


def trials(recipe: Recipe) -> tuple[Trial, ...]:
    """Every variant under every training seed, in the recipe's order; a variant that does not train once."""
    seeds = recipe.train_seeds or (recipe.seed,)
    found = []
    for name, variant in recipe.variants.items():
        if not variant.trains:
            found.append(Trial(name, name, None))
        else:
            found += [Trial(name if len(seeds) == 1 else f"{name}-seed{seed}", name, seed) for seed in seeds]
    return tuple(found)


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """All stages of a recipe in an order in which they can run."""
    made = [
        Stage("model", {"model": _json(recipe.model)}, raw=(recipe.model.uri,)),
        Stage("tokenizer", {"uri": recipe.model.uri}, raw=(recipe.model.uri,)),
        *_exams(recipe),
        *_instructions(recipe),
        *_texts(recipe),
        *_chats(recipe),
        *_probes(recipe),
    ]
    for trial in trials(recipe):
        made += _trial(recipe, trial)
    verdict = {
        "evaluate": _json(recipe.evaluate),
        "gate": _json(recipe.gate),
        "variants": {name: _json(variant) for name, variant in recipe.variants.items()},
        "seed": recipe.seed,
    }
    return (*made, Stage("verdict", verdict, _same(f"evaluate/{trial.name}" for trial in trials(recipe)), version=2))


def _exams(recipe: Recipe) -> list[Stage]:
    return [
        Stage(
            f"exams/{name}",
            {"exam": {"name": name, **_json(exam, "items", "generated_items")}, "seed": recipe.seed},
            raw=tuple(files.uri for files in exam.files),
        )
        for name, exam in recipe.exams.items()
    ]


def _instructions(recipe: Recipe) -> list[Stage]:
    exams = _same(f"exams/{name}" for name in recipe.exams)
    made = []
    for name, spec in recipe.instructions.items():
        text = {"set": {"name": name, **_json(spec), "licences": sorted(spec.licences)}, "seed": recipe.seed}
        made.append(Stage(f"instructions/{name}", text, exams, tuple(files.uri for files in spec.files), version=2))
    return made


def _chats(recipe: Recipe) -> list[Stage]:
    """Rows of conversations; the held-out documents are an input, because what is made from them is left out."""
    if recipe.chats is None:
        return []
    rows = {"chats": _json(recipe.chats), "seed": recipe.seed}
    heldout = [f"tokens/{name}" for name in recipe.sources]
    return [
        Stage(f"chats/{name}", rows, _same([f"instructions/{name}", "tokenizer", *heldout]), version=2)
        for name in recipe.instructions
    ]


def _texts(recipe: Recipe) -> list[Stage]:
    made = []
    for name, source in recipe.sources.items():
        text = {
            "source": {"name": name, "files": _json(source)["files"], "licences": sorted(source.licences)},
            "clean": _json(recipe.clean),
        }
        made.append(Stage(f"corpus/{name}", text, raw=tuple(files.uri for files in source.files)))
    for name in recipe.sources:
        rows = {"tokens": _json(recipe.tokens), "seed": recipe.seed}
        made.append(Stage(f"tokens/{name}", rows, _same([f"corpus/{name}", "tokenizer"]), version=2))
    return made


def probed_weights(recipe: Recipe) -> dict[str, int]:
    """Mixture of the gate's first candidate: the probes ask about text that it was trained on."""
    assert recipe.gate is not None
    return recipe.variants[recipe.gate.candidates[0]].weights or {}


def _probes(recipe: Recipe) -> list[Stage]:
    if recipe.probes is None:
        return []
    spec = recipe.pretrain
    phase = {
        "probes": _json(recipe.probes),
        "length": _json(spec.length),
        "batch_rows": spec.batch_rows,
        "weights": probed_weights(recipe),
        "seed": recipe.seed,
        "train_seeds": list(recipe.train_seeds),
    }
    rows = sorted({*probed_weights(recipe), *_counted(recipe, "pretrain")})
    return [Stage("probes", phase | _counting(recipe, "pretrain"), _same([*(f"tokens/{name}" for name in rows), "tokenizer"]))]


def _trial(recipe: Recipe, trial: Trial) -> list[Stage]:
    """pretrain, instruct and evaluate of one trial, as far as it has them."""
    made: list[Stage] = []
    model = "model"
    for phase, rows in zip(PHASES, ("tokens", "chats"), strict=True):
        weights = phase_weights(recipe, trial.variant, phase)
        if weights is None:
            continue
        spec = {phase: _json(training(recipe, phase)), "weights": weights, "dtype": recipe.model.dtype, "seed": trial.seed}
        read = _same(f"{rows}/{name}" for name in sorted({*weights, *_counted(recipe, phase)}))
        made.append(Stage(f"{phase}/{trial.name}", spec | _counting(recipe, phase), {"model": model, **read}, version=2))
        model = f"{phase}/{trial.name}"
    read = _same([*(f"tokens/{name}" for name in recipe.sources), *(f"exams/{name}" for name in recipe.exams)])
    if recipe.probes is not None:
        read["probes"] = "probes"
    samples = {name: [exam.items, exam.generated_items] for name, exam in recipe.exams.items()}
    spec = {"dtype": recipe.model.dtype, "answer_tokens": recipe.evaluate.answer_tokens, "samples": samples}
    return [*made, Stage(f"evaluate/{trial.name}", spec, {"model": model, **read}, version=2)]


def checkpoint_stage(recipe: Recipe, trial: Trial) -> str:
    """The stage that makes the model which a trial is judged by: its last training, or `model` where there is none."""
    trained = [phase for phase in PHASES if phase_weights(recipe, trial.variant, phase) is not None]
    return f"{trained[-1]}/{trial.name}" if trained else "model"


def training(recipe: Recipe, phase: Phase) -> Training:
    """The section of a phase; `instruct` is there wherever a variant has instructions."""
    spec = recipe.pretrain if phase == "pretrain" else recipe.instruct
    assert spec is not None
    return spec


def phase_weights(recipe: Recipe, variant: str, phase: Phase) -> dict[str, int] | None:
    """The mixture that a variant is trained on in a phase; None when it has no such phase."""
    found = recipe.variants[variant]
    return found.weights if phase == "pretrain" else found.instructions


def row_tokens(recipe: Recipe, phase: Phase) -> int:
    """Length of a training row of a phase, in tokens."""
    if phase == "pretrain":
        return recipe.tokens.row_tokens
    assert recipe.chats is not None
    return recipe.chats.row_tokens


def _counted(recipe: Recipe, phase: Phase) -> list[str]:
    counted = training(recipe, phase).length.epochs_of
    return [counted] if counted else []


def _counting(recipe: Recipe, phase: Phase) -> dict[str, Any]:
    return {"counting_weights": counting_weights(recipe, phase)} if _counted(recipe, phase) else {}


def counting_weights(recipe: Recipe, phase: Phase) -> dict[str, int]:
    """Weights of the first variant that trains on what counts a phase's epochs; they set the length of all variants."""
    counted = training(recipe, phase).length.epochs_of
    mixtures = [phase_weights(recipe, name, phase) or {} for name in recipe.variants]
    return next(weights for weights in mixtures if counted in weights)


def _same(names: Iterable[str]) -> dict[str, str]:
    """Inputs whose role is their name."""
    return {name: name for name in names}


def _json(section: Any, *without: str) -> Any:
    return None if section is None else section.model_dump(mode="json", exclude=set(without))


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


def recipe_digest(recipe: Recipe) -> str:
    """First 12 hex digits of everything in the recipe that decides numbers: without its name and cluster."""
    return digest_of(recipe.model_dump(mode="json", exclude={"name", "cluster"}))[:12]


def results_uri(store_uri: str, recipe: Recipe) -> str:
    """Folder of what a run leaves for people: report, results, the best recipe of a search."""
    return storage.join(store_uri, "results", f"{recipe.name}-{recipe_digest(recipe)}")
