"""The cluster file as manifests for Kubernetes: what KubeRay's operator needs to run the same nodes, image, limits and secrets.

    cluster.yaml --> NetworkPolicy, RayCluster        a cluster that stays
                     NetworkPolicy, RayJob            one recipe: comes, runs, goes
                     NetworkPolicy, RayService        the served model alone

One file says what the nodes are, so both ways of starting them cannot drift apart. Taken over are: node types with their
resources, labels, limits and idle times; the image; the variables of `docker.run_options`; shared memory; the folder of
secrets, which becomes a Secret. Ray's token is left to the operator (`authOptions`): it gives it to every container.

A pod takes a whole machine: it asks for the instance type of its node type by the label that every cloud sets
(`node.kubernetes.io/instance-type`), and for as much memory as `metadata.pod_memory` says, the one thing that Kubernetes must
know and Ray's launcher asks AWS for.

Fields and their meaning: KubeRay's API reference, v1.6 (`authOptions` with a secret's name came with it). Nothing here has run on
Kubernetes: names of fields are checked, their effect is not.
"""

import copy
import json
import re
import shlex
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import yaml

from medschool.cluster import growth
from medschool.errors import InputError

CODE = {"working_dir": "/opt/medschool", "env_vars": {"PYTHONPATH": "platform", "PYTHONUNBUFFERED": "1"}}
"""Runtime environment of jobs and applications: the code that is in the image."""
OPERATOR_NAMESPACE = "kuberay-operator"
"""Where the operator's Helm chart is installed by its documentation."""
CLIENT_LABEL = {"medschool/client": "true"}
"""Pods with this label may ask the served model; nobody else outside the cluster may."""
SECRETS_FOLDER = "/home/ray/secrets"
SERVE_PORT, DASHBOARD_PORT, AGENT_PORT = 8000, 8265, 52365
_ENV = re.compile(r"--env=([A-Za-z_]\w*)=(.*)", re.DOTALL)
_SHM = re.compile(r"--shm-size=(\d+)g")


def cluster_manifests(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A cluster that stays until it is deleted. `config`: the cluster file, read.

    Raises InputError where it lacks what a pod needs.
    """
    return _behind_policy(config, "RayCluster", ray_cluster_spec(config))


def job_manifests(config: Mapping[str, Any], recipe: str) -> list[dict[str, Any]]:
    """A whole run of one recipe on a cluster of its own, which goes when the run has ended.

    `recipe`: its path in the repository, and so in the image. Raises InputError where the cluster file lacks what a pod needs.
    """
    spec = {
        "entrypoint": f"python -m jobs.whole_run {shlex.quote(recipe)}",
        "runtimeEnvYAML": yaml.safe_dump(CODE),
        "entrypointResources": json.dumps({"driver": 1}),
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "backoffLimit": 1,  # another cluster goes on where the first one was: finished stages are in the store
        "rayClusterSpec": ray_cluster_spec(config),
    }
    return _behind_policy(config, "RayJob", spec)


def service_manifests(config: Mapping[str, Any], serve_config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The served model alone. `serve_config`: serve_apps/chat.yaml, read. Raises InputError as the others do."""
    served = copy.deepcopy(dict(serve_config))
    served["http_options"] = served.get("http_options", {}) | {"host": "0.0.0.0", "port": SERVE_PORT}  # the policy closes it
    for application in served["applications"]:
        application["runtime_env"] = CODE
    spec = {"serveConfigV2": yaml.safe_dump(served, sort_keys=False), "rayClusterConfig": ray_cluster_spec(config)}
    return _behind_policy(config, "RayService", spec)


def _behind_policy(config: Mapping[str, Any], kind: str, spec: dict[str, Any]) -> list[dict[str, Any]]:
    name = config["cluster_name"]
    return [network_policy(name), {"apiVersion": "ray.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}]


def ray_cluster_spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """`spec` of a RayCluster: the head, and a group of workers for each other node type."""
    types, head = config["available_node_types"], config["head_node_type"]
    workers = [_group(config, name, each) for name, each in types.items() if name != head]
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token", "secretName": config["cluster_name"]},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": 60 * config["idle_timeout_minutes"],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        },
        "headGroupSpec": {
            "rayStartParams": _start_params(types[head]) | {"dashboard-host": "0.0.0.0"},  # the policy closes it
            "template": _pod(config, head, types[head], is_head=True),
        },
        "workerGroupSpecs": workers,
    }


def network_policy(name: str) -> dict[str, Any]:
    """Pods of the cluster reach each other, the operator the head, labelled clients the served model; nobody else anything.

    What they may reach is left open: the store and MLflow are outside.
    """
    own = {"matchLabels": {"ray.io/cluster": name}}
    operator = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": OPERATOR_NAMESPACE}}}
    clients = {"namespaceSelector": {}, "podSelector": {"matchLabels": CLIENT_LABEL}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "podSelector": own,
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": own}]},
                {"from": [operator], "ports": [{"port": DASHBOARD_PORT}, {"port": AGENT_PORT}, {"port": SERVE_PORT}]},
                {"from": [clients], "ports": [{"port": SERVE_PORT}]},
            ],
        },
    }


