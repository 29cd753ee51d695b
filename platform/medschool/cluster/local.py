"""`medschool up` and `medschool down`: the store, MLflow and Ray on this machine.

`up` brings the machine from whatever state it is in to "all three answer", and does nothing where that is so already:

    per service   elsewhere    the user named his own: left alone
                  works        its processes live and it answers: kept
                  silent       its processes live, it does not answer: an error; `up` never ends what may be at work
                  dead         leftovers are stopped, then it is started on its remembered ports

The state is saved after each step and every process carries the mark of this home, so that `down` finds them whatever happened
in between: a failed start, a lost state file, a `kill -9`.
"""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from medschool.cluster import ports, process
from medschool.cluster.farewell import finish_answers
from medschool.cluster.object_store import STORE
from medschool.cluster.prometheus import PROMETHEUS, executable
from medschool.cluster.ray_head import RAY
from medschool.cluster.state import Service, Services, load, locked, prepare, save
from medschool.cluster.wiring import SERVICES, client_variables, digests, environment, general, inherited, is_elsewhere, stale
from medschool.errors import ServiceError
from medschool.metrics import FOLDER

__all__ = ["down", "environment", "is_running", "up"]

SILENT_S = 30
"""How long a living service may be silent, on a machine that is busy, before `up` gives up on it."""


def up(home: Path, *, num_cpus: int = 8, metrics: bool = False, say: Callable[[str], None] = print) -> Services:
    """Start what does not run, and wait until everything answers. Safe to repeat.

    num_cpus: logical CPUs of the Ray head. metrics: with a Prometheus that scrapes it.
    Raises ServiceError with the end of the log when a service does not come up.
    """
    prepare(home)
    with locked(home):
        services = load(home)
        own = _own(services, say) + (_watching(services) if metrics else [])
        kept = [service for service in own if _works(service, services)]
        fresh = [service for service in own if service not in kept]
        for service in fresh:
            services = _stop(service, services)
        services = _with_ports(services, kept, fresh)
        _refuse_stale(kept, services)
        for service in kept:
            say(f"{service.title}: runs already, {_url(service, services)}")
        if RAY in fresh:
            services = dataclasses.replace(services, num_cpus=num_cpus)
        elif RAY in kept and services.num_cpus != num_cpus:
            say(f"Ray: keeps its {services.num_cpus} logical CPUs; for {num_cpus}, `medschool down` first")
        return _start_all(fresh, services, say)


def _own(services: Services, say: Callable[[str], None]) -> list[Service]:
    own = []
    for service in SERVICES:
        if is_elsewhere(service, services):
            say(f"{service.title}: left alone, yours is named by {' and '.join(client_variables(service, services))}")
        else:
            own.append(service)
    return own


def _watching(services: Services) -> list[Service]:
    """The Prometheus. Raises ServiceError where Ray is elsewhere, or the system has none: before anything is started."""
    if is_elsewhere(RAY, services):
        raise ServiceError(
            "--metrics watches the Ray that `medschool up` starts, and yours is elsewhere",
            f"run a Prometheus on its head with the files of {FOLDER}",
        )
    executable()
    return [PROMETHEUS]


def is_running(service: Service, services: Services) -> bool:
    """Whether the processes without which it does not work all live."""
    core = services.core.get(service.name, [])
    return bool(core) and all(process.is_alive(each) for each in core)


def _works(service: Service, services: Services) -> bool:
    """Alive and answering. Raises ServiceError when it lives and stays silent."""
    limit = process.deadline(SILENT_S)
    problem = ""
    while is_running(service, services):
        problem = service.problem(service.variables(services))
        if not problem:
            return True
        if time.monotonic() > limit:
            raise ServiceError(
                f"{service.title} runs but does not answer: {problem}",
                "if nothing is at work there, run `medschool down` and then `medschool up`",
                str(services.log(service.name)),
            )
        time.sleep(0.5)
    return False


def _with_ports(services: Services, kept: list[Service], fresh: list[Service]) -> Services:
    """Choose the ports of what will be started; the port of the model server too, unless it may be in use by our own Ray."""
    wanted = {name: insisted for name in ("store", "mlflow", "ray", "serve") if (insisted := _wanted(name, services))}
    for service in kept:
        variable, port = wanted.get(service.name, ("", services.ports[service.ports[0]]))
        if port != services.ports[service.ports[0]]:
            raise ServiceError(
                f"{variable} asks for port {port}, but {service.title} runs on {services.ports[service.ports[0]]}",
                f"run `medschool down` first, or unset {variable}",
            )
    names = {name: service.partner for service in fresh for name in service.ports}
    if RAY in fresh or "serve" not in services.ports:
        names["serve"] = 0
    chosen = ports.choose(names, services.ports, wanted, seed=services.identity)
    return dataclasses.replace(services, ports=services.ports | chosen)


