"""A Ray cluster of one node: head, dashboard and jobs API, with as many *logical* CPUs as the run asks for.

    listen     everything on loopback. Ray turns `--node-ip-address 127.0.0.1` back into the address of the network card and then
               listens on all of them, unless RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 (its switch for laptops), here and in clients
    token      RAY_AUTH_MODE=token with a token of our own: jobs and drivers without it are refused
    folder     Ray opens its folder to all users (0777), so it sits inside one that is closed (0700)
    settings   what workers need (store, MLflow, keys) is in the head's environment: never in a job's runtime_env, which the
               dashboard shows
    resource   `driver`: 100, so that job drivers can be placed without taking a CPU

Logical CPUs only count slots: eight of them on two cores let eight small actors live side by side, not run eight times as fast.
`ray start` ends once the node runs; the processes that must live are `gcs_server` and `raylet`.

Price: about 1.5 GiB of memory before the first job, six seconds to start.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import psutil

from medschool.cluster.mlflow_server import get
from medschool.cluster.object_store import executable
from medschool.cluster.state import Service, Services, secret
from medschool.errors import ServiceError

OBJECT_STORE_BYTES = 2 * 10**9
DRIVER_SLOTS = 100
JOB_STOP_WAIT_S = 110
"""Between the two signals of `ray job stop`, SIGTERM and SIGKILL; Ray's own 3 s are too short for a training to save."""

SERVE = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "medschool.serve.proxy:proxy_middlewares",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # a dead proxy is replaced after three checks
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",  # not as calls of an actor (bench/serve_latency.py compares them)
}
"""What Ray Serve needs in the environment of every node; cluster.yaml and cluster-local.yaml have it too."""


def gpu_present() -> bool:
    """Whether this machine has a GPU that DeepSpeed can use: the device files of the NVIDIA or AMD driver."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()


def _variables(services: Services) -> dict[str, str]:
    secret(services.home, "ray_token")
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(services.home / "secrets" / "ray_token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_ADDRESS": services.ray_address,
        "RAY_API_SERVER_ADDRESS": services.ray_jobs_url,
        "MEDSCHOOL_RAY_JOBS": services.ray_jobs_url,
    }


def _settings(services: Services) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_WAIT_S),
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        **SERVE,
        "RAY_num_workers_soft_limit": "2",
        "RAY_worker_maximum_startup_concurrency": str(services.num_cpus),
        "AUTOSCALER_METRIC_PORT": str(services.ports["ray_autoscaler_metrics"]),
        "DASHBOARD_METRIC_PORT": str(services.ports["ray_dashboard_metrics"]),
    }


def _command(services: Services) -> list[str]:
    folder = _closed_folder(services.ray_folder)
    _forget_old_sessions(folder)
    _link_logs(services.home / "logs" / "ray", folder / "session_latest" / "logs")
    flags = {
        "node-ip-address": "127.0.0.1",
        "port": services.ports["ray_gcs"],
        "dashboard-host": "127.0.0.1",
        "dashboard-port": services.ports["ray"],
        "dashboard-agent-listen-port": services.ports["ray_agent"],
        "ray-client-server-port": services.ports["ray_client"],
        "min-worker-port": 0,
        "max-worker-port": 0,
        "num-cpus": services.num_cpus,
        "resources": json.dumps({"driver": DRIVER_SLOTS}),
        "object-store-memory": min(OBJECT_STORE_BYTES, psutil.virtual_memory().total // 5),
        "temp-dir": folder,
        "log-style": "record",
        "log-color": "false",
    }
    options = [f"--{name}={value}" for name, value in flags.items()]
    return [executable("ray"), "start", "--head", "--disable-usage-stats", "--include-dashboard=true", *options]


def _closed_folder(outer: Path) -> Path:
    """The folder for Ray inside `outer`, which only this user may enter. Raises ServiceError when somebody else owns it."""
    outer.mkdir(exist_ok=True, mode=0o700)
    if outer.is_symlink() or outer.stat().st_uid != os.getuid():
        raise ServiceError(f"{outer} belongs to another user", "set MEDSCHOOL_HOME to another folder", str(outer))
    outer.chmod(0o700)
    inner = outer / "r"
    inner.mkdir(exist_ok=True)
    return inner


def _forget_old_sessions(folder: Path) -> None:
    """Keep the last session for its logs; each one before it is some megabytes of nobody's."""
    latest = (folder / "session_latest").resolve()
    for session in folder.glob("session_2*"):
        if session.resolve() != latest:
            shutil.rmtree(session, ignore_errors=True)


def _link_logs(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def token(variables: Mapping[str, str]) -> str:
    """The token of a client with `variables`, '' when it has none."""
    path = variables.get("RAY_AUTH_TOKEN_PATH", "")
    if variables.get("RAY_AUTH_TOKEN") or not path:
        return variables.get("RAY_AUTH_TOKEN", "")
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def ask(variables: Mapping[str, str], path: str) -> tuple[int, str]:
    """(status, body) of a GET on the jobs API with the client's token; (0, reason) when it does not answer."""
    own = token(variables)
    return get(f"{variables['MEDSCHOOL_RAY_JOBS'].rstrip('/')}{path}", {"Authorization": f"Bearer {own}"} if own else {})


def _problem(variables: Mapping[str, str]) -> str:
    status, body = ask(variables, "/api/jobs/")
    if status in {401, 403}:
        return f"{variables['MEDSCHOOL_RAY_JOBS']} refuses this token"
    return "" if status == 200 else body if status == 0 else f"the jobs API answers {status}"


RAY = Service(
    name="ray",
    title="Ray",
    ports=("ray", "ray_gcs", "ray_agent", "ray_client", "ray_autoscaler_metrics", "ray_dashboard_metrics"),
    elsewhere=("MEDSCHOOL_RAY_JOBS",),
    variables=_variables,
    command=_command,
    settings=_settings,
    finish=lambda services: None,
    problem=_problem,
    needs=("store", "mlflow", "ray"),
    core=("gcs_server", "raylet"),
    ready_s=120,
    grace_s=3,
)
