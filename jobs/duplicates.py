"""python -m jobs.duplicates RECIPE: make the `duplicates` stage of a recipe; the stages before it must be finished."""

from jobs.run import main

if __name__ == "__main__":
    main(lambda run: run.make("duplicates"))