def _group(config: Mapping[str, Any], name: str, node: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "groupName": name.replace("_", "-"),  # a name in Kubernetes has no underscore
        "replicas": node["min_workers"],
        "minReplicas": node["min_workers"],
        "maxReplicas": node["max_workers"],
        "idleTimeoutSeconds": node["idle_timeout_s"],
        "rayStartParams": _start_params(node),
        "template": _pod(config, name, node, is_head=False),
    }


def _start_params(node: Mapping[str, Any]) -> dict[str, str]:
    """Flags of `ray start`; all values are text, and own resources are JSON inside quotes, as the operator wants them."""
    resources = dict(node["resources"])
    params = {"num-cpus": str(resources.pop("CPU")), "num-gpus": str(resources.pop("GPU", 0))}
    if resources:
        params["resources"] = json.dumps(json.dumps(resources))
    return params | {"labels": ",".join(f"{key}={value}" for key, value in node.get("labels", {}).items())}


def _pod(config: Mapping[str, Any], name: str, node: Mapping[str, Any], is_head: bool) -> dict[str, Any]:
    docker = config["docker"]
    own = docker.get("head_run_options", []) if is_head else node.get("docker", {}).get("worker_run_options", [])
    env = [
        {"name": found[1], "value": found[2]}
        for option in (*docker.get("run_options", []), *own)
        if (found := _ENV.fullmatch(option)) and not found[1].startswith("RAY_AUTH_")  # the operator sets these
    ]
    if is_head:
        env.append({"name": growth.VARIABLE, "value": growth.told(config)})
        env.append(
            {"name": "MEDSCHOOL_API_KEY", "valueFrom": {"secretKeyRef": {"name": config["cluster_name"], "key": "api_key"}}}
        )
    limits = _limits(config, name, node)
    container = {
        "name": "ray-head" if is_head else "ray-worker",
        "image": docker["image"],
        "env": env,
        "resources": {"requests": limits, "limits": limits},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "secrets", "mountPath": SECRETS_FOLDER, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    return {
        "spec": {
            "restartPolicy": "Never",  # autoscaler v2: a pod that ended is no node any more
            "automountServiceAccountToken": is_head,  # the autoscaler beside the head asks Kubernetes for pods
            "nodeSelector": {"node.kubernetes.io/instance-type": node["node_config"]["InstanceType"]},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}] if "GPU" in node["resources"] else [],
            "terminationGracePeriodSeconds": 120,  # a training saves its step in that time
            "containers": [container],
            "volumes": [
                {"name": "secrets", "secret": {"secretName": config["cluster_name"], "defaultMode": 0o440}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{_shared_gib(own, name)}Gi"}},
            ],
        }
    }


def _limits(config: Mapping[str, Any], name: str, node: Mapping[str, Any]) -> dict[str, str]:
    """What a pod asks for and may take. The head computes nothing for Ray, and still needs a processor."""
    memory = config.get("metadata", {}).get("pod_memory", {}).get(name)
    if memory is None:
        raise InputError(
            f"no memory is stated for pods of {name}", f"write it into the cluster file, as in `pod_memory: {{{name}: 120Gi}}`",
            f"metadata.pod_memory.{name}",
        )  # fmt: skip
    cpus, gpus = node["resources"]["CPU"] or 4, node["resources"].get("GPU", 0)
    return {"cpu": str(max(1, cpus - 1)), "memory": str(memory)} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})


def _shared_gib(options: list[str], name: str) -> int:
    for option in options:
        if found := _SHM.fullmatch(option):
            return int(found[1])
    raise InputError(
        f"no shared memory is stated for {name}", "write it as `--shm-size=40g`", f"available_node_types.{name}.docker"
    )
