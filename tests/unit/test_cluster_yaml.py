"""The shipped cluster file against Ray's own schema, validator and autoscaler, offline: nothing here asks AWS."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray._private.label_utils import validate_node_label_syntax
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

from medschool.cluster.offer import nodes_for
from medschool.cluster.price import PRICE, price_of
from medschool.cluster.wiring import QUIET
from medschool.recipe import load

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
SECRET = re.compile(
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"  # an AWS access key id
    r"|-----BEGIN"  # a private key
    r"|(?i:aws_credentials|secret_access_key|session_token|password)"  # the name of one
    r"|_(TOKEN|KEY)=(?!\"\$\()"  # a value written out, where a command should read it
    r"|(?<![0-9A-Za-z/+])(?!0{64})[0-9A-Za-z/+]{40,}(?![0-9A-Za-z/+])"  # 40 characters without a word's end, as secrets are
)


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(TEXT)
    return loaded


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` does with the file before it asks AWS for anything."""
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def ray_starts(config: dict[str, Any]) -> list[str]:
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    return [command for command in commands if "ray start" in command]


def launched(config: dict[str, Any], *bundles: dict[str, float]) -> dict[str, int]:
    """Nodes that Ray's autoscaler starts for these demands, on an empty cluster; it must not call any of them infeasible."""
    found = nodes_for(config, bundles)
    assert found is not None
    return found


def test_valid_as_shipped(config: dict[str, Any]) -> None:
    prepared = checked(config)
    assert prepared["provider"]["type"] == "aws"
    assert list(prepared["available_node_types"]) == ["head", "cpu", "gpu_train", "gpu_serve"]


@pytest.mark.parametrize(
    ("break_it", "error", "named"),
    [
        (lambda config: config.update(max_worker=3), ValidationError, "max_worker"),
        (lambda config: config["docker"].update(images="x"), ValidationError, "images"),
        (lambda config: config["available_node_types"]["cpu"].update(max_worker=3), ValidationError, "max_worker"),
        (lambda config: config["available_node_types"]["cpu"]["resources"].update(CPU="32"), ValidationError, "32"),
        (lambda config: config.update(head_node_type="heads"), ValueError, "head_node_type"),
        (lambda config: config["available_node_types"]["cpu"].update(min_workers=99), ValueError, "max_workers"),
    ],
)
def test_ray_s_validator_refuses_what_is_wrong(
    config: dict[str, Any], break_it: Callable[[dict[str, Any]], None], error: type[Exception], named: str
) -> None:
    break_it(config)
    with pytest.raises(error, match=named):
        checked(config)


def test_no_secret_is_in_the_file() -> None:
    assert SECRET.search(TEXT) is None
    for secret in ("AKIA" + "B" * 16, "aws_" + "secret_access_key: x", "RAY_AUTH_TOKEN=" + "abcd", "wJalr/" + "Kx7+" * 10):
        assert SECRET.search(f"{TEXT}\n# {secret}\n"), secret


def test_every_node_has_a_profile_instead_of_keys(config: dict[str, Any]) -> None:
    for name, node_type in config["available_node_types"].items():
        node = node_type["node_config"]
        assert node["IamInstanceProfile"]["Name"] == ("medschool-head" if name == "head" else "medschool-node")
        assert node["MetadataOptions"]["HttpTokens"] == "required", name
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"]), name


def test_every_ray_start_asks_for_the_token_that_the_nodes_have(config: dict[str, Any]) -> None:
    starts = ray_starts(config)
    assert len(starts) == 2
    for start in starts:
        before, _, _ = start.partition("ray start")
        assert "RAY_AUTH_MODE=token" in before
        path = re.search(r"RAY_AUTH_TOKEN_PATH=(\S+?);", before)
        assert path and str(Path(path[1]).parent) in config["file_mounts"]
        assert f"--env=RAY_AUTH_TOKEN_PATH={path[1]}" in config["docker"]["run_options"]
    assert all(local.startswith("~/") for local in config["file_mounts"].values()), "secrets stay out of the repository"


