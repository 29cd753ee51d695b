"""What training says it can do: on a CPU, on a GPU that nobody tried, and with libraries missing."""

import dataclasses
from pathlib import Path

import pytest

from medschool.errors import PlanError, RecipeError
from medschool.recipe import load
from medschool.train.capability import FEATURES, Machine, capability, check_capabilities, summary, this_machine, wanted

ROOT = Path(__file__).parents[2]
CPU = Machine(gpu=None, bf16=True, compiler=True, modules=frozenset({"peft"}))
GPU = Machine(gpu="NVIDIA H100", bf16=True, compiler=True, modules=frozenset({"peft", "flash_attn", "liger_kernel"}))


def test_a_cpu_runs_what_the_tests_run_and_refuses_the_rest() -> None:
    answers = {feature: capability(feature, CPU) for feature in FEATURES}
    runs = {feature for feature, found in answers.items() if found.answer == "runs"}
    assert runs == {"sdpa", "eager", "bf16", "compile", "lora"}
    assert all(found.why and found.remedy for feature, found in answers.items() if feature not in runs)
    assert "backward" in answers["flex_attention"].why and answers["flash_attention_2"].remedy == "set cluster.attention: sdpa"


def test_nothing_is_claimed_of_a_gpu() -> None:
    assert {capability(feature, GPU).answer for feature in FEATURES} == {"untested"}
    assert check_capabilities(["sdpa", "bf16"], GPU) == ["sdpa", "bf16"]


@pytest.mark.parametrize(
    ("feature", "lacking", "says"),
    [
        ("flash_attention_2", {"modules": frozenset()}, "pip install flash-attn"),
        ("liger", {"modules": frozenset()}, "pip install liger-kernel"),
        ("lora", {"modules": frozenset()}, "pip install peft"),
        ("bf16", {"bf16": False}, "model.dtype: fp32"),
        ("compile", {"compiler": False}, "install g"),
    ],
)
def test_what_is_lacking_is_named_with_what_to_do(feature: str, lacking: dict[str, object], says: str) -> None:
    with pytest.raises(PlanError, match=feature) as refused:
        check_capabilities([feature], dataclasses.replace(GPU, **lacking))
    assert says in refused.value.remedy and refused.value.where


def test_a_recipe_asks_for_what_its_keys_say() -> None:
    plain = load(ROOT / "recipes" / "quickstart.yaml", ["model.dtype=fp32"])
    assert wanted(plain, plain.pretrain) == ("sdpa",)
    much = ["cluster.attention=flash_attention_2", "cluster.compile=true", "cluster.liger=true", "model.dtype=bf16"]
    recipe = load(ROOT / "recipes" / "quickstart.yaml", [*much, "pretrain.lora={rank: 4, alpha: 8}"])
    assert wanted(recipe, recipe.pretrain) == ("flash_attention_2", "bf16", "compile", "liger", "lora")
    assert recipe.instruct and "lora" not in wanted(recipe, recipe.instruct)


def test_flash_attention_in_fp32_is_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(RecipeError, match="bf16 only"):
        load(ROOT / "recipes" / "quickstart.yaml", ["model.dtype=fp32", "cluster.attention=flash_attention_2"])


def test_the_summary_names_this_machine_and_every_feature() -> None:
    line = summary(this_machine())
    assert all(feature in line for feature in FEATURES)
    assert summary(CPU).startswith("on CPU: runs: sdpa, eager, bf16, compile, lora; does not run: flex_attention (")
    assert summary(GPU) == f"on NVIDIA H100: untested: {', '.join(FEATURES)}"
