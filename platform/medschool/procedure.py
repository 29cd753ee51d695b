"""The order of stages as data: what each one makes, from what, and which recipe sections decide its content.

    raw files --corpus/<source>--> documents --tokens/<source>--> rows + held-out documents
    documents of all sources --duplicates--> those that tokens/<source> leaves out
    documents + items --overlap/<source>--> documents that hold an item --withheld/<source>--> rows that are not trained on
    raw files --exams/<exam>--> items        raw files + items --instructions/<set>--> conversations --chats/<set>--> rows
    (a set made from a source of the recipe has documents, and which are copies, in place of raw files)
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
from medschool.recipe.corpus import Source
from medschool.recipe.evaluation import Exam
from medschool.recipe.training import Training
from medschool.stage import Resolved, Stage, resolve

Phase = Literal["pretrain", "instruct"]
TEACHER_BOUNDS = (
    "concurrency",
    "timeout_s",
    "budget_tokens",
    "usd_per_million_prompt_tokens",
    "usd_per_million_answer_tokens",
)
"""What of a teacher decides no answer."""
SAT = ("items", "generated_items", "protocol", "thought_tokens")
"""What of an exam decides how it is sat, and not what its questions are."""
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
        Stage("model", _weights(recipe), raw=(recipe.model.uri,)),
        Stage("tokenizer", {"uri": recipe.model.uri}, raw=(recipe.model.uri,)),
        *_exams(recipe),
        *_texts(recipe),
        *_instructions(recipe),
        *_chats(recipe),
        *_probes(recipe),
    ]
    for trial in trials(recipe):
        made += _trial(recipe, trial)
    verdict = {
        "evaluate": _json(recipe.evaluate, "heldout_every_steps"),  # what is looked at on the way decides nothing
        "gate": _json(recipe.gate),
        "retention": _json(recipe.retention),
        "variants": {name: _json(variant) for name, variant in recipe.variants.items()},
        "seed": recipe.seed,
    }
    checked = [f"{kind}/{name}" for kind in ("overlap", "withheld") for name in withheld_sources(recipe)]
    checked += [f"instructions/{name}" for name in examined_sets(recipe)]
    read = _same([*(f"evaluate/{trial.name}" for trial in trials(recipe)), *checked])
    return (*made, Stage("verdict", verdict, read, version=6))


def _weights(recipe: Recipe) -> dict[str, Any]:
    """What decides the base model: its section, and the seed where that draws the weights."""
    if recipe.model.weights == "random":
        return {"model": _json(recipe.model), "seed": recipe.seed}
    return {"model": _json(recipe.model, "weights")}


def _exams(recipe: Recipe) -> list[Stage]:
    return [
        Stage(
            f"exams/{name}",
            {"exam": {"name": name, **_json(exam, *SAT)}, "seed": recipe.seed},
            raw=_exam_files(exam),
            version=2,
        )
        for name, exam in recipe.exams.items()
    ]


def _exam_files(exam: Exam) -> tuple[str, ...]:
    """What an exam is read from: its questions, the ids that are kept, its worked questions."""
    shots = exam.shots.files if exam.shots else ()
    return (*(files.uri for files in exam.files), *([exam.ids] if exam.ids else []), *(files.uri for files in shots))


def _instructions(recipe: Recipe) -> list[Stage]:
    exams = _same(f"exams/{name}" for name in recipe.exams)
    made = []
    for name, spec in recipe.instructions.items():
        told = ("bad_files",) if spec.from_corpus else ("bad_files", "from_corpus")
        text = {"set": {"name": name, **_json(spec, *told), "licences": sorted(spec.licences)}, "seed": recipe.seed}
        if recipe.clean.identifiers is not None:
            text["identifiers"] = _json(recipe.clean.identifiers, "max_quarantined_share")
        if spec.ask:
            text["teacher"] = _json(recipe.teacher, *TEACHER_BOUNDS)
        texts = _same([f"corpus/{spec.from_corpus.source}", *_duplicates(recipe)]) if spec.from_corpus else {}
        made.append(Stage(f"instructions/{name}", text, exams | texts, tuple(files.uri for files in spec.files), version=4))
    return made


def _chats(recipe: Recipe) -> list[Stage]:
    """Rows of conversations; the held-out documents are an input, because what is made from them is left out."""
    if recipe.chats is None:
        return []
    rows = {"chats": _json(recipe.chats), "seed": recipe.seed}
    heldout = [f"tokens/{name}" for name in recipe.sources]
    return [
        Stage(f"chats/{name}", rows, _same([f"instructions/{name}", "tokenizer", *heldout]), version=4)
        for name in recipe.instructions
    ]


def _texts(recipe: Recipe) -> list[Stage]:
    made = []
    for name, source in recipe.sources.items():
        raw = tuple(files.uri for files in source.files) + ((source.retracted,) if source.retracted else ())
        made.append(Stage(f"corpus/{name}", _documents(recipe, name, source), raw=raw, version=2))
    for name in _duplicates(recipe):
        copies = {"near_duplicates": _json(recipe.near_duplicates)}
        made.append(Stage(name, copies, _same(f"corpus/{source}" for source in recipe.sources)))
    for name in recipe.sources:
        rows = {"tokens": _json(recipe.tokens), "seed": recipe.seed}
        made.append(Stage(f"tokens/{name}", rows, _same([f"corpus/{name}", "tokenizer", *_duplicates(recipe)]), version=3))
    return [*made, *_withheld(recipe)]


def _withheld(recipe: Recipe) -> list[Stage]:
    """What keeps the exams out of training; nothing in the recipe decides it but the exams and the documents themselves."""
    exams, made = [f"exams/{name}" for name in recipe.exams], []
    for name in withheld_sources(recipe):
        made.append(Stage(f"overlap/{name}", {}, _same([f"corpus/{name}", *exams])))
        made.append(Stage(f"withheld/{name}", {}, _same([f"tokens/{name}", f"overlap/{name}"])))
    return made


def withheld_sources(recipe: Recipe) -> list[str]:
    """Sources that are checked against the exams: those that any variant trains on; none where there is no exam."""
    trained = {name for variant in recipe.variants for name in phase_sources(recipe, variant, "pretrain")}
    return [name for name in recipe.sources if name in trained and recipe.exams]


def examined_sets(recipe: Recipe) -> list[str]:
    """Sets of instructions that any variant is tuned on, and in which exam items were looked for; none where there is no exam."""
    tuned = {name for variant in recipe.variants for name in phase_sources(recipe, variant, "instruct")}
    return [name for name in recipe.instructions if name in tuned and recipe.exams]


def _read(recipe: Recipe, rows: str, names: Iterable[str]) -> list[str]:
    """Stages that hold the rows of these sources or sets, and those that say which of the rows are not to be read."""
    known = withheld_sources(recipe) if rows == "tokens" else []
    names = sorted(names)
    return [*(f"{rows}/{name}" for name in names), *(f"withheld/{name}" for name in names if name in known)]


def _documents(recipe: Recipe, name: str, source: Source) -> dict[str, Any]:
    """What decides the documents of a source. A budget of what may be broken is left out: it stops a run, it changes none."""
    clean = _json(recipe.clean, "bad_files")
    if recipe.clean.identifiers is not None:
        clean["identifiers"] = _json(recipe.clean.identifiers, "max_quarantined_share")
    for names in ("off", "languages"):
        clean[names] = clean[names] and sorted(clean[names])
    text = {"source": {"name": name, **_json(source, "expected_tokens"), "licences": sorted(source.licences)}, "clean": clean}
    if recipe.canaries is not None and recipe.canaries.source == name:
        text |= {"canaries": _json(recipe.canaries), "seed": recipe.seed}
    return text


def _duplicates(recipe: Recipe) -> list[str]:
    """The stage that finds near-duplicates over all sources, where the recipe has one."""
    return [] if recipe.near_duplicates is None else ["duplicates"]


def probed_variant(recipe: Recipe) -> str:
    """The gate's first candidate: the probes ask about text that it was trained on."""
    assert recipe.gate is not None
    return recipe.gate.candidates[0]


