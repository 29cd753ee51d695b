"""python -m jobs.chats RECIPE: make the `chats` stages of a recipe; the stages before them must be finished."""

from jobs.run import main

if __name__ == "__main__":
    main(lambda run: run.make("chats"))
