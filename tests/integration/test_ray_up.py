"""`ray up cluster.yaml` against a mocked AWS: what Ray's launcher asks EC2 for, and what it does on the head over SSH.

EC2 and IAM are moto's. SSH and rsync are two programs on the path that write down what they are given: no machine is behind it.
What that leaves open: whether AWS accepts what moto accepts, and whether the image, the network and the profiles are right.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from remote_shell import given, write_programs

moto = pytest.importorskip("moto", reason="moto is not installed: pip install 'moto>=5.2,<6'")

ROOT = Path(__file__).parents[2]
REGION = "us-west-2"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """EC2 with a network, a security group and the two instance profiles that the file's head tells to make; a HOME of its own."""
    import boto3

    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "HOME": str(tmp_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    write_programs(tmp_path)
    with moto.mock_aws():
        iam = boto3.client("iam", region_name=REGION)
        for profile in ("medschool-head", "medschool-node"):
            iam.create_instance_profile(InstanceProfileName=profile)
        yield boto3.client("ec2", region_name=REGION)


@pytest.fixture
def file(aws: Any, tmp_path: Path) -> Path:
    """The shipped file with its marked values put in, and nothing else changed."""
    vpc = aws.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = aws.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/20")["Subnet"]["SubnetId"]
    group = aws.create_security_group(GroupName="medschool", Description="own", VpcId=vpc)["GroupId"]
    image = aws.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    for old, new in {"subnet-" + "0" * 17: subnet, "sg-" + "0" * 17: group, "ami-" + "0" * 17: image}.items():
        assert f"{old}" in text and "# CHANGE" in next(line for line in text.splitlines() if old in line)
        text = text.replace(old, new)
    path = tmp_path / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def instances(aws: Any) -> list[dict[str, Any]]:
    states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    found = aws.describe_instances(Filters=states)["Reservations"]
    return [instance for reservation in found for instance in reservation["Instances"]]


def tags_of(instance: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}


def test_ray_up_starts_one_head_and_sets_it_up_and_ray_down_ends_it(aws: Any, file: Path, tmp_path: Path) -> None:
    from ray.autoscaler._private import commands

    commands.create_or_update_cluster(str(file), None, None, False, False, yes=True, no_config_cache=True)
    (head,) = instances(aws)
    assert head["InstanceType"] == "m6i.2xlarge" and tags_of(head)["ray-user-node-type"] == "head"
    assert head["IamInstanceProfile"]["Arn"].endswith("/medschool-head") and "PublicIpAddress" not in head
    assert head.get("InstanceLifecycle") != "spot"
    calls = given(tmp_path / "log")
    ssh = [words[-1] for words in calls if words[0] == "ssh"]
    assert all(any(head["PrivateIpAddress"] in word for word in words) for words in calls), "private addresses only"
    run = next(said for said in ssh if "docker run" in said)
    image = yaml.safe_load(file.read_text())["docker"]["image"]
    assert image in run and "--shm-size=8g" in run and "RAY_AUTH_MODE=token" in run and "/home/ray/secrets" in run
    start = next(said for said in ssh if "ray start --head" in said)
    assert "RAY_AUTH_TOKEN_PATH=/home/ray/secrets/ray_token" in start and "--dashboard-host=127.0.0.1" in start
    assert not re.search(r"pip install|apt-get", "\n".join(ssh)), "nothing is installed at start"
    assert "0" * 64 not in (tmp_path / "log").read_text().replace(image, ""), "no secret is in a command line"
    commands.teardown_cluster(str(file), yes=True, workers_only=False, override_cluster_name=None, keep_min_workers=False)
    assert instances(aws) == []


def test_workers_come_as_spot_or_on_demand_with_the_profile_of_nodes(aws: Any, file: Path) -> None:
    from ray.autoscaler._private import commands
    from ray.autoscaler._private.providers import _get_node_provider

    config = commands._bootstrap_config(yaml.safe_load(file.read_text()), no_config_cache=True)
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    for name in ("cpu", "cpu", "gpu_train", "gpu_serve"):  # one at a time: of a request for several spot nodes moto tags one
        node = config["available_node_types"][name]
        tags = {"ray-node-type": "worker", "ray-node-name": f"ray-{name}", "ray-user-node-type": name}
        provider.create_node(node["node_config"], tags, 1)
    found: dict[str, list[dict[str, Any]]] = {}
    for instance in instances(aws):
        found.setdefault(tags_of(instance)["ray-user-node-type"], []).append(instance)
    assert {name: len(some) for name, some in found.items()} == {"cpu": 2, "gpu_train": 1, "gpu_serve": 1}
    for name, some in found.items():
        for instance in some:
            assert (instance.get("InstanceLifecycle") == "spot") is (name != "gpu_serve"), name
            assert instance["IamInstanceProfile"]["Arn"].endswith("/medschool-node")
    listed = provider.non_terminated_nodes({"ray-node-type": "worker"})
    assert len(listed) == 4
    provider.terminate_nodes(listed)
    assert instances(aws) == []


def test_the_guide_to_efa_is_accepted_in_the_place_of_subnets(aws: Any, file: Path) -> None:
    from ray.autoscaler._private import commands
    from ray.autoscaler._private.providers import _get_node_provider

    config = yaml.safe_load(file.read_text())
    node = config["available_node_types"]["gpu_train"]["node_config"]
    told = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    told = told.replace("subnet-" + "0" * 17, node.pop("SubnetIds")[0]).replace("sg-" + "0" * 17, node.pop("SecurityGroupIds")[0])
    node |= yaml.safe_load(told)
    ready = commands._bootstrap_config(config, no_config_cache=True)
    provider = _get_node_provider(ready["provider"], ready["cluster_name"])
    tags = {"ray-node-type": "worker", "ray-node-name": "ray-gpu_train", "ray-user-node-type": "gpu_train"}
    provider.create_node(ready["available_node_types"]["gpu_train"]["node_config"], tags, 1)
    (instance,) = instances(aws)
    assert instance["InstanceType"] == "p4de.24xlarge"  # moto keeps neither the placement group nor the kind of the interfaces
