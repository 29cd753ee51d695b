"""How each kind of stage is made: its inputs looked up, its function called, its artifact committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from medschool import artifact, storage
from medschool.artifact import Artifact, Output
from medschool.errors import StageError
from medschool.plan import check_rows, phase_steps
from medschool.procedure import Phase, phase_weights, training, trials
from medschool.stage import Stage, fingerprint_in, raw_listing
from medschool.tokens.order import Order
from medschool.tokens.shards import INDEX, Index, parse_index

if TYPE_CHECKING:
    from jobs.run import Run
    from medschool.train.on_ray import Course

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


def model(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.train.adopt import adopt_model, model_folder

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
        return make_instructions(run.recipe, name, inputs.values(), run.store_uri, prefix)

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
    return _commit(run, stage, inputs, fingerprint, lambda prefix: make_corpus(run.recipe, source, run.store_uri, prefix))


def tokens(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.tokens.on_ray import make_tokens

    source = inputs[stage.name.replace("tokens/", "corpus/")]
    return _commit(run, stage, inputs, fingerprint, lambda prefix: make_tokens(run.recipe, source, inputs["tokenizer"], prefix))


def probes(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.evaluate.on_ray import make_probe_set

    rows = _rows(inputs, "tokens")
    steps = _steps(run, "pretrain", rows)

    def do(prefix: str) -> Output:
        return make_probe_set(run.recipe, rows, inputs["tokenizer"], steps, prefix)

    return _commit(run, stage, inputs, fingerprint, do)


def train(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    """`pretrain` and `instruct`: the same training on other rows."""
    from medschool.train.on_ray import make_checkpoint

    run_uri = artifact.stage_uri(run.store_uri, stage.identity, fingerprint)

    def do(prefix: str) -> Output:
        course, rows = course_of(run, stage, inputs, run_uri, prefix)
        return make_checkpoint(course, rows, run.board.within("      "))

    made = _commit(run, stage, inputs, fingerprint, do)
    for leftover in ("state", "ray_train"):
        storage.delete_prefix(storage.join(run_uri, leftover))
    return made


def course_of(
    run: Run, stage: Stage, inputs: dict[str, Artifact], run_uri: str, prefix_uri: str
) -> tuple[Course, dict[str, tuple[Artifact, Index]]]:
    """What a training stage trains, and the rows it reads."""
    from medschool.train.on_ray import Course

    phase: Phase = "pretrain" if stage.kind == "pretrain" else "instruct"
    trial = next(trial for trial in trials(run.recipe) if trial.name == stage.name.removeprefix(f"{phase}/"))
    weights = phase_weights(run.recipe, trial.variant, phase)
    assert weights is not None and trial.seed is not None
    rows = _rows(inputs, "tokens" if phase == "pretrain" else "chats")
    check_rows(weights, phase, {name: index.rows for name, (_, index) in rows.items()})
    shard_rows = {name: rows[name][1].shard_rows for name in weights}
    course = Course(
        recipe=run.recipe,
        phase=phase,
        trial=trial.name,
        model=inputs["model"],
        order=Order(weights, training(run.recipe, phase).batch_rows, shard_rows, trial.seed),
        steps=_steps(run, phase, rows),
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
    from medschool.ablate.compare import Scored, make_verdict
    from medschool.evaluate.on_ray import read_scores

    scored = [
        Scored(trial.name, trial.variant, trial.seed, **read_scores(inputs[f"evaluate/{trial.name}"]))
        for trial in trials(run.recipe)
    ]
    return _commit(run, stage, inputs, fingerprint, lambda prefix: make_verdict(run.recipe, scored, prefix))


def _below(inputs: dict[str, Artifact], kind: str) -> dict[str, Artifact]:
    """Inputs of one kind, by what stands behind it in their role."""
    return {role.removeprefix(f"{kind}/"): made for role, made in inputs.items() if role.startswith(f"{kind}/")}


def _rows(inputs: dict[str, Artifact], kind: str) -> dict[str, tuple[Artifact, Index]]:
    return {name: (made, _index(made)) for name, made in _below(inputs, kind).items()}


def _steps(run: Run, phase: Phase, rows: dict[str, tuple[Artifact, Index]]) -> int:
    steps = phase_steps(run.recipe, phase, {name: index.rows for name, (_, index) in rows.items()})
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
    "tokens": tokens,
    "probes": probes,
    "pretrain": train,
    "instruct": train,
    "evaluate": evaluate,
    "verdict": verdict,
}
