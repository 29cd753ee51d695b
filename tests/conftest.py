"""Shared fixtures: one Ray on this machine for all integration tests, and a small store of real-format inputs."""

import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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
        "RAY_USAGE_STATS_ENABLED": "0",
    }
)


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
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local folder as store, with the raw inputs of tests/tiny.py and its recipe tiny.yaml."""
    from tiny import write_raw

    store = tmp_path_factory.mktemp("store")
    write_raw(store)
    return store
