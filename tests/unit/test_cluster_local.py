"""The cluster file for own machines: Ray's schema and validator, the twin it is of cluster.yaml, and what a plan makes of it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from typer.testing import CliRunner

from medschool.cli import app
from medschool.cluster.offer import node_types, nodes_for, read_cluster
from medschool.cluster.wiring import QUIET
from medschool.errors import InputError, PlanError
from medschool.forecast import forecast
from medschool.plan import make_plan
from medschool.recipe import load

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster-local.yaml"
TEXT = FILE.read_text(encoding="utf-8")


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(TEXT)
    return loaded


def changed(folder: Path, old: str, new: str) -> Path:
    assert old in TEXT
    path = folder / "changed.yaml"
    path.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    return path


def test_ray_accepts_it_and_keeps_all_machines(config: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    (kind,) = prepared["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(config["provider"]["worker_ips"]) == 3


def test_a_typo_is_answered_with_the_key_and_the_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ssh_usr.*line \d+"):
        read_cluster(changed(tmp_path, "ssh_user:", "ssh_usr:"))


def test_it_is_the_twin_of_the_file_for_aws(config: dict[str, Any]) -> None:
    aws = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    assert config["docker"]["image"] == aws["docker"]["image"] and config["file_mounts"] == aws["file_mounts"]
    own, theirs = (set(each["docker"]["run_options"]) for each in (config, aws))
    assert theirs - own == {"--env=AWS_REGION=us-west-2"} and own - theirs == {"--ulimit=memlock=-1"}
    assert [name for name, value in QUIET.items() if f"--env={name}={value}" not in own] == []
    for kind in ("head", "worker"):
        stop, start = config[f"{kind}_start_ray_commands"]
        assert stop == "ray stop" and "ulimit -n 65536" in start
        before = start.partition("ray start")[0]
        assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/home/ray/secrets/ray_token" in before and "store.env" in before
    head = config["head_start_ray_commands"][1]
    assert "--num-cpus=0" in head and "--num-gpus=0" in head and '"driver":100' in head, "no task runs on the head"
    assert "--dashboard-host=127.0.0.1" in head and "--disable-usage-stats" in head and "0.0.0.0" not in str(config)


def test_no_secret_stands_in_it_and_every_invented_value_is_marked() -> None:
    settings = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]
    assert not [line for line in settings if "SECRET" in line or "ACCESS_KEY" in line]
    invented = [line for line in settings if "192.0.2." in line or "example.org" in line or "your-bucket" in line]
    listed = [line for line in invented if "node_type:" in line]  # the heading of the list has the mark
    assert len(invented) == 8 and len(listed) == 3
    assert [line for line in invented if "# CHANGE" not in line] == listed


def test_a_plan_sees_machines_by_what_they_are() -> None:
    config = read_cluster(FILE)
    found = {each.name: each for each in node_types(config)}
    assert {name: (each.most, each.resources) for name, each in found.items()} == {
        "cpu": (1, {"CPU": 32}),
        "gpu_train": (2, {"CPU": 96, "GPU": 8}),
    }
    assert found["gpu_train"].accelerator == "NVIDIA A100-SXM4-80GB" and found["gpu_train"].accelerator_bytes == 80 * 2**30
    worker = {"CPU": 8.0, "GPU": 1.0}
    assert nodes_for(config, [worker] * 16, {"ray.io/accelerator-type": "A100"}, [{"CPU": 1.0}] * 32) == {"gpu_train": 2}
    assert nodes_for(config, [worker] * 17) is None
    assert nodes_for(config, [worker], {"ray.io/market-type": "spot"}) is None


def test_the_paper_s_recipe_is_held_against_own_machines() -> None:
    config, path = read_cluster(FILE), ROOT / "recipes" / "pmc_llama_7b.yaml"
    with pytest.raises(PlanError, match=r"32 workers .* can never hold them: .*2 x gpu_train"):
        forecast(make_plan(load(path), ""), config, load(path).model.shape)
    smaller = load(path, ["cluster.num_workers=16"])
    (need,) = forecast(make_plan(smaller, ""), config, smaller.model.shape).needs
    assert need.nodes == {"gpu_train": 2} and need.hours and need.usd is None


def test_the_command_line_takes_it() -> None:
    said = CliRunner().invoke(
        app, ["plan", str(ROOT / "recipes" / "pmc_llama_7b.yaml"), "--cluster", str(FILE), "--set", "cluster.num_workers=16"]
    )
    assert said.exit_code == 0 and "2 x gpu_train" in said.output, said.output


def test_machines_that_stand_in_one_list_only_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"192\.0\.2\.13 stands in one of provider\.worker_ips and metadata\.machines only"):
        read_cluster(changed(tmp_path, "192.0.2.12, 192.0.2.13]", "192.0.2.12]"))
    with pytest.raises(InputError, match="two machines of the type gpu_train differ"):
        read_cluster(
            changed(tmp_path, "192.0.2.13: {node_type: gpu_train, CPU: 96", "192.0.2.13: {node_type: gpu_train, CPU: 64")
        )
