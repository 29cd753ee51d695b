"""python -m jobs.whole_run RECIPE: the whole procedure, top to bottom. A finished stage is skipped and says `cached`."""

from jobs.model import adopt
from jobs.publish import publish
from jobs.run import Run, main
from jobs.serve import serve
from medschool.ablate.report import table


def whole_run(run: Run) -> None:
    adopt(run)  # base model -> verified weights and tokenizer
    run.make("corpus")  # raw text -> cleaned, licensed, distinct documents
    run.make("tokens")  # documents -> packed, shuffled rows, and held-out documents
    run.make("pretrain")  # rows in the mixture's order -> one checkpoint a variant
    run.make("evaluate")  # checkpoint -> loss of every held-out document
    run.make("verdict")  # losses of all variants -> differences with intervals, and the gate
    print(
        table(
            run.recipe, run.artifact("verdict"), {name: run.artifact(name) for name in run.stages if name.startswith("pretrain/")}
        ),
        flush=True,
    )
    publish(run)  # the gate's winner -> registry, under the alias
    serve(run)  # alias -> HTTP


if __name__ == "__main__":
    main(whole_run)
