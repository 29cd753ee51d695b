"""Why a job waits, or why it died: what Ray knows of it, said in one place with what to do.

    waiting   which demand has no place, which nodes there are and may come, which launches failed: what `ray status` and the
              list of placement groups say, read over the address of the job server
    dead      the cause, from the words of its log: the error that we or a library printed, with the line that gives it away

A cause is found by the words of the libraries (torch, NCCL, gloo, botocore, the kernel's ENOSPC, Ray's memory monitor). The list
is in the order in which causes hide each other: a full disk makes an upload fail, a preempted node breaks a collective. What says
nothing that is on the list is called a fault of the code, with the last line of its traceback.
"""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from medschool.errors import InputError, ServiceError

TAIL_LINES = 400
LOG_LINES = 4000
"""Of the autoscaler: it writes two a round, every few seconds."""
TOLD_LINES = 6
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Cause:
    """A way to die, the words that give it away, and what to do."""

    name: str
    words: re.Pattern[str]
    remedy: str


CAUSES = (
    Cause(
        "the disk is full",
        re.compile(r"No space left on device|Errno 28\b|OutOfDiskError", re.IGNORECASE),
        "free space on the node that the line names, or give its type a larger disk in the cluster file",
    ),
    Cause(
        "memory of the GPU",
        re.compile(r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED"),
        "`medschool plan RECIPE --cluster FILE` names settings that fit; cluster.halve_on_oom lowers the micro-batch by itself",
    ),
    Cause(
        "memory of the host",
        re.compile(r"running low on memory|out of memory: |can't allocate memory|Cannot allocate memory|\bMemoryError\b"),
        "ask for fewer workers a node, a larger node, or cluster.halve_on_oom; look at what else takes memory there",
    ),
    Cause(
        "the node was taken away",
        re.compile(r"preempted node|AUTOSCALER_DRAIN_PREEMPTED|spot interruption notice|NodeDiedError"),
        "submit again: it goes on from the last checkpoint; cluster.max_preemptions says how many it may take",
    ),
    Cause(
        "the object store",
        re.compile(r"StorageError|SlowDown|EndpointConnectionError|NoSuchBucket|InvalidAccessKeyId|the store .*(answer|refuse)"),
        "run `medschool doctor`; nothing that was finished is lost, submit again when the store answers",
    ),
    Cause(
        "communication between workers",
        re.compile(r"nccl(System|UnhandledCuda|Remote)Error|DistBackendError|NCCL error|gloo/transport|ProcessGroup.*[Tt]imeout"),
        "the first worker to end is the cause, look for it above; then NCCL_SOCKET_IFNAME, security group, EFA",
    ),
    Cause(
        "a process was killed from outside",
        re.compile(r"Worker unexpectedly exits with a connection error"),
        "most often by the kernel for want of memory, see `dmesg` on its node: ask for fewer workers a node, or a larger one",
    ),
)  # fmt: skip
ERROR = re.compile(r"^error: |^\w[\w.]*(Error|Exception|Interrupt|Exit)\b(:|$)")
REFUSED = re.compile(r"Failed to launch \d+ nodes of type (\S+): (.*)")
"""The autoscaler's log has what the report leaves out: why."""
PLACE_REMEDY = (
    "wait for what is coming; else lower cluster.num_workers or cpus_per_worker, or raise max_workers in the cluster file"
)
TURN_REMEDY = "wait for what is before it, stop one of those (`ray job stop`), or add nodes: there is no room for both"
REFUSED_REMEDY = "raise the quota, or name another region or machine in the cluster file; until then Ray tries again and again"


@dataclass(frozen=True)
class Finding:
    """What there is to say of one job."""

    job: str
    state: str
    """As Ray calls it: PENDING, RUNNING, SUCCEEDED, STOPPED, FAILED."""
    cause: str | None
    """None where nothing is wrong."""
    told: tuple[str, ...]
    """Lines that show it."""
    remedy: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        head = f"{self.job}: {self.state}" + (f", {self.cause}" if self.cause else "")
        return [head, *(f"    {line}" for line in self.told), *([f"fix: {self.remedy}"] if self.remedy else [])]


def cause_of_death(log: str) -> tuple[Cause | None, tuple[str, ...]]:
    """The cause that the end of a log gives away, and lines that show it; no cause for a fault of the code."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()][-TAIL_LINES:]
    for cause in CAUSES:
        found = [line for line in lines if cause.words.search(line)]
        if found:
            return cause, tuple(dict.fromkeys([found[0], *_errors(lines)]))[:TOLD_LINES]
    return None, _errors(lines) or tuple(lines[-TOLD_LINES:])


def _errors(lines: Sequence[str]) -> tuple[str, ...]:
    """Our own `error:` and `fix:` lines where there are any, else the last line of the last traceback."""
    own = [line for line in lines if line.startswith(("error: ", "fix: "))]
    return tuple(own[-2:]) if own else tuple([line for line in lines if ERROR.match(line)][-1:])


def why(job: str | None) -> Finding:
    """Look at one job, the latest when none is named.

    Raises ServiceError when Ray does not answer, InputError for an unknown job.
    """
    from medschool.cluster.submit import answering, client

    jobs = client()
    with answering("Ray's job server does not answer", "run `medschool doctor`"):
        known = sorted((each for each in jobs.list_jobs() if each.submission_id), key=lambda each: each.start_time or 0)
        found = next((each for each in reversed(known) if job in (None, each.submission_id)), None)
        if found is None:
            listed = ", ".join(each.submission_id for each in known[-3:]) or "none"
            raise InputError(f"Ray knows no job {job or ''}".rstrip(), f"name one of the latest: {listed}")
        log = jobs.get_job_logs(found.submission_id)
    state = str(found.status.value)
    if state == "SUCCEEDED":
        return Finding(found.submission_id, state, None, (), "")
    if state in ("PENDING", "RUNNING"):
        return in_line(found.submission_id, state, log) or waiting(found.submission_id, state, waits())
    if state == "STOPPED":
        return Finding(found.submission_id, state, "somebody stopped it", (), "submit again: it goes on from what is finished")
    cause, told = cause_of_death(log or found.message or "")
    if cause:
        return Finding(found.submission_id, state, cause.name, told, cause.remedy)
    own = any(line.startswith("fix: ") for line in told)
    remedy = "" if own else f"read its log: ray job logs {found.submission_id}"
    return Finding(found.submission_id, state, None if own else "a fault of the code", told, remedy)


@dataclass(frozen=True)
class Waits:
    """What a cluster says of demands that it has not met."""

    groups: tuple[str, ...]
    """Placement groups without a place: their bundles, and their state."""
    report: str
    """What `ray status` prints: nodes, pending nodes, failed launches, demands."""
    refusals: tuple[str, ...] = ()
    """Node types that the cloud does not give, and its words."""


def waits() -> Waits:
    """Ask the head. Raises ServiceError when it does not answer."""
    groups = [
        f"{each['state'].lower()}: {_bundles(each.get('bundles') or [])}"
        for each in _asked("/api/v0/placement_groups", detail="1")["result"]["result"]
        if each["state"] in ("PENDING", "RESCHEDULING")
    ]
    report = str(_asked("/api/cluster_status", format="1").get("clusterStatus", ""))
    return Waits(tuple(groups), report, refused(_autoscaler_log()) if "LaunchFailed" in report else ())


def refused(log: str) -> tuple[str, ...]:
    """The last words of the cloud about each node type that it did not give, from the autoscaler's log."""
    return tuple(f"{kind}: {words.strip()}" for kind, words in dict(REFUSED.findall(log)).items())


def waiting(job: str, state: str, found: Waits) -> Finding:
    """What is said of a job that is not over: nothing where every demand has its place."""
    demands = _section(found.report, "Pending Demands:")
    if not found.groups and (not demands or demands == ["(no resource demands)"]):
        return Finding(job, state, None, (), "")
    told = [
        *(f"no place for {group}" for group in found.groups),
        *(f"demand: {line}" for line in demands if not line.startswith("(no")),
        *(f"nodes: {line}" for line in _nodes(found.report)),
        *(f"coming: {line}" for line in _section(found.report, "Pending:") if not line.startswith("(no")),
        *(f"failed launch: {line}" for line in _section(found.report, "Recent failures:") if not line.startswith("(no")),
        *(f"the cloud gives no {line}" for line in found.refusals),
    ]
    return Finding(job, state, "waits for a place", tuple(told), REFUSED_REMEDY if found.refusals else PLACE_REMEDY)


def in_line(job: str, state: str, log: str) -> Finding | None:
    """What is said of a job whose last word is that it waits for its turn; None for any other."""
    from medschool.cluster.admission import WAITS

    last = (log.splitlines() or [""])[-1]
    return Finding(job, state, "waits for its turn", (last.strip(),), TURN_REMEDY) if WAITS in last else None


def _nodes(report: str) -> list[str]:
    """Nodes at work and idle ones; the head of a cluster that starts from nothing is one of these."""
    return [line for title in ("Active:", "Idle:") for line in _section(report, title) if not line.startswith("(no")]


def _section(report: str, title: str) -> list[str]:
    """The indented lines below a title of Ray's status report."""
    lines = report.splitlines()
    if title not in lines:
        return []
    found = []
    for line in lines[lines.index(title) + 1 :]:
        if not line.startswith(" "):
            break
        found.append(line.strip())
    return found


def _bundles(bundles: Sequence[dict[str, Any]]) -> str:
    """`2 x {CPU: 3}`: equal bundles counted together."""
    counts: dict[str, int] = {}
    for bundle in bundles:
        needs = bundle.get("unit_resources") or {}
        text = ", ".join(f"{name}: {value:g}" for name, value in sorted(needs.items()) if not name.startswith("bundle"))
        counts[text] = counts.get(text, 0) + 1
    return ", ".join(f"{count} x {{{text}}}" for text, count in counts.items())


def _autoscaler_log() -> str:
    """The end of the autoscaler's log on the head; empty where it lies elsewhere, as beside a head in Kubernetes."""
    nodes = _asked("/api/v0/nodes", detail="1")["result"]["result"]
    head = next((str(each["node_id"]) for each in nodes if each.get("is_head_node")), "")
    with suppress(ServiceError):
        return str(_answer("/api/v0/logs/file", node_id=head, filename="monitor.log", lines=str(LOG_LINES)).text)
    return ""


def _asked(path: str, **parameters: str) -> dict[str, Any]:
    try:
        data: dict[str, Any] = _answer(path, **parameters).json()["data"]
    except (KeyError, ValueError) as error:
        raise _silent(error) from error
    return data


def _answer(path: str, **parameters: str) -> Any:
    import httpx
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    address = os.environ.get("MEDSCHOOL_RAY_JOBS", "")
    try:
        answer = httpx.get(f"{address}{path}", params=parameters, headers=get_auth_headers_if_auth_enabled({}), timeout=TIMEOUT_S)
        return answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _silent(error) from error


def _silent(error: Exception) -> ServiceError:
    address = os.environ.get("MEDSCHOOL_RAY_JOBS", "")
    return ServiceError(f"Ray's head does not tell its state ({error})", "run `medschool doctor`", address)
