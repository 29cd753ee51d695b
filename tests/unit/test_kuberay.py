"""Manifests for KubeRay, made from the shipped cluster file: names of fields, what is taken over, what is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from medschool.cli import app
from medschool.cluster import growth, kuberay
from medschool.errors import InputError

ROOT = Path(__file__).parents[2]
FIELDS = {  # KubeRay's API reference, v1.6: the fields that are used here, by their type
    "RayClusterSpec": {
        "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs",
    },
    "AuthOptions": {"mode", "secretName"},
    "AutoscalerOptions": {"version", "upscalingMode", "idleTimeoutSeconds", "securityContext"},
    "HeadGroupSpec": {"rayStartParams", "template"},
    "WorkerGroupSpec": {
        "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "rayStartParams", "template",
    },
    "RayJobSpec": {
        "entrypoint", "runtimeEnvYAML", "entrypointResources", "submissionMode", "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec",
    },
    "RayServiceSpec": {"serveConfigV2", "rayClusterConfig"},
}  # fmt: skip


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return loaded


def rendered(*words: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, ["cluster", "render", str(ROOT / "cluster.yaml"), *words])
    assert result.exit_code == 0, result.output
    return list(yaml.safe_load_all(result.output))


def pods(spec: dict[str, Any]) -> dict[str, Any]:
    groups = {each["groupName"]: each["template"]["spec"] for each in spec["workerGroupSpecs"]}
    return {"head": spec["headGroupSpec"]["template"]["spec"], **groups}


def test_every_field_is_one_that_the_operator_knows() -> None:
    policy, cluster = rendered("--kuberay", "cluster")
    job, service = (
        rendered("--kuberay", "job", "--recipe", str(ROOT / "recipes" / "quickstart.yaml"))[-1],
        rendered("--kuberay", "service", "--serve-config", str(ROOT / "serve_apps" / "chat.yaml"))[-1],
    )
    spec = cluster["spec"]
    assert spec.keys() <= FIELDS["RayClusterSpec"] and spec["authOptions"].keys() <= FIELDS["AuthOptions"]
    assert spec["autoscalerOptions"].keys() <= FIELDS["AutoscalerOptions"]
    assert spec["headGroupSpec"].keys() <= FIELDS["HeadGroupSpec"]
    assert all(group.keys() <= FIELDS["WorkerGroupSpec"] for group in spec["workerGroupSpecs"])
    assert job["spec"].keys() <= FIELDS["RayJobSpec"] and service["spec"].keys() <= FIELDS["RayServiceSpec"]
    assert [each["kind"] for each in (policy, cluster, job, service)] == ["NetworkPolicy", "RayCluster", "RayJob", "RayService"]
    assert job["spec"]["rayClusterSpec"] == service["spec"]["rayClusterConfig"] == spec


def test_nodes_are_those_of_the_cluster_file(config: dict[str, Any]) -> None:
    spec = kuberay.ray_cluster_spec(config)
    head, *workers = config["available_node_types"].values()
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert json.loads(json.loads(spec["headGroupSpec"]["rayStartParams"]["resources"])) == {"driver": 100}
    for node, group in zip(workers, spec["workerGroupSpecs"], strict=True):
        params, pod = group["rayStartParams"], group["template"]["spec"]
        assert (params["num-cpus"], params["num-gpus"]) == (str(node["resources"]["CPU"]), str(node["resources"].get("GPU", 0)))
        assert dict(pair.split("=") for pair in params["labels"].split(",")) == node["labels"]
        assert (group["minReplicas"], group["maxReplicas"]) == (node["min_workers"], node["max_workers"])
        assert group["idleTimeoutSeconds"] == node["idle_timeout_s"]
        assert pod["nodeSelector"] == {"node.kubernetes.io/instance-type": node["node_config"]["InstanceType"]}
        assert pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", "0") == params["num-gpus"]
    assert head["node_config"]["InstanceType"] in str(spec["headGroupSpec"])
    (said,) = (each["value"] for each in pods(spec)["head"]["containers"][0]["env"] if each["name"] == growth.VARIABLE)
    assert said == growth.told(config)


def test_pods_are_as_closed_and_as_quiet_as_the_nodes(config: dict[str, Any]) -> None:
    spec = kuberay.ray_cluster_spec(config)
    assert spec["authOptions"] == {"mode": "token", "secretName": "medschool"}
    stated = {option.removeprefix("--env=").split("=")[0] for option in config["docker"]["run_options"] if "--env=" in option}
    for name, pod in pods(spec).items():
        (container,) = pod["containers"]
        told = {variable["name"] for variable in container["env"]}
        assert {one for one in stated if not one.startswith("RAY_AUTH_")} <= told
        assert ("MEDSCHOOL_API_KEY" in told) == pod["automountServiceAccountToken"] == (name == "head")
        assert container["image"] == config["docker"]["image"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert next(each for each in pod["volumes"] if each["name"] == "shm")["emptyDir"]["medium"] == "Memory"
    values = [variable.get("value", "") for pod in pods(spec).values() for variable in pod["containers"][0]["env"]]
    assert not [value for value in values if "key" in value.lower()], "secrets are named, never written out"


def test_the_policy_lets_in_the_cluster_the_operator_and_named_clients() -> None:
    spec = kuberay.network_policy("medschool")["spec"]
    own, operator, clients = spec["ingress"]
    assert spec["podSelector"] == own["from"][0]["podSelector"] == {"matchLabels": {"ray.io/cluster": "medschool"}}
    assert spec["policyTypes"] == ["Ingress"] and "ports" not in own
    assert [port["port"] for port in clients["ports"]] == [kuberay.SERVE_PORT]
    assert kuberay.DASHBOARD_PORT in [port["port"] for port in operator["ports"]]


def test_serve_s_file_is_what_the_service_gets(config: dict[str, Any]) -> None:
    given = yaml.safe_load((ROOT / "serve_apps" / "chat.yaml").read_text())
    before = copy.deepcopy(given)
    made = yaml.safe_load(kuberay.service_manifests(config, given)[-1]["spec"]["serveConfigV2"])
    assert given == before
    assert made["applications"][0]["args"] == given["applications"][0]["args"]
    assert made["http_options"]["host"] == "0.0.0.0"


def test_what_a_pod_needs_and_the_file_lacks_is_named(config: dict[str, Any]) -> None:
    del config["metadata"]["pod_memory"]["cpu"]
    with pytest.raises(InputError, match="memory is stated for pods of cpu") as refused:
        kuberay.cluster_manifests(config)
    assert refused.value.where == "metadata.pod_memory.cpu"
    config["metadata"]["pod_memory"]["cpu"] = "1Gi"
    config["available_node_types"]["cpu"]["docker"]["worker_run_options"] = []
    with pytest.raises(InputError, match="shared memory is stated for cpu"):
        kuberay.cluster_manifests(config)


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "line 1"), ("- 1", "holds no mapping"), (None, "cannot be read")], ids=["yaml", "list", "missing"]
)
def test_a_file_that_is_none_is_said(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    result = CliRunner().invoke(app, ["cluster", "render", str(path), "--kuberay", "cluster"])
    assert isinstance(result.exception, InputError) and said in str(result.exception)


def test_a_job_without_a_recipe_is_said() -> None:
    result = CliRunner().invoke(app, ["cluster", "render", str(ROOT / "cluster.yaml"), "--kuberay", "job"])
    assert isinstance(result.exception, InputError) and "--recipe" in result.exception.remedy
