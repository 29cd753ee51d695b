"""What a cluster file can give: its node types, which of them Ray would start for a demand, and what an hour of them costs.

Whether a demand fits is asked of Ray's own autoscaler (the scheduler of version 2, which `cluster.yaml` runs with), offline and
on an empty cluster: the answer is the one that a run would get, not an imitation of it. The price of a node is a label of its
type, `medschool/usd-per-hour`, which Ray gives to each node that it starts: a plan and a running cluster know the same prices.
What the file's `metadata.machines` says of an instance type is read by us alone: the accelerator that it has.
"""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medschool.cluster.own_machines import with_own_machines
from medschool.cluster.price import PRICE, price_of
from medschool.errors import InputError

Bundle = Mapping[str, float]
"""Logical resources of one worker or task: CPU, GPU."""


@dataclass(frozen=True)
class NodeType:
    """One node type of a cluster file, the head left out."""

    name: str
    machine: str
    """The cloud's name of the machine."""
    resources: dict[str, float]
    most: int
    usd_per_hour: float | None
    """Of one node; None where its type has no price."""
    accelerator: str | None
    """As the driver names it, torch.cuda.get_device_name."""
    accelerator_bytes: int | None


def read_cluster(path: Path) -> dict[str, Any]:
    """A cluster file as Ray's launcher takes it. Raises InputError with the key and the line where it is wrong."""
    import yaml
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        config: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "name a cluster file") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}", "mend the line that it names") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no mapping", "compare it with cluster.yaml of the repository")
    try:
        prepared = prepare_config(copy.deepcopy(config))
        validate_config(prepared)
    except ValidationError as error:
        key = ".".join(map(str, error.absolute_path)) or "its top"
        raise InputError(f"{path}: {error.message}", f"correct {key}{_line(path, error)}", key) from error
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: {error}", "correct the key that it names") from error
    return with_own_machines(prepared, path) if config["provider"]["type"] == "local" else config


def _line(path: Path, error: Any) -> str:
    """` (line 7)` of the first key that the message quotes, or of the last one on the way there; empty where none is found."""
    words = [word for word in str(error.message).split("'")[1::2] if word]
    wanted = [*words, *(str(part) for part in reversed(error.absolute_path))]
    lines = path.read_text(encoding="utf-8").splitlines()
    for word in wanted:
        for number, line in enumerate(lines, 1):
            if line.split("#")[0].strip().startswith(f"{word}:"):
                return f" (line {number})"
    return ""


def node_types(config: Mapping[str, Any]) -> tuple[NodeType, ...]:
    """The node types that work can run on. Raises InputError for a price or an entry of `metadata.machines` that is none."""
    known = config.get("metadata", {}).get("machines", {})
    found = []
    for name, node in config["available_node_types"].items():
        if name == config["head_node_type"]:
            continue
        machine = str(node.get("node_config", {}).get("InstanceType", name))
        stated = known.get(machine, {})
        if unknown := stated.keys() - {"gpu", "gpu_gib"}:
            raise InputError(
                f"{', '.join(sorted(unknown))} is not known here",
                f"state gpu and gpu_gib; a price is the label {PRICE} of a node type",
                f"metadata.machines.{machine}",
            )
        size = stated.get("gpu_gib")
        found.append(
            NodeType(
                name,
                machine,
                dict(node["resources"]),
                node["max_workers"],
                _price(name, node.get("labels", {})),
                stated.get("gpu"),
                int(size * 2**30) if size else None,
            )
        )
    return tuple(found)


def _price(name: str, labels: Mapping[str, str]) -> float | None:
    """As price_of. Raises InputError for a label that is no number, which Ray would take."""
    if PRICE in labels and price_of(labels) is None:
        raise InputError(
            f"{labels[PRICE]!r} is no price", 'write USD an hour, as in "1.536"', f"available_node_types.{name}.labels.{PRICE}"
        )
    return price_of(labels)


def nodes_for(
    config: Mapping[str, Any], bundles: Sequence[Bundle], labels: Mapping[str, str] | None = None, anywhere: Sequence[Bundle] = ()
) -> dict[str, int] | None:
    """Nodes by type that Ray's autoscaler starts for these demands on an empty cluster; None where it can never hold them all.

    labels: that a node must have to hold one of `bundles`; those of `anywhere` may go to any.
    """
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.common_pb2 import LabelSelectorOperator

    equal = LabelSelectorOperator.LABEL_OPERATOR_IN
    selectors = [[(name, equal, [value]) for name, value in labels.items()]] if labels else None
    asked = [ResourceRequestUtil.make(dict(bundle), label_selectors=selectors) for bundle in bundles]
    asked += [ResourceRequestUtil.make(dict(bundle)) for bundle in anywhere]
    settings = AutoscalingConfig(copy.deepcopy(dict(config)), skip_content_hash=True)
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=settings.get_node_type_configs(),
            max_num_nodes=settings.get_max_num_worker_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(asked),
        )
    )
    if reply.infeasible_resource_requests:
        return None
    return dict(Counter({request.instance_type: request.count for request in reply.to_launch}))
