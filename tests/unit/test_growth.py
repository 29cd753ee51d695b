"""What may come to a cluster: from its file to the head's environment, and from there to whoever asks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from medschool.cluster import growth
from medschool.cluster.growth import NodeType
from medschool.errors import ServiceError

ROOT = Path(__file__).parents[2]


def test_the_shipped_file_says_what_may_come(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    said = subprocess.run(
        [sys.executable, "-m", "medschool.cluster.growth", str(ROOT / "cluster.yaml")], capture_output=True, text=True, check=True
    )
    monkeypatch.setenv(growth.VARIABLE, said.stdout.strip())
    types = {kind.name: kind for kind in growth.may_come()}
    assert list(types) == ["cpu", "gpu_train", "gpu_serve"], "not the head"
    assert types["gpu_train"] == NodeType("gpu_train", shipped["available_node_types"]["gpu_train"]["resources"], 4)
    assert growth.most("CPU") == 8 * 32 + 4 * 96 + 2 * 4 and growth.most("GPU") == 4 * 8 + 2
    assert growth.without_gpu() == 8 * 32, "text stays off nodes with a GPU"


def test_no_type_comes_more_often_than_all_together_may(monkeypatch: pytest.MonkeyPatch) -> None:
    types = {name: {"resources": {"CPU": 1}, "max_workers": most} for name, most in (("head", 0), ("a", 9), ("b", 0))}
    config = {"max_workers": 5, "head_node_type": "head", "available_node_types": types}
    monkeypatch.setenv(growth.VARIABLE, growth.told(config))
    assert growth.may_come() == (NodeType("a", {"CPU": 1}, 5),)


def test_without_an_autoscaler_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(growth.VARIABLE, raising=False)
    assert growth.may_come() == () and growth.most("CPU") == 0


@pytest.mark.parametrize("value", ["{", "[]", json.dumps({"a": {}}), json.dumps({"a": {"resources": 1, "most": 1}})])
def test_a_value_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(growth.VARIABLE, value)
    with pytest.raises(ServiceError, match=growth.VARIABLE):
        growth.may_come()
