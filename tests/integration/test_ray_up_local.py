"""`ray up cluster-local.yaml`: what Ray's launcher does on the head over SSH. ssh and rsync write down what they are given."""

import os
from pathlib import Path

import pytest
import yaml
from remote_shell import given, write_programs

ROOT = Path(__file__).parents[2]


def test_ray_up_sets_up_the_head_of_own_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ray.autoscaler._private import commands
    from ray.autoscaler._private.local import config as local
    from ray.autoscaler._private.local import node_provider

    log = write_programs(tmp_path)
    (tmp_path / ".ssh" / "id_ed25519").write_text("a key")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    for name in ("get_lock_path", "get_state_path"):  # Ray keeps what it has started in its folder of the machine
        for module in (local, node_provider):
            monkeypatch.setattr(module, name, lambda cluster, name=name: str(tmp_path / f"{name}-{cluster}"))
    commands.create_or_update_cluster(str(ROOT / "cluster-local.yaml"), None, None, False, False, yes=True, no_config_cache=True)
    config, calls = yaml.safe_load((ROOT / "cluster-local.yaml").read_text()), given(log)
    assert all(any(config["provider"]["head_ip"] in word for word in words) for words in calls)
    ssh = [words[-1] for words in calls if words[0] == "ssh"]
    run = next(said for said in ssh if "docker run" in said)
    assert config["docker"]["image"] in run and "/home/ray/secrets" in run and "--ulimit=memlock=-1" in run
    start = next(said for said in ssh if "ray start --head" in said)
    assert "--num-cpus=0" in start and "RAY_AUTH_TOKEN_PATH=/home/ray/secrets/ray_token" in start and "store.env" in start
    assert "0" * 64 not in log.read_text().replace(config["docker"]["image"], ""), "no secret is in a command line"
