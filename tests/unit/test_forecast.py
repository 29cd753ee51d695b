"""A plan against a cluster file: places, memory, hours, price; and what is wrong in a cluster file, with its line."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from medschool.cli import app
from medschool.cluster.offer import node_types, nodes_for, read_cluster
from medschool.cluster.price import PRICE
from medschool.errors import InputError, PlanError
from medschool.forecast import ROOM, forecast, settings_that_fit
from medschool.plan import make_plan
from medschool.recipe import load

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "recipes" / "pmc_llama_13b.yaml"
TEXT = (ROOT / "cluster.yaml").read_text()


@pytest.fixture
def config() -> dict[str, Any]:
    return read_cluster(ROOT / "cluster.yaml")


def foreseen(config: dict[str, Any], *overrides: str, mfu: float = 0.4) -> Any:
    recipe = load(PAPER, list(overrides))
    return forecast(make_plan(recipe, ""), config, recipe.model.shape, mfu)


def test_the_paper_s_training_comes_out_near_the_paper_s_week(config: dict[str, Any]) -> None:
    made = make_plan(load(PAPER), "")
    (course,) = [each for each in made.courses if each.shared_with is None]
    assert (course.steps, round((course.tokens or 0) / 1e9, 1)) == (4070, 26.7)
    assert course.flops == pytest.approx(2.1e21, rel=0.02)
    (need,) = foreseen(config).needs
    assert need.nodes == {"gpu_train": 4} and need.card == "NVIDIA A100-SXM4-80GB (80 GiB)"
    assert need.hours == pytest.approx(6 * 24, rel=0.03)
    assert need.usd == pytest.approx(need.hours * 4 * 27.45)


def test_hours_and_price_are_plain_arithmetic(config: dict[str, Any]) -> None:
    slow, fast = foreseen(config, mfu=0.2).needs[0], foreseen(config, mfu=0.4).needs[0]
    assert slow.hours == pytest.approx(2 * fast.hours) and slow.usd == pytest.approx(2 * fast.usd)
    del config["available_node_types"]["gpu_train"]["labels"][PRICE]
    unpriced = foreseen(config)
    assert unpriced.needs[0].usd is None and unpriced.as_json()["usd"] is None
    assert "price unknown" in "\n".join(unpriced.lines())


def test_what_can_never_be_placed_is_refused_with_what_there_is(config: dict[str, Any]) -> None:
    with pytest.raises(
        PlanError, match=r"33 workers of 8 CPUs, 1 GPUs .* can never hold them: .*4 x gpu_train \(96 CPUs, 8 GPUs\)"
    ):
        foreseen(config, "cluster.num_workers=33", "pretrain.batch_rows=3300")


def test_what_fits_no_card_is_refused_with_settings_that_do(config: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"needs [\d.]+ GiB a worker, NVIDIA A100-SXM4-80GB has 80 GiB") as refused:
        foreseen(config, "cluster.activation_checkpointing=false", "cluster.zero_stage=1")
    words = [pair for pair in refused.value.remedy.removeprefix("set ").split(", ")]
    assert foreseen(config, *words).needs[0].memory_share <= ROOM


def test_the_settings_offered_are_the_first_of_all_that_fit() -> None:
    recipe = load(PAPER)
    plan, shape = make_plan(recipe, ""), recipe.model.shape
    assert shape is not None
    fits = {gib: settings_that_fit(plan, "pretrain", shape, gib * 2**30) for gib in (4, 24, 40, 80, 640)}
    assert fits[4] is None and fits[640] is not None and "offload=[]" in fits[640]
    rows = [int(text.split("micro_batch_tokens=")[1].split(",")[0]) for text in fits.values() if text]
    assert rows == sorted(rows), "a larger card takes no fewer rows at once"


@settings(max_examples=60, deadline=None)
@given(
    workers=st.integers(1, 6), cpus=st.integers(1, 5), gpus=st.integers(0, 2), feed=st.integers(0, 6),
    sizes=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=2),
)  # fmt: skip
def test_a_demand_is_placed_only_where_some_dealing_holds_it(
    workers: int, cpus: int, gpus: int, feed: int, sizes: list[tuple[int, int, int]]
) -> None:
    config = yaml.safe_load(TEXT)
    head = config["available_node_types"]["head"]
    config["available_node_types"] = {"head": head} | {
        f"n{number}": {"resources": {"CPU": size[0], "GPU": size[1]}, "node_config": {}, "min_workers": 0, "max_workers": size[2]}
        for number, size in enumerate(sizes)
    }
    bundles = [{"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}] * workers + [{"CPU": 1.0}] * feed
    found = nodes_for(config, bundles)
    nodes = [size[:2] for size in sizes for _ in range(size[2])]
    capacity = sum(min(size[0] // cpus, size[1] // gpus if gpus else 10**6) for size in nodes)
    if found is None:  # first fit is no proof that nothing fits, but what it says of one worker alone is
        assert capacity < workers or sum(size[0] for size in nodes) < cpus * workers + feed or feed
    else:
        assert capacity >= workers and sum(size[0] for size in nodes) >= cpus * workers + feed
        assert all(count <= sizes[int(name[1:])][2] for name, count in found.items())


def test_every_part_of_the_file_is_read(config: dict[str, Any]) -> None:
    types = {each.name: each for each in node_types(config)}
    assert list(types) == ["cpu", "gpu_train", "gpu_serve"]
    assert types["gpu_train"].accelerator_bytes == 80 * 2**30 and types["cpu"].accelerator is None
    config["metadata"]["machines"]["g6e.xlarge"]["price"] = 3
    with pytest.raises(InputError, match="price is not known") as refused:
        node_types(config)
    assert refused.value.where == "metadata.machines.g6e.xlarge"


@pytest.mark.parametrize(
    ("old", "new", "said", "at"),
    [
        ("max_workers: 14", "max_worker: 14", "max_worker", "max_worker: 14"),
        ("    idle_timeout_s: 900", "    idle_timeout: 900", "idle_timeout", "    idle_timeout: 900"),
        ("head_node_type: head", "head_node_type: heads", "head_node_type", None),
    ],
    ids=["top", "node type", "head"],
)
def test_a_typo_is_answered_with_its_key_and_line(tmp_path: Path, old: str, new: str, said: str, at: str | None) -> None:
    assert TEXT.count(old) == 1
    path = tmp_path / "cluster.yaml"
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(InputError, match=said) as refused:
        read_cluster(path)
    if at is not None:
        line = next(number for number, text in enumerate(path.read_text().splitlines(), 1) if text.startswith(at))
        assert f"(line {line})" in refused.value.remedy


def test_the_command_says_it_and_its_json_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSCHOOL_HOME", str(tmp_path))  # no services of ours, so the plan is made without a store
    words = ["plan", str(PAPER), "--cluster", str(ROOT / "cluster.yaml"), "--mfu", "0.5"]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0 and "4 x gpu_train" in told.output and "at a stated MFU of 50%" in told.output
    found = yaml.safe_load(CliRunner().invoke(app, [*words, "--json"]).output)["cluster"]
    assert found["trainings"][0]["nodes"] == {"gpu_train": 4} and found["mfu_stated"] == 0.5
    assert found["usd"] == pytest.approx(sum(each["usd"] for each in found["trainings"]))


def test_a_price_that_is_no_number_is_refused_with_its_key(config: dict[str, Any]) -> None:
    config["available_node_types"]["cpu"]["labels"][PRICE] = "cheap"
    with pytest.raises(InputError, match="'cheap' is no price") as refused:
        node_types(config)
    assert refused.value.where == f"available_node_types.cpu.labels.{PRICE}"
