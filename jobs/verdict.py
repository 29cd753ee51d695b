"""python -m jobs.verdict RECIPE: make the `verdict` stage of a recipe; the stages before it must be finished."""

from jobs.run import main

if __name__ == "__main__":
    main(lambda run: run.make("verdict"))
