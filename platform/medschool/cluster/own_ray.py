"""A Ray of one command's own, on this machine, gone when the command ends: no services, no ports to remember.

    own_ray(num_cpus=4) --> token and folder below the temporary folder --> ray.init(address="local") --> ... --> all removed

It listens on loopback only and wants a token, as the head of `medschool up` does. Price: some six seconds, 1 GiB of memory.
"""

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medschool.cluster.ray_head import gpu_present
from medschool.cluster.wiring import QUIET
from medschool.errors import ServiceError

OBJECT_STORE_BYTES = 300_000_000


@contextmanager
def own_ray(num_cpus: int) -> Iterator[Path]:
    """Connected to a new Ray with so many logical CPUs; the folder that is removed at the end, for whatever else must go.

    Raises ServiceError where this process has a Ray already.
    """
    with own_folder() as folder:
        import ray

        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder / "r"),
            )
        except Exception as error:  # Ray raises plain Exception where its processes do not come up in time
            raise not_started(error) from error
        end_at_sigterm()
        quiet()
        try:
            yield folder
        finally:
            ray.shutdown()


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder of a Ray's own, removed at the end, with the variables set that this process and all that Ray starts need.

    Raises ServiceError where this process has a Ray already.
    """
    folder = Path(tempfile.mkdtemp(prefix="ms-own-"))  # a short name: Ray puts Unix sockets below it
    before = signal.getsignal(signal.SIGTERM)
    try:
        os.environ.update(_variables(folder))
        os.environ.pop("RAY_ADDRESS", None)
        import ray

        if ray.is_initialized():
            raise ServiceError("this process is connected to a Ray already", "run the command in a process of its own")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


def not_started(error: Exception) -> ServiceError:
    """The error for a Ray whose processes did not come up."""
    return ServiceError(f"Ray did not start ({error})", "try again when this machine is less busy")


def end_at_sigterm() -> None:
    """From now on, after Ray has set its own: cleaned up as after Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def quiet() -> None:
    """Keep the libraries' own progress out of this process's output."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _variables(folder: Path) -> dict[str, str]:
    """For this process and all that Ray starts; they must be set before Ray is imported, which reads them once."""
    if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") == "token":
        return {}
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    source = str(Path(__file__).parents[2])
    return {
        **{name: os.environ.get(name, value) for name, value in QUIET.items()},
        **({} if gpu_present() else {"DS_ACCELERATOR": "cpu"}),
        "OMP_NUM_THREADS": "1",
        "MEDSCHOOL_CACHE": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")])),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_DATA_LOG_LEVEL": "CRITICAL",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
