"""`medschool doctor`: what is wrong on this machine, each with the one line that mends it.

Every check is asked under a deadline in a thread of its own, so that a dead name server or a hanging port costs seconds, not the
command. It changes nothing, except for one probe object that it writes, reads and deletes in the store.
"""

import importlib.metadata
import json
import os
import shutil
import sys
import threading
import tomllib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from medschool.cluster import object_store, ports, ray_head
from medschool.cluster.local import is_running
from medschool.cluster.mlflow_server import get
from medschool.cluster.object_store import STORE
from medschool.cluster.ray_head import RAY
from medschool.cluster.state import Service, Services, load
from medschool.cluster.wiring import SERVICES, client_variables, is_elsewhere, is_set_up, stale
from medschool.errors import MedschoolError, ServiceError

GIB = 2**30
MEMORY_GIB, DISK_GIB, SHM_GIB = 4, 10, 1
"""Free memory, disk and shared memory under which a small run is likely to fail."""
CHECK_S = 10
"""Deadline of one check."""
IMPORT_S = 60
"""Deadline of the check that imports torch, which takes long on a busy machine."""


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool
    found: str
    fix: str = ""
    """What to do, in one line; empty when ok."""


def _check(name: str, ok: bool, found: str, fix: str) -> Check:
    return Check(name, ok, found, "" if ok else fix)


def doctor(home: Path, *, needed_cpus: int | None = None) -> list[Check]:
    """All checks, in the order in which to mend them. Never raises for what it finds, never hangs.

    needed_cpus: logical CPUs that the recipe asks the cluster for; None leaves that check out.
    """
    try:
        services = load(home)
    except MedschoolError as error:
        return [*_machine(home), Check("state", False, error.problem, error.remedy)]
    checks = _machine(home)
    for service in SERVICES:
        first = _within(f"{service.name}", partial(_answers, service, services))
        checks.append(first)
        if first.ok:
            checks += [_within(name, look) for name, look in _details(service, services, needed_cpus)]
    return [*checks, _within("serve port", partial(_serve_port, services))]


