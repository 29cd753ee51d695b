"""python -m jobs.report RECIPE: print the table of a finished verdict, and write it as an HTML page and as Markdown."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil

from jobs.run import Run, main
from medschool import storage
from medschool.cluster import growth, timeline
from medschool.cluster.bill import bill, nodes_of_cluster
from medschool.errors import MedschoolError, ServiceError
from medschool.plan import make_plan
from medschool.procedure import results_uri

if TYPE_CHECKING:
    from medschool.ablate.page import Report  # which brings matplotlib and SciPy: not before there is something to report


def report(run: Run) -> None:
    """The table to the user; report.html, report.md and results.json to the store; `medschool submit` brings them home."""
    from medschool.ablate.report import table

    keep(run)
    found = gathered(run)
    for line in table(run.recipe, found.results, found.spent, found.gains).splitlines():
        run.say(line)
    write(run, found)


def gathered(run: Run) -> "Report":
    """Everything that the report shows, from what is in the store now."""
    from medschool.ablate.gather import gather

    recipe = run.recipe
    planned = {course.stage: course.tokens for course in make_plan(recipe, run.store_uri).courses}
    found = gather(recipe, run.artifact, planned, run.made, _nodes())
    return replace(found, timeline=timeline.read(results_uri(run.store_uri, recipe)))


def write(run: Run, found: "Report") -> None:
    """report.html, report.md and results.json, beside each other."""
    from medschool.ablate.markdown import markdown
    from medschool.ablate.page import finite, render

    folder = results_uri(run.store_uri, run.recipe)
    storage.write_bytes(storage.join(folder, "report.html"), render(found).encode())
    storage.write_bytes(storage.join(folder, "report.md"), markdown(run.recipe, found).encode())
    results = json.dumps(finite(found.results), indent=1, sort_keys=True)
    storage.write_bytes(storage.join(folder, "results.json"), results.encode())


def _nodes() -> list[dict[str, Any]]:
    """What the nodes cost since this driver began; empty where Ray's head does not list them: a report needs no price."""
    try:
        return bill(nodes_of_cluster(), psutil.Process().create_time(), time.time())
    except ServiceError:
        return []


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Where an autoscaler brings nodes: note which there are while the block runs, and write the report again with all of it.

    timeline.json is kept of a run that fails, too.
    """
    if not growth.may_come():
        yield
        return
    import ray

    with timeline.Recorder(timeline.looking_at(ray.get_runtime_context().gcs_address)) as run.recorder:
        try:
            yield
        finally:
            with suppress(MedschoolError):  # a store that is away is not what ended the run
                keep(run)
    write(run, gathered(run))


def keep(run: Run) -> None:
    """timeline.json of this run until now, where one is recorded."""
    if run.recorder is not None:
        from medschool.ablate.gather import stage_spans

        made = stage_spans(run.recipe, run.artifact, run.made)
        timeline.write(results_uri(run.store_uri, run.recipe), run.recorder.so_far().with_spans([*made, *run.spans]))


if __name__ == "__main__":
    main(report)