def test_the_head_does_no_work_knows_what_may_come_and_its_dashboard_is_private(config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"]["CPU"] == 0 and head["resources"]["driver"] > 0 and head["max_workers"] == 0
    start = next(start for start in ray_starts(config) if "--head" in start)
    assert 'MEDSCHOOL_NODE_TYPES="$(python -m medschool.cluster.growth ~/ray_bootstrap_config.yaml)"' in start
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in str(config) and "AssociatePublicIpAddress" not in str(config)
    assert config["provider"]["use_internal_ips"] is True
    assert all(node_type["node_config"]["SecurityGroupIds"] for node_type in config["available_node_types"].values())


def test_nodes_are_as_quiet_as_a_laptop(config: dict[str, Any]) -> None:
    options = config["docker"]["run_options"]
    assert [name for name, value in QUIET.items() if f"--env={name}={value}" not in options] == []
    assert "--disable-usage-stats" in next(start for start in ray_starts(config) if "--head" in start)


def test_a_node_runs_what_is_in_one_pinned_image(config: dict[str, Any]) -> None:
    assert re.search(r":[0-9][\w.]*@sha256:[0-9a-f]{64}$", config["docker"]["image"])
    commands = [command for key in config if key.endswith("_commands") for command in config[key]]
    assert not [command for command in commands if re.search(r"\b(pip|apt|conda|curl|wget)\b", command)]


def test_files_and_shared_memory_suffice_on_every_node(config: dict[str, Any]) -> None:
    assert all("ulimit -n 65536" in start for start in ray_starts(config))
    for name, node_type in config["available_node_types"].items():
        own = config["docker"]["head_run_options"] if name == "head" else node_type["docker"]["worker_run_options"]
        assert any(re.fullmatch(r"--shm-size=\d+g", option) for option in own), name


def test_workers_start_from_none_and_gpus_stay_longest(config: dict[str, Any]) -> None:
    types = AutoscalingConfig(copy.deepcopy(config), skip_content_hash=True).get_node_type_configs()
    assert {name for name, each in types.items() if each.min_worker_nodes == 0} == set(types)
    assert 0 < types["cpu"].idle_timeout_s < types["gpu_train"].idle_timeout_s < types["gpu_serve"].idle_timeout_s


def test_spot_nodes_are_labelled_as_such(config: dict[str, Any]) -> None:
    for name, node_type in config["available_node_types"].items():
        market = node_type["node_config"].get("InstanceMarketOptions", {}).get("MarketType", "on-demand")
        assert node_type["labels"]["ray.io/market-type"] == market == ("spot" if name in ("cpu", "gpu_train") else "on-demand")
        assert ("ray.io/accelerator-type" in node_type["labels"]) == ("GPU" in node_type["resources"])


@pytest.mark.parametrize("name", ["pmc_llama_7b", "pmc_llama_13b"])
def test_the_paper_s_training_gets_training_nodes_and_no_other(config: dict[str, Any], name: str) -> None:
    spec = load(ROOT / "recipes" / f"{name}.yaml").cluster
    workers = [{"CPU": float(spec.cpus_per_worker), "GPU": spec.gpus_per_worker}] * spec.num_workers
    assert launched(config, *workers, *[{"CPU": 1.0}] * spec.data_cpus) == {"gpu_train": 4}
    assert launched(config, workers[0]) == {"gpu_train": 1}


def test_text_gets_cpu_nodes_and_one_gpu_the_serving_node(config: dict[str, Any]) -> None:
    assert launched(config, *[{"CPU": 0.5}] * 128) == {"cpu": 2}
    assert launched(config, {"CPU": 1.0, "GPU": 1.0}) == {"gpu_serve": 1}


def test_every_value_that_is_not_real_is_marked() -> None:
    settings = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]
    invented = [line for line in settings if re.search(r"0{17}|example\.org|your-bucket", line)]
    assert len(invented) == 6
    assert [line for line in invented if "# CHANGE" not in line] == []


def test_every_node_knows_its_price_and_there_is_one_table(config: dict[str, Any]) -> None:
    for name, node_type in config["available_node_types"].items():
        assert price_of(node_type["labels"]) == float(config["metadata"]["usd_per_hour"][name]) > 0
        validate_node_label_syntax(node_type["labels"])
    types = AutoscalingConfig(copy.deepcopy(config), skip_content_hash=True).get_node_type_configs()
    assert {name: each.labels[PRICE] for name, each in types.items()} == config["metadata"]["usd_per_hour"]
    assert not [line for line in TEXT.splitlines() if re.search(r"usd-per-hour: [^*]", line)], "a price that is not in the table"
