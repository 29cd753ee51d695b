"""`medschool drill preempt|node|head|store`: a node, the head or the object store is lost on purpose while something runs."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medschool.commands.arguments import AsJson, Overrides
from medschool.commands.drill_job import as_job
from medschool.commands.drilled import Say, shown
from medschool.errors import PlanError
from medschool.recipe import Recipe, load

if TYPE_CHECKING:
    from medschool.cluster.fault_outcome import FaultOutcome
    from medschool.cluster.node_drill import Loss
    from medschool.cluster.own_cluster import OwnCluster

AnyRecipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: its settings and its model's architecture.")]
QUICKSTART = Path("recipes/quickstart.yaml")
Steps = Annotated[int, typer.Option(min=8, help="Optimizer steps of the tiny model.")]
AwayS = Annotated[float, typer.Option("--away-s", min=1, help="Seconds that it is away.")]
OnCluster = Annotated[bool, typer.Option("--cluster", help="On the running cluster, as a job; else on one of its own.")]
STEPS = 32
OTHERS = {
    "node": "Ray ends no node of a running cluster without notice; `preempt --cluster` takes one away with notice",
    "head": "it would end the drivers of all jobs there",
    "store": "it would end the store for everybody who uses it",
}
"""Why a drill is not done on a running cluster."""


def preempt(
    recipe: AnyRecipe = QUICKSTART,
    steps: Steps = STEPS,
    on_cluster: OnCluster = False,
    overrides: Overrides = [],  # noqa: B006 (typer's own form)
    as_json: AsJson = False,
) -> None:
    """Take a node away with 30 s of notice while a tiny model trains, then bring another. Exit code 1 on FAIL.

    PASS: it saves and moves, no step is lost, no failure is counted, it grows again, and rows and losses are those of a run
    that nobody disturbed.

    Example: medschool drill preempt --json
    """
    if on_cluster:
        words = ["--fault", "preempt", "--steps", str(steps)]
        raise typer.Exit(as_job(recipe, load(recipe, overrides), words, overrides, as_json))
    raise typer.Exit(shown(lambda say: _lost_here("preempt", load(recipe, overrides), steps, say), as_json))


def node(
    recipe: AnyRecipe = QUICKSTART,
    steps: Steps = STEPS,
    on_cluster: OnCluster = False,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """End a node without notice while a tiny model trains, then bring another. Exit code 1 on FAIL.

    PASS: at most the steps between two checkpoints are lost, it goes on with fewer workers and grows again, and rows and losses
    are those of a run that nobody disturbed.

    Example: medschool drill node --steps 64
    """
    _refuse(on_cluster, "node")
    raise typer.Exit(shown(lambda say: _lost_here("node", load(recipe, overrides), steps, say), as_json))


def head(away_s: AwayS = 5.0, on_cluster: OnCluster = False, as_json: AsJson = False) -> None:
    """End the head while an echo is served, and start it again on the tables that it kept. Exit code 1 on FAIL.

    PASS: no request to a node that was not lost fails, no replica ends, and the head comes back and heals what dies then.

    Example: medschool drill head --away-s 20
    """
    from medschool.cluster.head_drill import drill_head

    _refuse(on_cluster, "head")
    raise typer.Exit(shown(lambda say: drill_head(away_s, say), as_json))


def store(
    recipe: AnyRecipe = QUICKSTART,
    steps: Steps = STEPS,
    away_s: AwayS = 10.0,
    on_cluster: OnCluster = False,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """End the object store while a tiny model trains, and start it again on its data. Exit code 1 on FAIL.

    PASS: no step is lost, the checkpoint that fell due is written later, and weights, rows and losses are those of a run that
    nobody disturbed.

    Example: medschool drill store --away-s 60 --json
    """
    _refuse(on_cluster, "store")
    raise typer.Exit(shown(lambda say: _store_here(load(recipe, overrides), steps, away_s, say), as_json))


def run_connected(fault: "Loss", recipe: Recipe, store_uri: str, steps: int, cluster: "OwnCluster | None", as_json: bool) -> int:
    """Lose a node of the Ray that this process is connected to, and clean up; the exit code. cluster: None for a running one."""
    return shown(lambda say: _lost(fault, recipe, store_uri, steps, cluster, say), as_json)


def _lost_here(fault: "Loss", recipe: Recipe, steps: int, say: Say) -> "FaultOutcome":
    """On a cluster of this process's own: a head, and two nodes that hold a worker each."""
    from medschool.cluster.own_cluster import own_cluster

    with own_cluster(head_cpus=1) as cluster:
        from medschool.cluster import node_drill  # not before: it imports Ray, which reads its variables once

        for _ in range(2):
            cluster.add_node(node_drill.NODE_CPUS)
        cluster.connect()
        here = node_drill.for_own_cluster(recipe, steps)
        return _lost(fault, here, str(cluster.folder / "store"), steps, cluster, say)


def _lost(fault: "Loss", recipe: Recipe, store_uri: str, steps: int, cluster: "OwnCluster | None", say: Say) -> "FaultOutcome":
    from medschool import storage
    from medschool.cluster.node_drill import drill_loss, undisturbed
    from medschool.cluster.slice import drill_folder, tiny_slice

    folder = drill_folder(store_uri)
    try:
        course, rows = tiny_slice(recipe, store_uri, folder, steps)
        return drill_loss(fault, course, rows, undisturbed(course, rows, say), cluster, say)
    finally:
        storage.delete_prefix(folder)


def _store_here(recipe: Recipe, steps: int, away_s: float, say: Say) -> "FaultOutcome":
    """On a store and a Ray of this process's own."""
    from medschool.cluster.own_ray import own_ray
    from medschool.cluster.own_store import own_store

    with tempfile.TemporaryDirectory(prefix="ms-store-") as home, own_store(Path(home)) as own:
        os.environ.update(own.variables)
        spec = recipe.cluster
        with own_ray(num_cpus=2 + spec.data_cpus):
            from medschool.cluster.slice import drill_folder, tiny_slice
            from medschool.cluster.store_drill import drill_store, for_own_ray

            store_uri = own.variables["MEDSCHOOL_STORE"]
            course, rows = tiny_slice(for_own_ray(recipe, steps), store_uri, drill_folder(store_uri), steps)
            return drill_store(course, rows, None, own, away_s, say)


def _refuse(on_cluster: bool, fault: str) -> None:
    """Raise PlanError for a drill that is not done on a running cluster."""
    if on_cluster:
        raise PlanError(f"`drill {fault}` is not done on a running cluster: {OTHERS[fault]}", "leave out --cluster", "--cluster")