def _probes(recipe: Recipe) -> list[Stage]:
    if recipe.probes is None:
        return []
    spec = recipe.pretrain
    phase = {
        "probes": _json(recipe.probes),
        "length": _json(spec.length),
        "batch_rows": spec.batch_rows,
        "weights": _mixtures(recipe, probed_variant(recipe), "pretrain"),
        "seed": recipe.seed,
        "train_seeds": list(recipe.train_seeds),
    }
    names = {*phase_sources(recipe, probed_variant(recipe), "pretrain"), *_counted(recipe, "pretrain")}
    return [Stage("probes", phase | _counting(recipe, "pretrain"), _same([*_read(recipe, "tokens", names), "tokenizer"]))]


def _trial(recipe: Recipe, trial: Trial) -> list[Stage]:
    """pretrain, instruct and evaluate of one trial, as far as it has them."""
    made: list[Stage] = []
    model = "model"
    for phase, rows in zip(PHASES, ("tokens", "chats"), strict=True):
        weights = phase_weights(recipe, trial.variant, phase)
        if weights is None:
            continue
        spec = {
            phase: _phase(training(recipe, phase)),
            "weights": weights,
            "weights_from": phase_weights_from(recipe, trial.variant, phase),
            "dtype": recipe.model.dtype,
            "seed": trial.seed,
        }
        read = _same(_read(recipe, rows, {*phase_sources(recipe, trial.variant, phase), *_counted(recipe, phase)}))
        spec |= _counting(recipe, phase) | _template(recipe)
        version = 4 if training(recipe, phase).lora else 3  # since 4 the adapter lies beside the merged model
        made.append(Stage(f"{phase}/{trial.name}", spec, {"model": model, **read}, version=version))
        model = f"{phase}/{trial.name}"
    read = _same([*(f"tokens/{name}" for name in recipe.sources), *(f"exams/{name}" for name in recipe.exams)])
    if recipe.probes is not None:
        read["probes"] = "probes"
    samples = {name: _sample(exam) for name, exam in recipe.exams.items()}
    spec = {"dtype": recipe.model.dtype, "answer_tokens": recipe.evaluate.answer_tokens, "samples": samples}
    return [*made, Stage(f"evaluate/{trial.name}", spec | _template(recipe), {"model": model, **read}, version=4)]


