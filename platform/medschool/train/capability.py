"""What training can do on this machine: runs here, does not run here and why, or never tried on such hardware.

Nothing is concluded from a library's promise. "runs" stands for what the test suite runs on this kind of hardware; what no GPU
has run is "untested", and whoever uses it is told so. What cannot work is refused before any weights are loaded.
"""

import importlib.util
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from medschool.errors import PlanError
from medschool.recipe import Recipe
from medschool.recipe.training import Training

ATTENTION = ("sdpa", "eager", "flex_attention", "flash_attention_2")
FEATURES = (*ATTENTION, "bf16", "compile", "liger", "lora")
PACKAGES = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "liger": ("liger_kernel", "liger-kernel"),
    "lora": ("peft", "peft"),
}
"""Module and package that a feature rests on and that is not one of medschool's own dependencies."""
KEYS = {"bf16": "model.dtype", "compile": "cluster.compile", "liger": "cluster.liger", "lora": "lora"}
"""The recipe's key of each feature; the others are values of cluster.attention."""


@dataclass(frozen=True)
class Machine:
    """What decides the answers."""

    gpu: str | None
    """Name of the GPU that this process sees; None on a CPU."""
    bf16: bool
    """Whether the hardware computes in bf16."""
    compiler: bool
    """Whether there is a C++ compiler, which torch.compile calls."""
    modules: frozenset[str]
    """Of the modules in PACKAGES, those that are installed."""


@dataclass(frozen=True)
class Capability:
    """One answer."""

    feature: str
    answer: Literal["runs", "does not run", "untested"]
    why: str = ""
    """Why it does not run; empty else."""
    remedy: str = ""
    """What to set or install then."""


def this_machine() -> Machine:
    """What this process sees; imports torch, which takes seconds."""
    import torch

    gpu = torch.cuda.is_available()
    return Machine(
        gpu=torch.cuda.get_device_name() if gpu else None,
        bf16=not gpu or torch.cuda.is_bf16_supported(including_emulation=False),
        compiler=any(shutil.which(name) for name in ("g++", "clang++", "c++")),
        modules=frozenset(module for module, _ in PACKAGES.values() if importlib.util.find_spec(module)),
    )


def capability(feature: str, machine: Machine) -> Capability:
    """The answer for one of FEATURES."""
    key = KEYS.get(feature, "cluster.attention")
    without = {"bf16": "set model.dtype: fp32", "cluster.attention": "set cluster.attention: sdpa"}
    remedy = without.get(feature) or without.get(key) or f"leave out {key}"
    if machine.gpu is None and feature in ("flash_attention_2", "liger"):
        return Capability(feature, "does not run", "its kernels are for GPUs, and this worker sees none", remedy)
    if machine.gpu is None and feature == "flex_attention":
        return Capability(feature, "does not run", "torch has no backward pass of it for CPUs", remedy)
    module, package = PACKAGES.get(feature, ("", ""))
    if module and module not in machine.modules:
        return Capability(feature, "does not run", f"{package} is not installed", f"pip install {package}, or {remedy}")
    if feature == "bf16" and not machine.bf16:
        return Capability(feature, "does not run", f"{machine.gpu} does not compute in bf16", remedy)
    if feature in ("compile", "flex_attention") and not machine.compiler:
        return Capability(feature, "does not run", "it needs a C++ compiler, and there is none", f"install g++, or {remedy}")
    return Capability(feature, "untested" if machine.gpu else "runs")


def wanted(recipe: Recipe, spec: Training) -> tuple[str, ...]:
    """The features that a phase of a recipe asks for."""
    asked = {
        recipe.cluster.attention: True,
        "bf16": recipe.model.dtype == "bf16",
        "compile": recipe.cluster.compile,
        "liger": recipe.cluster.liger,
        "lora": spec.lora is not None,
    }
    return tuple(feature for feature in FEATURES if asked.get(feature))


def check_capabilities(features: Iterable[str], machine: Machine) -> list[str]:
    """Those of the features that nobody has tried on such hardware. Raises PlanError for the first one that cannot run."""
    answers = [capability(feature, machine) for feature in features]
    for found in answers:
        if found.answer == "does not run":
            key = KEYS.get(found.feature, "cluster.attention")
            raise PlanError(f"{found.feature} does not run here: {found.why}", found.remedy, key)
    return [found.feature for found in answers if found.answer == "untested"]


def untried(recipe: Recipe, spec: Training) -> list[str]:
    """What to say to who trains: the features in use that nobody has tried on the hardware of this process, one line or none."""
    machine = this_machine()
    features = check_capabilities(wanted(recipe, spec), machine)
    return [f"untested on {machine.gpu}: {', '.join(features)}"] if features else []


def summary(machine: Machine) -> str:
    """All answers in one line."""
    answers = [capability(feature, machine) for feature in FEATURES]
    parts = []
    for answer in ("runs", "untested", "does not run"):
        if some := [found for found in answers if found.answer == answer]:
            parts.append(f"{answer}: " + ", ".join(f"{found.feature}{f' ({found.why})' if found.why else ''}" for found in some))
    return f"on {machine.gpu or 'CPU'}: " + "; ".join(parts)
