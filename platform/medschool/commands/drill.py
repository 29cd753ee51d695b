"""`medschool drill ...`: proofs by fire, on the user's own recipe and machines."""

from typing import Annotated

import typer

from medschool.commands import drill_faults
from medschool.commands.arguments import AsJson, Overrides, RecipePath, store_alone
from medschool.commands.drill_job import as_job
from medschool.commands.drilled import shown
from medschool.errors import RecipeError
from medschool.recipe import Recipe, load

app = typer.Typer(name="drill", no_args_is_help=True, help="Break a run on purpose and see whether it heals.")
for _verb in (drill_faults.preempt, drill_faults.node, drill_faults.head, drill_faults.store):
    app.command()(_verb)


@app.command()
def resume(
    recipe: RecipePath,
    kills: Annotated[int, typer.Option(min=1, help="Training workers to kill, at least one a change of their number.")] = 2,
    world_sizes: Annotated[
        str, typer.Option(metavar="N,N,...", help="Workers at each start; the recipe's own number throughout when left out.")
    ] = "",
    steps: Annotated[int, typer.Option(min=2, help="Optimizer steps of the slice.")] = 24,
    tiny: Annotated[bool, typer.Option("--tiny", help="A tiny random model and invented rows: no input needed.")] = False,
    on_cluster: Annotated[bool, typer.Option("--cluster", help="On the running cluster, as a job; else on its own Ray.")] = False,
    overrides: Overrides = [],  # noqa: B006 (typer's own form)
    as_json: AsJson = False,
) -> None:
    """Prove that a run resumes: train a slice, train it again while workers are killed, compare. Exit code 1 on FAIL.

    With one number of workers weights must be equal to the last bit; with several, rows equal and losses within 1e-4.

    Example: medschool drill resume recipes/quickstart.yaml --tiny --world-sizes 2,1,2 --set cluster.zero_stage=3 --json
    """
    checked = load(recipe, overrides)
    sizes = parse_sizes(world_sizes, checked)
    if on_cluster:
        words = ["--kills", str(kills), "--world-sizes", ",".join(map(str, sizes)), "--steps", str(steps)]
        raise typer.Exit(as_job(recipe, checked, [*words, *["--tiny"] * tiny], overrides, as_json))
    raise typer.Exit(run_here(checked, kills, sizes, steps, tiny, as_json))


def parse_sizes(text: str, recipe: Recipe) -> list[int]:
    """`2,1,2` as numbers; the recipe's own where nothing is given. Raises RecipeError for anything else."""
    if not text:
        return [recipe.cluster.most_workers]
    try:
        sizes = [int(word) for word in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise RecipeError(f"cannot read {text!r}", "write numbers of workers, such as 2,1,2", "--world-sizes")
    return sizes


def run_here(recipe: Recipe, kills: int, sizes: list[int], steps: int, tiny: bool, as_json: bool) -> int:
    """Drill on a Ray of this process's own; the exit code."""
    from medschool.cluster.own_ray import own_ray

    store_uri, spec = "" if tiny else store_alone(), recipe.cluster
    with own_ray(num_cpus=max(sizes) * spec.cpus_per_worker + spec.data_cpus) as folder:
        return run_connected(recipe, store_uri or str(folder / "store"), tiny, kills, sizes, steps, as_json)


def run_connected(recipe: Recipe, store_uri: str, tiny: bool, kills: int, sizes: list[int], steps: int, as_json: bool) -> int:
    """Drill on the Ray that this process is connected to, and clean up; the exit code."""
    from medschool import storage
    from medschool.cluster.drill import drill_resume
    from medschool.cluster.slice import drill_folder, recipe_slice, tiny_slice

    folder = drill_folder(store_uri)
    try:
        course, rows = (tiny_slice if tiny else recipe_slice)(recipe, store_uri, folder, steps)
        return shown(lambda say: drill_resume(course, rows, sizes, kills, say), as_json)
    finally:
        storage.delete_prefix(folder)