def _within(name: str, look: Callable[[], Check], deadline_s: float = CHECK_S) -> Check:
    """The check, or a failed one when it raises or is not done in time."""
    done: list[Check] = []

    def run() -> None:
        try:
            done.append(look())
        except MedschoolError as error:
            done.append(Check(name, False, error.problem, error.remedy))
        except Exception as error:  # a broken check is a finding too
            done.append(Check(name, False, f"{type(error).__name__}: {error}", "report this with the line above"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(deadline_s)
    late = Check(name, False, f"no answer in {deadline_s:g} s", "look at the load of this machine and its network")
    return done[0] if done else late


def _machine(home: Path) -> list[Check]:
    looks: list[tuple[str, Callable[[], Check]]] = [
        ("python", _python),
        ("libraries", _libraries),
        ("memory", _memory),
        ("disk", partial(_disk, home)),
        ("shared memory", _shared_memory),
        ("vllm", _vllm),
    ]
    return [*(_within(name, look) for name, look in looks), _within("training", _training, IMPORT_S)]


def _declared() -> tuple[str, list[Requirement]]:
    """(Python versions, libraries) that medschool asks for: of the installed package, else of the source tree."""
    try:
        metadata = importlib.metadata.metadata("medschool")
        python, lines = metadata["Requires-Python"] or "", metadata.get_all("Requires-Dist") or []
    except importlib.metadata.PackageNotFoundError:
        source = Path(__file__).parents[3] / "pyproject.toml"
        if not source.is_file():
            raise ServiceError("medschool is not installed here", "install it: `pip install -e .`", str(source)) from None
        project = tomllib.loads(source.read_text())["project"]
        python, lines = project["requires-python"], project["dependencies"]
    return python, [Requirement(line) for line in lines]


def _python() -> Check:
    version, wanted = ".".join(map(str, sys.version_info[:3])), _declared()[0]
    ok = SpecifierSet(wanted).contains(version)
    return _check("python", ok, f"{version}, asked for {wanted}", f"make the environment anew with Python {wanted}")


def _libraries() -> Check:
    """Every library at a version the project asks for; extras are left out."""
    wrong = []
    wanted = [each for each in _declared()[1] if each.marker is None or each.marker.evaluate({"extra": ""})]
    for each in wanted:
        try:
            version = importlib.metadata.version(each.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{each.name} is missing")
            continue
        if not each.specifier.contains(version, prereleases=True):
            wrong.append(f"{each.name} {version} is not {each.specifier}")
    found = "; ".join(wrong) or f"{len(wanted)} libraries at the versions asked for"
    return _check("libraries", not wrong, found, "install again: `pip install -e .`")


def _memory() -> Check:
    free = psutil.virtual_memory().available / GIB
    return _check("memory", free >= MEMORY_GIB, f"{free:.1f} GiB free", f"end other programs until {MEMORY_GIB} GiB are free")


def _disk(home: Path) -> Check:
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(there).free / GIB
    fix = f"free {DISK_GIB} GiB, or set MEDSCHOOL_HOME to a folder on a larger disk"
    return _check("disk", free >= DISK_GIB, f"{free:.0f} GiB free at {there}", fix)


def _shared_memory() -> Check:
    """Ray keeps objects in /dev/shm; containers often get 64 MiB of it. Other systems than Linux have none."""
    if not Path("/dev/shm").is_dir():
        return Check("shared memory", True, "not used on this system")
    size = shutil.disk_usage("/dev/shm").total / GIB
    fix = "give the container more, for example `docker run --shm-size=2g`"
    return _check("shared memory", size >= SHM_GIB, f"/dev/shm has {size:.1f} GiB", fix)


def _vllm() -> Check:
    """Whether the engine that an environment of its own holds is there, which build, and what of it has been run."""
    from medschool.serve import vllm_install

    return Check("vllm", *vllm_install.state(vllm_install.environments(Path(__file__).parents[3])))


def _training() -> Check:
    """What training can do here. None of it is a fault of the machine: a recipe that asks for more is refused when it starts."""
    from medschool.train.capability import summary, this_machine

    return Check("training", True, summary(this_machine()))


def _variables(service: Service, services: Services) -> dict[str, str]:
    return {**os.environ, **client_variables(service, services)}


def _answers(service: Service, services: Services) -> Check:
    """Whether one service is set up, alive, answering, and in step with what it was told."""
    foreign = is_elsewhere(service, services)
    if not foreign and not is_set_up(service, services):
        return Check(service.name, False, "not set up", f"run `medschool up`, or set {service.elsewhere[-1]} to use your own")
    if not foreign and not is_running(service, services):
        fix = f"run `medschool up`; its log: {services.log(service.name)}"
        return Check(service.name, False, f"{service.title} does not run", fix)
    if not foreign and (changed := stale(service, services)):
        found = f"{service.title} was started with other values of {', '.join(changed)}"
        return Check(service.name, False, found, "run `medschool down` and then `medschool up`; running jobs end")
    problem = service.problem(_variables(service, services)) if not _is_folder(service, services) else ""
    named = f"your own, named by {' and '.join(client_variables(service, services))}"
    where = named if foreign else f"{service.title} at http://127.0.0.1:{services.ports[service.ports[0]]}"
    return _check(service.name, not problem, problem or f"answers: {where}", _fix(service, problem, foreign))


def _fix(service: Service, problem: str, foreign: bool) -> str:
    """The one line for a service that does not answer as it should."""
    names = {"store": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "ray": "RAY_AUTH_TOKEN_PATH"}
    if "refuses" in problem:
        return f"check {names[service.name]}" if foreign else "run `medschool down` and then `medschool up`"
    return f"start it, or unset {' and '.join(service.elsewhere)} and run `medschool up`" if foreign else "run `medschool up`"


def _details(service: Service, services: Services, needed_cpus: int | None) -> list[tuple[str, Callable[[], Check]]]:
    """The further checks of a service that answers."""
    if service is STORE:
        return [("store round trip", partial(_round_trip, _variables(STORE, services)))]
    if service is RAY:
        variables = _variables(RAY, services)
        cpus = [("cpus", partial(_cpus, variables, needed_cpus))] if needed_cpus is not None else []
        return [("ray token", partial(_token, variables)), *cpus]
    return []


def _is_folder(service: Service, services: Services) -> bool:
    return service is STORE and client_variables(STORE, services)["MEDSCHOOL_STORE"].startswith("/")


def _round_trip(variables: dict[str, str]) -> Check:
    """Write, read and delete one object where the artifacts will be."""
    store = variables["MEDSCHOOL_STORE"]
    if store.startswith("/"):
        ok = os.access(store, os.R_OK | os.W_OK | os.X_OK)
        return _check("store round trip", ok, f"folder {store} is {'' if ok else 'not '}writable", f"make {store} yours")
    prefix = store.removeprefix("s3://").partition("/")[2].strip("/")
    key = f"{prefix}/{object_store.PROBE}-{uuid.uuid4().hex}".lstrip("/")
    problem = object_store.round_trip(variables, key)
    bucket = object_store.bucket_of(variables)
    fix = f"make the bucket {bucket}" if "NoSuchBucket" in problem else f"let your key write, read and delete in {store}"
    return _check("store round trip", not problem, problem or f"wrote, read and deleted an object in {store}", fix)


def _token(variables: dict[str, str]) -> Check:
    """A Ray without token runs anybody's code as you."""
    url = variables["MEDSCHOOL_RAY_JOBS"].rstrip("/")
    status, _ = get(f"{url}/api/jobs/")
    found = {401: "refused without the token, accepted with it", 403: "refused without the token, accepted with it"}
    ok = status in found
    fix = "start Ray with RAY_AUTH_MODE=token, as `medschool up` does"
    open_door = f"{url} answers {status} without a token: anybody can run code"
    return _check("ray token", ok, found.get(status, open_door), fix)


def _cpus(variables: dict[str, str], needed: int) -> Check:
    """Logical CPUs of all living nodes. (The autoscaler's own report lags by some seconds.)"""
    status, body = ray_head.ask(variables, "/api/v0/nodes?detail=1&limit=10000")
    if status != 200:
        return Check("cpus", False, f"the list of nodes answers {status}", "run `medschool up`")
    nodes = json.loads(body)["data"]["result"]["result"]
    total = int(sum(node["resources_total"].get("CPU", 0) for node in nodes if node["state"] == "ALIVE"))
    fix = f"run `medschool down` and then `medschool up --num-cpus {needed}`, or add nodes to your cluster"
    return _check("cpus", total >= needed, f"{total} logical CPUs, {needed} needed", fix)


def _serve_port(services: Services) -> Check:
    """The port of the model server: free, or in use while our Ray runs, which then most likely serves a model there."""
    text = os.environ.get("MEDSCHOOL_SERVE_PORT") or str(services.ports.get("serve", ""))
    if not text.isdigit():
        return Check("serve port", False, f"MEDSCHOOL_SERVE_PORT is {text!r}" if text else "not chosen", "run `medschool up`")
    free = ports.is_free(int(text))
    ok = free or is_running(RAY, services) or is_elsewhere(RAY, services)
    fix = "run `medschool up`: it chooses another one, unless MEDSCHOOL_SERVE_PORT is set"
    return _check("serve port", ok, f"{text} is {'free' if free else 'in use'}", fix)
