"""What an autoscaler may bring, by node type: told to every process of the head by the head's own environment.

    cluster file --python -m medschool.cluster.growth FILE--> MEDSCHOOL_NODE_TYPES of the head --may_come()--> whoever asks

On a cluster that starts from nothing, room that is not there yet must be told from room that there can never be. Ray 2.60 has a
place for the answer (`ray._private.state.get_cluster_config`, the GCS's ReportClusterConfig), and nothing that comes with Ray
fills it: neither the autoscaler nor KubeRay. So whoever starts the head says it there: cluster.yaml by the command above, the
manifests for Kubernetes with the text itself.

Job drivers, the processes of trials and Ray Train's controllers ask; all of them live on the head and inherit its environment.
Price: two seconds at the start of the head. What it does not know: quotas of the cloud, and how many of several types together
`max_workers` allows; each type alone is cut to it.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medschool.errors import ServiceError

VARIABLE = "MEDSCHOOL_NODE_TYPES"


@dataclass(frozen=True)
class NodeType:
    """Nodes that an autoscaler starts and ends."""

    name: str
    resources: Mapping[str, float]
    """Logical resources of one of them."""
    most: int


def told(config: Mapping[str, Any]) -> str:
    """The value of VARIABLE for a cluster file that was read: JSON, the head and types that never come left out."""
    together = config.get("max_workers", sys.maxsize)
    return json.dumps(
        {
            name: {"resources": node["resources"], "most": min(node["max_workers"], together)}
            for name, node in config["available_node_types"].items()
            if name != config["head_node_type"] and node.get("max_workers")
        },
        separators=(",", ":"),
    )


def may_come() -> tuple[NodeType, ...]:
    """Node types that may come to this cluster; empty without an autoscaler. Raises ServiceError for a value that is none."""
    value = os.environ.get(VARIABLE, "")
    if not value:
        return ()
    try:
        return tuple(NodeType(name, dict(kind["resources"]), int(kind["most"])) for name, kind in json.loads(value).items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServiceError(
            f"{VARIABLE} cannot be read ({error})", "start the head as cluster.yaml does, or unset it there", VARIABLE
        ) from error


def most(name: str) -> float:
    """So much of a logical resource, CPU or GPU, may come at most."""
    return sum(kind.resources.get(name, 0) * kind.most for kind in may_come())


def without_gpu() -> float:
    """Logical CPUs of the types that have no GPU; 0 where every type has one, or nothing comes."""
    return sum(kind.resources.get("CPU", 0) * kind.most for kind in may_come() if not kind.resources.get("GPU"))


if __name__ == "__main__":
    import yaml

    print(told(yaml.safe_load(Path(sys.argv[1]).expanduser().read_text(encoding="utf-8"))))
