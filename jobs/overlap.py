"""python -m jobs.overlap RECIPE: make the `overlap` stages of a recipe; the stages before them must be finished."""

from jobs.run import main

if __name__ == "__main__":
    main(lambda run: run.make("overlap"))
