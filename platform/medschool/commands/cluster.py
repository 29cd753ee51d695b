"""`medschool cluster render`: the cluster file as manifests for Kubernetes."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medschool.commands.arguments import tree_of
from medschool.errors import InputError

app = typer.Typer(name="cluster", no_args_is_help=True, help="What a cluster file becomes elsewhere.")

Kind = Literal["cluster", "job", "service"]


@app.callback()
def cluster() -> None:
    """What a cluster file becomes elsewhere."""


@app.command()
def render(
    kuberay: Annotated[Kind, typer.Option(help="A cluster that stays, one for a single recipe, or the served model alone.")],
    file: Annotated[Path, typer.Argument(help="The cluster file.")] = Path("cluster.yaml"),
    recipe: Annotated[Path | None, typer.Option(help="For `job`: the recipe, by its path in the repository.")] = None,
    serve_config: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="For `service`: what Serve is given.")] = Path(
        "serve_apps/chat.yaml"
    ),
) -> None:
    """Print manifests for KubeRay's operator, made from the cluster file.

    Example: medschool cluster render --kuberay job --recipe recipes/pmc_llama_13b.yaml > job.yaml
    """
    import yaml

    from medschool.cluster import kuberay as of
    from medschool.cluster.offer import read_cluster

    config = read_cluster(file)
    if kuberay == "job":
        if recipe is None:
            raise InputError("a job needs a recipe", "name it with --recipe recipes/NAME.yaml")
        made = of.job_manifests(config, recipe.resolve().relative_to(tree_of(recipe)).as_posix())
    elif kuberay == "service":
        made = of.service_manifests(config, yaml.safe_load(serve_config.read_text(encoding="utf-8")))
    else:
        made = of.cluster_manifests(config)
    print(yaml.dump_all(made, Dumper=_without_aliases(), sort_keys=False), end="")


def _without_aliases() -> Any:
    """A writer of YAML that says everything in full: what is said twice is easier to read than `*id001`."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    return Plain
