"""Break a run on purpose on this cluster, and see whether it heals: `python -m jobs.drill recipes/quickstart.yaml --kills 2`.

What `medschool drill resume --cluster` and `medschool drill preempt --cluster` submit; medschool.cluster.drill and node_drill say
what is done and what PASS means.
"""

import argparse
import logging
import sys

import ray

from jobs.run import quiet, store_from_environment
from medschool.cluster.node_drill import for_cluster
from medschool.commands import drill_faults
from medschool.commands.drill import parse_sizes, run_connected
from medschool.errors import MedschoolError
from medschool.recipe import load


def main() -> int:
    """The exit code: 0 for PASS, 1 for FAIL."""
    parser = argparse.ArgumentParser(epilog="example: python -m jobs.drill recipes/quickstart.yaml --world-sizes 2,1,2")
    parser.add_argument("recipe")
    parser.add_argument("--fault", choices=["resume", "preempt"], default="resume")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--world-sizes", default="")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="section.field=value")
    args = parser.parse_args()
    recipe, store_uri = load(args.recipe, args.set), store_from_environment()
    sizes = parse_sizes(args.world_sizes, recipe)
    ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
    quiet()
    if args.fault == "preempt":
        return drill_faults.run_connected("preempt", for_cluster(recipe, args.steps), store_uri, args.steps, None, args.json)
    return run_connected(recipe, store_uri, args.tiny, args.kills, sizes, args.steps, args.json)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MedschoolError as error:
        print(
            f"error: {error.where + ': ' if error.where else ''}{error.problem}\nfix: {error.remedy}", file=sys.stderr, flush=True
        )
        sys.exit(error.exit_code)
