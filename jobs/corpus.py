"""python -m jobs.corpus RECIPE: make the `corpus` stages of a recipe; the stages before it must be finished."""

from jobs.run import main

if __name__ == "__main__":
    main(lambda run: run.make("corpus"))
