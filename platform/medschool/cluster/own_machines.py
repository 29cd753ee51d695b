"""A cluster file for own machines over SSH, read as if it had node types, so that a plan can ask it what it holds.

    provider.worker_ips + metadata.machines --> available_node_types, one for all machines that are alike

Ray's launcher knows a single kind of node there and lets each machine say what it has when it starts. A plan is made before
that, so the file states it too, in a section that Ray does not read. Nobody compares that with the machines: a wrong number there
makes a wrong plan, not a wrong cluster.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medschool.cluster.price import PRICE
from medschool.errors import InputError

OWN = ("node_type", "CPU", "GPU", "accelerator", "usd_per_hour")
"""Keys of a machine that say what Ray will find there; the others are those of any machine (offer.node_types)."""


def with_own_machines(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The file, as Ray prepares it, with node types, and what is known of a machine under the name of its type.

    Raises InputError where a worker stands in one of the two lists only, or two machines of one type differ.
    """
    machines = {str(address): stated for address, stated in config.get("metadata", {}).get("machines", {}).items()}
    addresses = [str(address) for address in config["provider"].get("worker_ips", [])]
    if unlike := sorted(set(addresses) ^ set(machines)):
        raise InputError(
            f"{path}: {', '.join(unlike)} stands in one of provider.worker_ips and metadata.machines only",
            "name each worker in both",
            "metadata.machines",
        )
    types: dict[str, dict[str, Any]] = {}
    known: dict[str, dict[str, Any]] = {}
    for address, stated in machines.items():
        name, (made, about) = str(stated.get("node_type", address)), _kind(stated)
        count = types.setdefault(name, made)["max_workers"]
        if (types[name], known.setdefault(name, about)) != (made | {"max_workers": count}, about):
            raise InputError(
                f"{path}: two machines of the type {name} differ", "give them two types", f"metadata.machines.{address}"
            )
        types[name]["max_workers"] = count + 1
    head = {"resources": {"CPU": 0}, "min_workers": 0, "max_workers": 0, "node_config": {}}
    return {
        **config,
        "provider": {"type": "readonly"},  # Ray refuses node types where it says `local`
        "auth": {},  # and would read the key, which a plan does not need
        "max_workers": len(addresses),
        "head_node_type": "head",
        "available_node_types": {"head": head, **types},
        "metadata": {**config["metadata"], "machines": known},
    }


def _kind(stated: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A node type without nodes, and the rest of what is stated. Labels: those of the start commands, and Ray's own."""
    labels = {"ray.io/market-type": "on-demand", "ray.io/node-group": "gpu_train" if stated.get("GPU") else "cpu"}
    if "accelerator" in stated:
        labels["ray.io/accelerator-type"] = str(stated["accelerator"])
    if "usd_per_hour" in stated:
        labels[PRICE] = str(stated["usd_per_hour"])
    resources = {name: stated[name] for name in ("CPU", "GPU") if name in stated}
    made = {"resources": resources, "labels": labels, "min_workers": 0, "max_workers": 0, "node_config": {}}
    return made, {key: value for key, value in stated.items() if key not in OWN}
