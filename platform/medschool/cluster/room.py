"""How much a cluster holds in all."""

import ray

from medschool.cluster import growth


def cluster_room() -> dict[str, float]:
    """Logical CPUs and GPUs that the cluster has, or may grow to where an autoscaler runs."""
    alive = ray.cluster_resources()
    return {name: max(alive.get(name, 0), growth.most(name)) for name in ("CPU", "GPU")}
