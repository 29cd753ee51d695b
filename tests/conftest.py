"""Shared fixtures: one Ray on this machine for all integration tests, and a small store of real-format inputs."""

import logging
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from medschool.cluster.ray_head import SERVE

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
FOLDER = tempfile.mkdtemp(prefix="ms-test-", dir="/tmp")  # short: Ray puts Unix sockets below it
TOKEN = Path(FOLDER, "token")
TOKEN.write_text(secrets.token_hex(32))
TOKEN.chmod(0o600)
os.environ.update(  # before Ray is imported, which reads its authentication mode once
    {
        "DO_NOT_TRACK": "1",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "MEDSCHOOL_CACHE": f"{FOLDER}/cache",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("platform", ".", "tests")),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(TOKEN),
        "RAY_DATA_LOG_LEVEL": "CRITICAL",
        **SERVE,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "1000",  # Ray's own 10 s would be waited out
    }
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--report", type=Path, help="write outcome and seconds of each test to this file, as Markdown")


def pytest_configure(config: pytest.Config) -> None:
    """`make test` draws the same examples on every machine; new ones are drawn where long tests run, and by hand."""
    from hypothesis import settings

    settings.register_profile("repeatable", derandomize=True, deadline=None)  # a busy machine is no failure
    if "not long" in config.option.markexpr:
        settings.load_profile("repeatable")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The report that `make test-long` leaves: the machine, what failed, and every test with its time."""
    if not (path := config.getoption("--report")):
        return
    found = [
        (report.nodeid, outcome, report.duration)
        for outcome in ("passed", "failed", "error", "skipped")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call" or outcome != "passed"
    ]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "deepspeed", "transformers"))
    counts = Counter(outcome for _, outcome, _ in found)
    words = " ".join(map(str, config.invocation_params.args))
    lines = [
        "# Tests in full counts",
        f"`pytest {words}` at commit `{commit}`, {datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {versions}, "
        f"{os.cpu_count()} cores: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}.",
        "| test | outcome | seconds |\n|---|---|---|\n"
        + "\n".join(
            f"| `{name}` | {outcome} | {seconds:.1f} |" for name, outcome, seconds in sorted(found) if "/unit/" not in name
        ),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def pytest_unconfigure() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray of eight logical CPUs of this test session's own, with token authentication."""
    import ray

    ray.init(
        address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING,
        object_store_memory=500_000_000, _temp_dir=f"{FOLDER}/ray",
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def lone_group() -> Iterator[None]:
    """A process group of this process alone, the same for all tests: DeepSpeed keeps to the first one that it has seen."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def lone_store(tmp_path_factory: pytest.TempPathFactory, lone_group: None) -> Iterator[Path]:
    """A store with the tiny model, in a process group of this process alone."""
    from tiny import RECIPE, write_model

    store = tmp_path_factory.mktemp("store")
    folder = store / "raw" / "models" / "tiny"
    folder.mkdir(parents=True)
    write_model(folder)
    (store / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    before = dict(os.environ)
    os.environ.update(LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    yield store
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[str]:
    """A folder for a Ray of a test's own, whose processes all name it; those that are left at the end are killed."""
    import psutil

    folder = tempfile.mkdtemp(prefix="ms-node-", dir="/tmp")
    yield folder
    for process in psutil.process_iter(["cmdline"]):
        if any(folder in word for word in process.info["cmdline"] or []):
            process.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local folder as store, with the raw inputs of tests/tiny.py and its recipe tiny.yaml."""
    from tiny import write_raw

    store = tmp_path_factory.mktemp("store")
    write_raw(store)
    return store
