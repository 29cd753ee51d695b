"""How each kind of stage is made: its inputs looked up, its function called, its artifact committed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from medschool import artifact, storage
from medschool.artifact import Artifact, Output
from medschool.errors import StageError
from medschool.plan import check_repeats, check_rows, phase_steps
from medschool.procedure import Phase, phase_sources, trials
from medschool.stage import Stage, fingerprint_in, raw_listing
from medschool.tokens.order import Withheld, order_of
from medschool.tokens.shards import INDEX, Index, parse_index

if TYPE_CHECKING:
    from jobs.run import Run
    from medschool.train.course import Course

Maker = Callable[["Run", Stage, dict[str, Artifact], str], Artifact]


def _commit(
    run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str, do: Callable[[str], Output], adopted: str | None = None
) -> Artifact:
    def checked(prefix: str) -> Output:
        output = do(prefix)
        if fingerprint_in(stage, inputs, raw_listing(stage, run.store_uri)) != fingerprint:
            raise StageError("its raw files changed while it ran", "let the upload end, then submit again", stage.name)
        return output

    digests = {role: made.digest for role, made in inputs.items()}
    return artifact.make(run.store_uri, stage.identity, fingerprint, digests, checked, adopted)


def _resumed(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str, do: Callable[[str, str], Output]) -> Artifact:
    """As _commit, for a stage that leaves finished work in a folder of its fingerprint until one attempt commits."""
    work = storage.join(artifact.stage_uri(run.store_uri, stage.identity, fingerprint), "work")
    try:
        made = _commit(run, stage, inputs, fingerprint, lambda prefix: do(prefix, work))
    except Exception:  # another writer of this stage may have committed, and deleted the work under our hands: it has won
        found = artifact.find(run.store_uri, stage.identity, fingerprint)
        if found is None:
            raise
        made = found
    storage.delete_prefix(work)
    return made


def model(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.train.adopt import adopt_model, draw_model, model_folder

    if run.recipe.model.weights == "random":
        return _commit(run, stage, inputs, fingerprint, lambda prefix: draw_model(run.recipe, run.store_uri, prefix))
    folder = model_folder(run.recipe, run.store_uri)
    return _commit(run, stage, inputs, fingerprint, lambda _: adopt_model(run.recipe, run.store_uri), folder)


def tokenizer(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.train.adopt import adopt_tokenizer, model_folder

    folder = model_folder(run.recipe, run.store_uri)
    return _commit(run, stage, inputs, fingerprint, lambda _: adopt_tokenizer(run.recipe, run.store_uri), folder)


def exams(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.exams.make import make_exam

    name = stage.name.removeprefix("exams/")
    return _commit(run, stage, inputs, fingerprint, lambda prefix: make_exam(run.recipe, name, run.store_uri, prefix))


def instructions(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.instructions.on_ray import make_instructions

    name = stage.name.removeprefix("instructions/")

    def do(prefix: str) -> Output:
        return make_instructions(run.recipe, name, _below(inputs, "exams").values(), run.store_uri, prefix, inputs)

    return _commit(run, stage, inputs, fingerprint, do)


def chats(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.instructions.on_ray import make_chats

    source, held = inputs[stage.name.replace("chats/", "instructions/")], _below(inputs, "tokens")
    return _commit(
        run, stage, inputs, fingerprint, lambda prefix: make_chats(run.recipe, source, held, inputs["tokenizer"], prefix)
    )


def corpus(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.corpus.on_ray import make_corpus

    source = stage.name.removeprefix("corpus/")
    return _resumed(
        run, stage, inputs, fingerprint, lambda prefix, work: make_corpus(run.recipe, source, run.store_uri, prefix, work)
    )


def duplicates(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.duplicates.on_ray import make_duplicates

    corpora = _below(inputs, "corpus")
    return _commit(run, stage, inputs, fingerprint, lambda prefix: make_duplicates(run.recipe, corpora, prefix))


def tokens(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.tokens.on_ray import make_tokens

    source = stage.name.removeprefix("tokens/")
    return _resumed(run, stage, inputs, fingerprint, lambda prefix, work: make_tokens(run.recipe, source, inputs, prefix, work))


def overlap(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.overlap.on_ray import make_overlap

    corpus, exams = inputs[stage.name.replace("overlap/", "corpus/")], _below(inputs, "exams")
    return _commit(run, stage, inputs, fingerprint, lambda prefix: make_overlap(corpus, exams, prefix))


def withheld(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.tokens.withheld import make_withheld

    rows, found = (inputs[stage.name.replace("withheld/", f"{kind}/")] for kind in ("tokens", "overlap"))
    return _commit(run, stage, inputs, fingerprint, lambda prefix: make_withheld(rows, found, prefix))


def probes(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.evaluate.on_ray import make_probe_set

    rows, withheld = _rows(inputs, "tokens"), _withheld(inputs)
    steps = _steps(run, "pretrain", _rows_left(rows, withheld))

    def do(prefix: str) -> Output:
        return make_probe_set(run.recipe, rows, inputs["tokenizer"], steps, prefix, withheld)

    return _commit(run, stage, inputs, fingerprint, do)


def train(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    """`pretrain` and `instruct`: the same training on other rows."""
    from medschool.train.handout import HANDOUT
    from medschool.train.held import GROUPS
    from medschool.train.on_ray import make_checkpoint

    run_uri = artifact.stage_uri(run.store_uri, stage.identity, fingerprint)

    def do(prefix: str) -> Output:
        course, rows = course_of(run, stage, inputs, run_uri, prefix)
        with _measuring(run, course) as measure:
            return make_checkpoint(course, rows, run.board.within(f"      {course.trial}  "), measure)

    made = _commit(run, stage, inputs, fingerprint, do)
    for leftover in ("state", "ray_train", HANDOUT, GROUPS):
        storage.delete_prefix(storage.join(run_uri, leftover))
    return made


def _measuring(run: Run, course: Course) -> AbstractContextManager[Any]:
    """What scores held-out documents of every source while a course is trained; None where the recipe does not ask for it.

    It is looked at and enters nothing: the documents are no input of the training stage.
    """
    if run.recipe.evaluate.heldout_every_steps is None:
        return nullcontext()
    from medschool.evaluate.on_ray import beside_training

    heldout = {name: run.artifact(f"tokens/{name}") for name in run.recipe.sources}
    return beside_training(run.recipe.model, heldout, course.run_uri, course.mlflow_run, course.phase)


def course_of(
    run: Run, stage: Stage, inputs: dict[str, Artifact], run_uri: str, prefix_uri: str
) -> tuple[Course, dict[str, tuple[Artifact, Index]]]:
    """What a training stage trains, and the rows it reads.

    Raises StageError when a source has no rows, PlanError when one would be seen more often than the recipe allows.
    """
    from medschool.train.course import Course

    phase: Phase = "pretrain" if stage.kind == "pretrain" else "instruct"
    trial = next(trial for trial in trials(run.recipe) if trial.name == stage.name.removeprefix(f"{phase}/"))
    assert trial.seed is not None
    rows, withheld = _rows(inputs, "tokens" if phase == "pretrain" else "chats"), _withheld(inputs)
    left = _rows_left(rows, withheld)
    check_rows(phase_sources(run.recipe, trial.variant, phase), phase, left)
    shard_rows = {name: index.shard_rows for name, (_, index) in rows.items()}
    order, steps = order_of(run.recipe, trial.variant, phase, trial.seed, shard_rows, withheld), _steps(run, phase, left)
    check_repeats(run.recipe, stage.name, phase, order.mixture, steps, left)
    course = Course(
        recipe=run.recipe,
        phase=phase,
        trial=trial.name,
        model=inputs["model"],
        order=order,
        steps=steps,
        run_uri=run_uri,
        prefix_uri=prefix_uri,
        mlflow_run=run.mlflow_run,
        report_every_steps=run.report_every_steps,
    )
    return course, rows


def evaluate(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.evaluate.on_ray import Examined, make_scores

    examined = Examined(_below(inputs, "tokens"), _below(inputs, "exams"), inputs.get("probes"))
    return _commit(run, stage, inputs, fingerprint, lambda prefix: make_scores(run.recipe, inputs["model"], examined, prefix))


def verdict(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.ablate.settle import verdict_of

    return _commit(run, stage, inputs, fingerprint, lambda prefix: verdict_of(run.recipe, inputs, prefix))


def _below(inputs: dict[str, Artifact], kind: str) -> dict[str, Artifact]:
    """Inputs of one kind, by what stands behind it in their role."""
    return {role.removeprefix(f"{kind}/"): made for role, made in inputs.items() if role.startswith(f"{kind}/")}


def _rows(inputs: dict[str, Artifact], kind: str) -> dict[str, tuple[Artifact, Index]]:
    return {name: (made, _index(made)) for name, made in _below(inputs, kind).items()}


def _withheld(inputs: dict[str, Artifact]) -> Withheld:
    found = _below(inputs, "withheld")
    if not found:
        return {}
    from medschool.tokens.withheld import read_withheld

    return {name: read_withheld(made) for name, made in found.items()}


def _rows_left(rows: dict[str, tuple[Artifact, Index]], withheld: Withheld) -> dict[str, int]:
    """Rows of each source without those withheld: one pass over it."""
    return {name: index.rows - sum(map(len, withheld.get(name, {}).values())) for name, (_, index) in rows.items()}


def _steps(run: Run, phase: Phase, rows_left: dict[str, int]) -> int:
    steps = phase_steps(run.recipe, phase, rows_left)
    assert steps is not None
    return steps


def _index(made: Artifact) -> Index:
    return parse_index(storage.read_bytes(made.uri(INDEX)))


MAKERS: dict[str, Maker] = {
    "model": model,
    "tokenizer": tokenizer,
    "exams": exams,
    "instructions": instructions,
    "chats": chats,
    "corpus": corpus,
    "duplicates": duplicates,
    "tokens": tokens,
    "overlap": overlap,
    "withheld": withheld,
    "probes": probes,
    "pretrain": train,
    "instruct": train,
    "evaluate": evaluate,
    "verdict": verdict,
}