def _sample(exam: Exam) -> list[Any]:
    """Which items of an exam are asked, and how."""
    return [exam.items, exam.generated_items, exam.protocol, *([exam.thought_tokens] if exam.thought_tokens else [])]


def _template(recipe: Recipe) -> dict[str, str]:
    """The prompt template, where it is not the model's own: exports carry it, and exams are put in it."""
    return {} if recipe.chats is None or recipe.chats.template == "model" else {"template": recipe.chats.template}


def _phase(spec: Training) -> Any:
    """What decides the numbers of a training. A cap stops a run, it changes none."""
    return _json(spec, "max_repeats") | {"guard": _json(spec.guard, "max_skipped_batches")}


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


def phase_weights_from(recipe: Recipe, variant: str, phase: Phase) -> dict[int, dict[str, int]]:
    """The curriculum of a variant in a phase: other weights, by the number of steps before them; only `pretrain` has any."""
    return recipe.variants[variant].weights_from if phase == "pretrain" else {}


def phase_sources(recipe: Recipe, variant: str, phase: Phase) -> list[str]:
    """Every source or set that a variant reads in a phase, at whatever step, sorted; none when it has no such phase."""
    first = phase_weights(recipe, variant, phase) or {}
    return sorted({*first, *(name for later in phase_weights_from(recipe, variant, phase).values() for name in later)})


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
    return {"counting_weights": _mixtures(recipe, counting_variant(recipe, phase), phase)} if _counted(recipe, phase) else {}


def counting_variant(recipe: Recipe, phase: Phase) -> str:
    """The first variant that trains on what counts a phase's epochs; its mixture sets the length of all variants."""
    counted = training(recipe, phase).length.epochs_of
    return next(name for name in recipe.variants if counted in phase_sources(recipe, name, phase))


def _mixtures(recipe: Recipe, variant: str, phase: Phase) -> list[Any]:
    """What a variant is trained on in a phase: its weights, and those of its curriculum."""
    return [phase_weights(recipe, variant, phase), phase_weights_from(recipe, variant, phase)]


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
    """First 12 hex digits of everything in the recipe that decides numbers: not name, cluster, and what is only looked at."""
    told: dict[str, Any] = {"name": True, "cluster": True, "evaluate": {"heldout_every_steps"}}
    return digest_of(recipe.model_dump(mode="json", exclude=told))[:12]


def results_uri(store_uri: str, recipe: Recipe) -> str:
    """Folder of what a run leaves for people: report, results, the best recipe of a search."""
    return storage.join(store_uri, "results", f"{recipe.name}-{recipe_digest(recipe)}")
