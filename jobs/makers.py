"""How each kind of stage is made: its inputs looked up, its function called, its artifact committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from medschool import artifact, storage, track
from medschool.artifact import Artifact, Output
from medschool.errors import StageError
from medschool.plan import check_rows, phase_steps
from medschool.stage import Stage, fingerprint_in, raw_listing
from medschool.tokens.shards import INDEX, Index, parse_index

if TYPE_CHECKING:
    from jobs.run import Run

Maker = Callable[["Run", Stage, dict[str, Artifact], str], Artifact]


def _commit(
    run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str, do: Callable[[str], Output], adopted: str | None = None
) -> Artifact:
    def checked(prefix: str) -> Output:
        output = do(prefix)
        if fingerprint_in(stage, inputs, raw_listing(stage, run.store_uri)) != fingerprint:
            raise StageError("its raw files changed while it ran", "let the upload end, then submit again", stage.name)
        return output

    digests = {name: made.digest for name, made in inputs.items()}
    return artifact.make(run.store_uri, stage.name, fingerprint, digests, checked, adopted)


def model(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.train.adopt import adopt_model, model_folder

    folder = model_folder(run.recipe, run.store_uri)
    return _commit(run, stage, inputs, fingerprint, lambda _: adopt_model(run.recipe, run.store_uri), folder)


def tokenizer(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.train.adopt import adopt_tokenizer, model_folder

    folder = model_folder(run.recipe, run.store_uri)
    return _commit(run, stage, inputs, fingerprint, lambda _: adopt_tokenizer(run.recipe, run.store_uri), folder)


def corpus(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.corpus.on_ray import make_corpus

    source = stage.name.removeprefix("corpus/")
    return _commit(run, stage, inputs, fingerprint, lambda prefix: make_corpus(run.recipe, source, run.store_uri, prefix))


def tokens(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.tokens.on_ray import make_tokens

    source = inputs[stage.name.replace("tokens/", "corpus/")]
    return _commit(run, stage, inputs, fingerprint, lambda prefix: make_tokens(run.recipe, source, inputs["tokenizer"], prefix))


def pretrain(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.train.on_ray import make_checkpoint

    variant = stage.name.removeprefix("pretrain/")
    weights = run.recipe.variants[variant].weights or {}
    rows = {name.removeprefix("tokens/"): (made, _index(made)) for name, made in inputs.items() if name.startswith("tokens/")}
    sizes: dict[str, int | None] = {name: index.rows for name, (_, index) in rows.items()}
    check_rows(run.recipe, variant, sizes)
    steps = phase_steps(run.recipe, sizes)
    assert steps is not None
    run_uri = artifact.stage_uri(run.store_uri, stage.name, fingerprint)
    spec = run.recipe.pretrain
    params = {
        "weights": weights,
        "steps": steps,
        "batch_rows": spec.batch_rows,
        "row_tokens": run.recipe.tokens.row_tokens,
        "lr": spec.optimizer.lr,
    }
    mlflow_run = track.open_run(run.recipe.name, variant, fingerprint, params)

    def train(prefix: str) -> Output:
        return make_checkpoint(run.recipe, variant, inputs["model"], rows, steps, run_uri, prefix, mlflow_run, run.say_more)

    try:
        made = _commit(run, stage, inputs, fingerprint, train)
    except BaseException as error:
        track.close_run(mlflow_run, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    track.close_run(mlflow_run, "FINISHED")
    for leftover in ("state", "ray_train"):
        storage.delete_prefix(storage.join(run_uri, leftover))
    return made


def evaluate(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.evaluate.on_ray import make_scores

    heldout = {name.removeprefix("tokens/"): made for name, made in inputs.items() if name.startswith("tokens/")}
    checkpoint = next(made for name, made in inputs.items() if not name.startswith("tokens/"))
    return _commit(run, stage, inputs, fingerprint, lambda prefix: make_scores(run.recipe, checkpoint, heldout, prefix))


def verdict(run: Run, stage: Stage, inputs: dict[str, Artifact], fingerprint: str) -> Artifact:
    from medschool.ablate.compare import make_verdict

    scores = {name.removeprefix("evaluate/"): made for name, made in inputs.items()}
    return _commit(run, stage, inputs, fingerprint, lambda prefix: make_verdict(run.recipe, scores, prefix))


def _index(made: Artifact) -> Index:
    return parse_index(storage.read_bytes(made.uri(INDEX)))


MAKERS: dict[str, Maker] = {
    "model": model,
    "tokenizer": tokenizer,
    "corpus": corpus,
    "tokens": tokens,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "verdict": verdict,
}
