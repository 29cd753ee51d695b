"""What runs: services, the latest jobs, the served model, and what a user can do next.

Of the latest job also how far it is (medschool.cluster.progress), the goodput of its trainings as MLflow has it, and what the
nodes of the cluster have cost since it began (medschool.cluster.bill): so far, and by the end of its trainings if nodes and speed
stay as they are. It counts every node that was there, whoever used it. A part that does not answer says so, or is left out.
"""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from medschool import track
from medschool.ablate.cost import total
from medschool.cluster.bill import Node, bill, nodes_at
from medschool.cluster.progress import progress
from medschool.errors import MedschoolError, ServiceError

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
        **_prometheus(),
        **_latest(),
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


def _prometheus() -> dict[str, Any]:
    """The Prometheus of this home, where `up --metrics` started one."""
    from medschool.cluster import state
    from medschool.cluster.prometheus import PROMETHEUS

    services = state.load(state.home())
    if PROMETHEUS.name not in services.sessions:
        return {}
    url = PROMETHEUS.variables(services)["MEDSCHOOL_PROMETHEUS"]
    return {"prometheus": {"url": url, "ready": _answers(f"{url}/-/ready")}}


def _latest() -> dict[str, Any]:
    """`job`, `nodes` and `spend` of the latest job; empty where there is none, or Ray does not answer."""
    from medschool.cluster.submit import answering, client

    with suppress(ServiceError), answering("Ray's job server does not answer", "run `medschool doctor`"):
        jobs = client()
        known = [job for job in jobs.list_jobs() if job.submission_id]
        if known:
            job = max(known, key=lambda job: job.start_time or 0)
            return of_job(job, jobs.get_job_logs(job.submission_id) or "", _nodes())
    return {}


def of_job(job: Any, log: str, nodes: Sequence[Node]) -> dict[str, Any]:
    """What is said of one job (ray.job_submission.JobDetails), from its log and the nodes of its cluster."""
    began_s = (job.start_time or 0) / 1000 or time.time()
    ended_s = job.end_time / 1000 if job.end_time else time.time()
    metadata = job.metadata or {}
    far, runs = progress(log, metadata.get("stages", "")), not job.end_time
    goodputs = _goodputs(metadata.get("mlflow_experiment", "")) if runs and far.trainings else {}
    said: dict[str, Any] = {"id": job.submission_id, "status": str(job.status.value), "seconds": round(ended_s - began_s, 1)}
    if far.total:
        said |= {
            "stages": {
                "total": far.total,
                "done": far.done,
                "running": far.running,
                "to_do": far.to_do,
                "failed": far.failed,
            },
            "trials": dict(far.trials),
            "trainings": {
                name: asdict(shown) | {"goodput": goodputs.get(name, shown.goodput)} for name, shown in far.trainings.items()
            },
            "tokens_per_s": far.tokens_per_s if runs else 0.0,
            "left_s": far.left_s if runs else 0.0,
        }
    paid = bill(nodes, began_s, ended_s)
    return {"job": said, "nodes": paid, "spend": spend(paid, said.get("left_s"))}


def spend(paid: Sequence[Mapping[str, Any]], left_s: float | None) -> dict[str, float | None]:
    """USD `so_far`, `an_hour` of the nodes that are there, `projected` after `left_s` seconds of them; None where not known."""
    so_far, an_hour = (total([each[key] for each in paid]) for key in ("usd", "usd_per_hour"))
    to_come = None if an_hour is None or left_s is None else an_hour * left_s / 3600
    return {"so_far": so_far, "an_hour": an_hour, "projected": total([so_far, to_come])}


def _nodes() -> list[Node]:
    with suppress(MedschoolError):
        return nodes_at(os.environ["MEDSCHOOL_RAY_JOBS"])
    return []


def _goodputs(experiment: str) -> dict[str, float]:
    """Stage -> goodput of the trainings that run, as MLflow has it; empty when it does not answer."""
    with suppress(Exception):
        client = track.mlflow_client()
        found = client.get_experiment_by_name(experiment)
        runs = client.search_runs([found.experiment_id], "attributes.status = 'RUNNING'")
        return {
            f"{key.removesuffix('/goodput')}/{run.info.run_name}": value
            for run in runs
            for key, value in run.data.metrics.items()
            if key.endswith("/goodput")
        }
    return {}


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
