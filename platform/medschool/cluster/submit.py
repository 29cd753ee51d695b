"""One recipe as one Ray job: what `ray job submit` does, with a readable id, metadata, followed logs and its true exit code.

The working directory travels with the job, so the cluster runs the code that the user has in front of him. No secret goes into
the job's metadata or runtime environment: workers take credentials from the environment of their node.
"""

import asyncio
import getpass
import os
import re
import shlex
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from medschool.cluster.ray_head import JOB_STOP_WAIT_S
from medschool.errors import MedschoolError, ServiceError

EXCLUDES = [
    ".git/",
    ".venv/",
    ".medschool/",
    "tests/",
    "bench/",
    "docs/",
    "**/__pycache__/",
    ".mypy_cache/",
    ".ruff_cache/",
    ".pytest_cache/",
    "*.egg-info/",
]
STOPPED_EXIT_CODE = 130
BUSY = re.compile(r"status code 50[234]\b")
TAKEN_WITHIN_S = 30.0
REMARK = re.compile(
    r"\d{4}-\d\d-\d\d [\d:,]+\s+INFO |INFO \d{4}-\d\d-\d\d |\[\d{4}-\d\d-\d\d [\d:,]+ [IWE] \d+ \d+\] "
    r"|\x1b\[33m\(raylet\)\x1b\[0m WARNING: \d+ PYTHON"
)
"""What Ray says to itself in a job's log: Python lines of level INFO, lines of its C++ core. `ray job logs` shows them."""


def submission_id(recipe_name: str, now: datetime) -> str:
    """`quickstart-20261122-163000-ab12`: readable, sortable, unique."""
    return f"{recipe_name}-{now:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"


def submit(root: Path, job: str, name: str, arguments: list[str], metadata: dict[str, str], say: Callable[[str], None]) -> str:
    """Submit `python -m jobs.<job> <arguments>` with the tree at `root`; the submission id. ServiceError when Ray is away."""
    identity = submission_id(name, datetime.now())
    env = {
        "PYTHONPATH": "platform",
        "PYTHONUNBUFFERED": "1",
        "RAY_DATA_LOG_LEVEL": "CRITICAL",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MEDSCHOOL_GIT_SHA": git_sha(root),
        "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_WAIT_S),
    }
    jobs = client()
    with answering(
        "Ray did not take the job", f"run `medschool doctor`; keep large files out of {root}: it travels with the job"
    ):
        try:
            jobs.submit_job(
                entrypoint=shlex.join(["python", "-m", f"jobs.{job}", *arguments]),
                submission_id=identity,
                metadata={"user": getpass.getuser(), "git_sha": env["MEDSCHOOL_GIT_SHA"], **metadata},
                runtime_env={"working_dir": str(root), "excludes": EXCLUDES, "env_vars": env},
            )
        except RuntimeError as error:
            if not BUSY.search(str(error)) or not taken(jobs, identity):
                raise
    say(f"submitted {identity}")
    return identity


def taken(jobs: Any, identity: str) -> bool:
    """Whether Ray knows this job within TAKEN_WITHIN_S: a server too busy to answer may have taken it, or be about to."""
    deadline = time.monotonic() + TAKEN_WITHIN_S
    while time.monotonic() < deadline:
        try:
            jobs.get_job_status(identity)
            return True
        except RuntimeError:  # not known yet (404), or still too busy
            time.sleep(1.0)
    return False


def follow(identity: str, say: Callable[[str], None]) -> int:
    """Print the job's log until it ends; its exit code. Ctrl-C stops the job; what it finished is kept.

    Raises ServiceError when the connection to Ray is lost: the job runs on.
    """
    jobs = client()
    with answering("lost the connection to Ray; the job runs on", f"follow it with: ray job logs -f {identity}"):
        try:
            asyncio.run(_tail(jobs, identity, say))
            while not (info := jobs.get_job_info(identity)).status.is_terminal():
                time.sleep(0.2)
        except KeyboardInterrupt:
            say(f"stopping {identity}; finished stages are kept and the next submit goes on from there")
            jobs.stop_job(identity)
            deadline = time.monotonic() + JOB_STOP_WAIT_S + 10
            while not jobs.get_job_info(identity).status.is_terminal() and time.monotonic() < deadline:
                time.sleep(0.2)
            return STOPPED_EXIT_CODE
    if str(info.status) == "SUCCEEDED":
        return 0
    code = info.driver_exit_code
    if code is None:
        say(f"error: the job ended as {info.status}: {info.message}\nfix: run `medschool doctor`; Ray's dashboard has the log")
    return code if code else 1


async def _tail(jobs: Any, identity: str, say: Callable[[str], None]) -> None:
    async for lines in jobs.tail_job_logs(identity):
        for line in lines.removesuffix("\n").split("\n"):
            if not REMARK.match(line):
                say(line)


@contextmanager
def answering(problem: str, remedy: str) -> Iterator[None]:
    """Turn what Ray's job client raises (RuntimeError, ValueError, errors of requests and aiohttp) into a ServiceError."""
    try:
        yield
    except MedschoolError:
        raise
    except Exception as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[-1]  # of a server's traceback, what it ends with
        raise ServiceError(f"{problem} ({cause})", remedy, os.environ.get("MEDSCHOOL_RAY_JOBS", "")) from error


def client() -> Any:
    """Ray's job client. Raises ServiceError when the cluster does not answer or refuses the token."""
    from ray.job_submission import JobSubmissionClient

    address = os.environ.get("MEDSCHOOL_RAY_JOBS", "")
    if not address:
        raise ServiceError(
            "no Ray cluster is known", "run `medschool up`, or set MEDSCHOOL_RAY_JOBS to http://head:8265 of your cluster"
        )
    try:
        return JobSubmissionClient(address)
    except MedschoolError:
        raise
    except Exception as error:
        raise ServiceError(
            f"Ray's job server does not answer ({error})", "run `medschool doctor`; start it with `medschool up`", address
        ) from error


def git_sha(root: Path) -> str:
    """The commit of the tree, with `-dirty` behind it when files differ; `unknown` outside git."""
    result = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty", "--exclude", "*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or "unknown"
