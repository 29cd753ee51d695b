"""MLflow: runs, metrics and the model registry in SQLite, artifacts in the store, which the server reads and writes itself.

It has no login: whoever has an account on this machine can use it. One worker, since SQLite has one writer. Its job runner
(evaluation and scoring on the server) is off, and it refuses to load pickled models.

Price: 0.5 GiB of memory (two processes), five seconds to start.
"""

from collections.abc import Mapping

import httpx

from medschool.cluster.object_store import executable
from medschool.cluster.state import BUCKET, Service, Services


def _command(services: Services) -> list[str]:
    folder = services.home / "mlflow"
    folder.mkdir(exist_ok=True, mode=0o700)
    destination = f"s3://{BUCKET}/mlflow"
    return [
        *(executable("mlflow"), "server", "--host", "127.0.0.1", "--port", str(services.ports["mlflow"]), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", destination),
    ]


def get(url: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
    """(status, body) of a GET that gives up after 3 seconds and uses no proxy; (0, reason) when nobody answers."""
    try:
        answer = httpx.get(url, headers=dict(headers or {}), timeout=3, trust_env=False)
        return answer.status_code, answer.text
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return 0, f"{url} does not answer ({type(error).__name__})"


def _problem(variables: Mapping[str, str]) -> str:
    uri = variables["MLFLOW_TRACKING_URI"]
    if not uri.startswith("http"):
        return ""
    status, body = get(f"{uri.rstrip('/')}/health")
    return "" if status == 200 else body if status == 0 else f"{uri} answers {status}"


MLFLOW = Service(
    name="mlflow",
    title="MLflow",
    ports=("mlflow",),
    elsewhere=("MLFLOW_TRACKING_URI",),
    variables=lambda services: {"MLFLOW_TRACKING_URI": services.mlflow_url},
    command=_command,
    settings=lambda services: {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    finish=lambda services: None,
    problem=_problem,
    needs=("store",),
    ready_s=120,
)
