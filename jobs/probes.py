"""python -m jobs.probes RECIPE: make the `probes` stages of a recipe; the stages before them must be finished."""

from jobs.run import main

if __name__ == "__main__":
    main(lambda run: run.make("probes"))