def _wanted(name: str, services: Services) -> tuple[str, int] | None:
    """(variable, port) that a user insists on with MEDSCHOOL_<NAME>_PORT; our own choice in a shell's copy does not count."""
    variable = f"MEDSCHOOL_{name.upper()}_PORT"
    value = os.environ.get(variable, "")
    if not value or value == str(services.ports.get(name)):
        return None
    if not value.isdigit() or not 1024 <= int(value) <= 65535:
        raise ServiceError(f"{variable}={value} is no port", "use a number between 1024 and 65535")
    return variable, int(value)


def _refuse_stale(kept: list[Service], services: Services) -> None:
    for service in kept:
        changed = stale(service, services)
        if changed:
            raise ServiceError(
                f"{service.title} was started with other values of {', '.join(changed)}",
                "run `medschool down` and then `medschool up`; running jobs end",
            )


def _start_all(fresh: list[Service], services: Services, say: Callable[[str], None]) -> Services:
    """Start them side by side, then wait for each; the state is saved before the first wait."""
    save(services)
    children: dict[str, subprocess.Popen[bytes]] = {}
    began = time.monotonic()
    for service in fresh:
        child = process.spawn(
            service.command(services),
            _process_environment(service, services),
            services.mark(service.name),
            services.ray_folder if service is RAY else services.home,
            services.log(service.name),
        )
        children[service.name] = child
        services = dataclasses.replace(
            services,
            sessions=services.sessions | {service.name: process.identity(child.pid)},
            told=services.told | {service.name: digests(service, services)},
        )
        save(services)
    for service in fresh:
        services = _await(service, services, children[service.name])
        say(f"{service.title}: started in {time.monotonic() - began:.1f} s, {_url(service, services)}")
    return services


def _process_environment(service: Service, services: Services) -> dict[str, str]:
    """os.environ without what would mislead, programs of this Python first, then what the service needs."""
    hidden = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", *(() if is_elsewhere(STORE, services) else ("AWS_",)))
    base = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    base["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), base.get("PATH", os.defpath)])
    return base | general(services) | inherited(service, services) | service.settings(services)


def _await(service: Service, services: Services, child: subprocess.Popen[bytes]) -> Services:
    """Wait until the service answers, then note its processes. When it fails it is stopped and ServiceError raised."""
    try:
        _until_ready(service, services, child)
        service.finish(services)
    except ServiceError:
        save(_stop(service, services))
        raise
    members = [each for each in _members(service, services) if each.name() in service.core]
    core = [process.identity(each.pid) for each in members] if service.core else [services.sessions[service.name]]
    services = dataclasses.replace(services, core=services.core | {service.name: core})
    save(services)
    return services


def _until_ready(service: Service, services: Services, child: subprocess.Popen[bytes]) -> None:
    limit, log = process.deadline(service.ready_s), services.log(service.name)
    while True:
        problem, code = service.problem(service.variables(services)), child.poll()
        if not problem and code == (0 if service.core else None):
            return
        if code is not None and (code != 0 or not service.core):
            problem = f"{service.title} ended with exit code {code}:\n{process.tail(log)}"
            raise ServiceError(problem, "mend what the log says", str(log))
        if time.monotonic() > limit:
            raise ServiceError(
                f"{service.title} is not ready after {service.ready_s:.0f} s ({problem or 'starting'}):\n{process.tail(log)}",
                "run `medschool doctor`; on a busy machine run `medschool up` once more",
                str(log),
            )
        time.sleep(0.2)


def _members(service: Service, services: Services) -> list[psutil.Process]:
    session = services.sessions.get(service.name)
    folders = [services.ray_folder if service is RAY else services.home]
    return process.ours(services.mark(service.name), [session] if session else [], folders)


def _stop(service: Service, services: Services) -> Services:
    """End every process of one service, and those they start meanwhile. Raises ServiceError when one cannot be ended."""
    for _ in range(3):
        members = _members(service, services)
        if not members:
            return services.without(service.name)
        process.stop(members, service.grace_s)
    left = [each.pid for each in _members(service, services)]
    if left:
        by_hand = f"end them by hand: kill -9 {' '.join(map(str, left))}"
        raise ServiceError(f"{service.title} does not end: processes {left}", by_hand)
    return services.without(service.name)


def _url(service: Service, services: Services) -> str:
    return f"http://127.0.0.1:{services.ports[service.ports[0]]}"


def down(home: Path, say: Callable[[str], None] = print) -> None:
    """Stop everything that `up` started here, in reverse order. Data, ports and secrets stay."""
    if not home.is_dir():
        say(f"nothing to stop: {home} does not exist")
        return
    with locked(home):
        services = load(home)
        if _members(RAY, services):
            finish_answers(services, lambda: environment(home), say)
        watching = [PROMETHEUS] if PROMETHEUS.name in services.sessions or _members(PROMETHEUS, services) else []
        for service in (*watching, *reversed(SERVICES)):
            began, count = time.monotonic(), len(_members(service, services))
            services = _stop(service, services)
            save(services)
            say(f"{service.title}: {f'stopped in {time.monotonic() - began:.1f} s' if count else 'was not running'}")
