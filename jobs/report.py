"""python -m jobs.report RECIPE: print the table of a finished verdict, and write it as an HTML page and as Markdown."""

import json

from jobs.run import Run, main
from medschool import storage
from medschool.ablate.gather import gather
from medschool.ablate.markdown import markdown
from medschool.ablate.page import finite, render
from medschool.ablate.report import table
from medschool.plan import make_plan
from medschool.procedure import results_uri


def report(run: Run) -> None:
    """The table to the user; report.html, report.md and results.json to the store; `medschool submit` brings them home."""
    recipe = run.recipe
    planned = {course.stage: course.tokens for course in make_plan(recipe, run.store_uri).courses}
    found = gather(recipe, run.artifact, planned, run.made)
    for line in table(recipe, found.results, found.spent, found.gains).splitlines():
        run.say(line)
    folder = results_uri(run.store_uri, recipe)
    storage.write_bytes(storage.join(folder, "report.html"), render(found).encode())
    storage.write_bytes(storage.join(folder, "report.md"), markdown(recipe, found).encode())
    results = json.dumps(finite(found.results), indent=1, sort_keys=True)
    storage.write_bytes(storage.join(folder, "results.json"), results.encode())


if __name__ == "__main__":
    main(report)
