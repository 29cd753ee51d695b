"""python -m jobs.model RECIPE: check the base model and its tokenizer and put their manifests into the store."""

from jobs.run import Run, main


def adopt(run: Run) -> None:
    run.make("model")
    run.make("tokenizer")


if __name__ == "__main__":
    main(adopt)
