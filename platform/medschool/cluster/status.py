"""What runs: services, the latest jobs, the served model, and what a user can do next."""

import os
from pathlib import Path
from typing import Any

import httpx

from medschool.errors import ServiceError

TIMEOUT_S = 5.0
JOBS_SHOWN = 3


def status() -> dict[str, Any]:
    """State of everything that the environment names; parts that do not answer say so instead of failing."""
    return {
        "store": {"uri": os.environ.get("MEDSCHOOL_STORE", "none"), "endpoint": os.environ.get("AWS_ENDPOINT_URL", "default")},
        "mlflow": {
            "url": os.environ.get("MLFLOW_TRACKING_URI", "none"),
            "ready": _answers(f"{os.environ.get('MLFLOW_TRACKING_URI', '')}/health"),
        },
        "ray": {"url": os.environ.get("MEDSCHOOL_RAY_JOBS", "none")} | _jobs(),
        "serve": _serve(),
    }


def serve_url(tls: bool = False) -> str:
    return f"{'https' if tls else 'http'}://127.0.0.1:{os.environ.get('MEDSCHOOL_SERVE_PORT', '8000')}"


def _serve() -> dict[str, Any]:
    """With the scheme that answers; unverified, as a certificate names the outside and not 127.0.0.1, and no secret is sent."""
    for url in (serve_url(), serve_url(tls=True)):
        if _answers(f"{url}/health/live", verify=False):
            return {"url": url, "ready": True}
    return {"url": serve_url(), "ready": False}


def _answers(url: str, verify: bool = True) -> bool:
    try:
        return httpx.get(url, timeout=TIMEOUT_S, verify=verify).status_code == 200
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def _jobs() -> dict[str, Any]:
    from medschool.cluster.submit import answering, client

    try:
        with answering("Ray's job server does not list its jobs", "run `medschool doctor`"):
            jobs = sorted(client().list_jobs(), key=lambda job: -(job.start_time or 0))
    except ServiceError as error:
        return {"ready": False, "problem": error.problem}
    shown = [{"id": job.submission_id, "status": str(job.status.value)} for job in jobs if job.submission_id][:JOBS_SHOWN]
    return {"ready": True, "jobs": shown}


def next_steps(served: bool, tls: bool = False) -> list[str]:
    """Addresses, and a curl line that works when pasted in the folder that `medschool up` was run in.

    served, tls: whether the recipe serves a model, and over HTTPS. curl then does not verify: a certificate names the outside.
    """
    from medschool.cluster import state

    lines = [
        f"MLflow     {os.environ.get('MLFLOW_TRACKING_URI', 'none')}",
        f"Ray        {os.environ.get('MEDSCHOOL_RAY_JOBS', 'none')}",
    ]
    if served:
        key = _shown_key(state.home() / "secrets" / "api_key")
        body = '{"model": "medschool", "messages": [{"role": "user", "content": "What does the liver do?"}], "max_tokens": 60}'
        lines += [
            f"chat       {serve_url(tls)}/v1   (OpenAI-compatible; not for clinical use)",
            f"page       {serve_url(tls)}/     (asks for the key)",
            "",
            "Ask it:",
            f'  curl -s{" -k" if tls else ""} {serve_url(tls)}/v1/chat/completions -H "Authorization: Bearer {key}"'
            f" -H 'Content-Type: application/json' -d '{body}'",
        ]
    return ["", *lines, "", "Stop everything: make down   (data stays in .medschool)"]


def _shown_key(file: Path) -> str:
    """The API key as shell words that do not show it: from its file, or from the variable of a user who set his own."""
    own = os.environ.get("MEDSCHOOL_API_KEY", "")
    if own and not (file.is_file() and file.read_text(encoding="utf-8").strip() == own):
        return "$MEDSCHOOL_API_KEY"
    return f"$(cat {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file})"
