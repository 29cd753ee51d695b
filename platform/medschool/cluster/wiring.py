"""Which of the services are ours, which are the user's own, and the variables that lead to them.

    nothing set                   ours, from .medschool
    MLFLOW_TRACKING_URI=...       the user's MLflow; `up` starts none
    AWS_ENDPOINT_URL=... and/or   the user's store: both where it is not AWS, with the credentials of the environment
      MEDSCHOOL_STORE=s3://...
    MEDSCHOOL_RAY_JOBS=http://... the user's cluster

A shell that took over our own variables still has our services: a value equal to ours names nobody else's.
"""

import hashlib
import os
from pathlib import Path

from medschool.cluster.mlflow_server import MLFLOW
from medschool.cluster.object_store import STORE
from medschool.cluster.ray_head import RAY, gpu_present
from medschool.cluster.state import Service, Services, load, prepare, secret
from medschool.errors import ServiceError

SERVICES = (STORE, MLFLOW, RAY)
"""In the order of start; `down` goes backwards."""

QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Nothing reports home, nothing is fetched from a hub, no pickled model is loaded; a user's own value wins."""


def environment(home: Path) -> dict[str, str]:
    """The variables a client process needs, to be laid over os.environ.

    Per service either this home's variables or, where the user named his own service, the user's. Raises ServiceError when a
    service is neither set up here nor named.
    """
    services = load(home)
    missing = [service for service in SERVICES if not is_elsewhere(service, services) and not is_set_up(service, services)]
    if missing:
        raise ServiceError(
            f"{missing[0].title} is not set up",
            f"run `medschool up`, or set {missing[0].elsewhere[-1]} to use your own",
            str(home),
        )
    return general(services) | {name: value for each in SERVICES for name, value in client_variables(each, services).items()}


def is_set_up(service: Service, services: Services) -> bool:
    """Whether `up` has chosen the ports of this service."""
    return all(name in services.ports for name in service.ports)


def is_elsewhere(service: Service, services: Services) -> bool:
    """Whether the environment names another service than ours; our own variables, taken over by a shell, do not count."""
    own = service.variables(services) if is_set_up(service, services) else {}
    return any(os.environ.get(name) not in {None, "", own.get(name)} for name in service.elsewhere)


def client_variables(service: Service, services: Services) -> dict[str, str]:
    """What leads to one service: ours, or the user's own. Raises ServiceError when the user named it only by half."""
    if not is_elsewhere(service, services):
        return service.variables(services)
    named = {name: os.environ[name] for name in service.elsewhere if os.environ.get(name)}
    if service.elsewhere[-1] not in named:
        raise ServiceError(
            f"{' and '.join(named)} names another {service.title}, but {service.elsewhere[-1]} is not set",
            f"set {service.elsewhere[-1]} as well, or unset {' and '.join(named)}",
        )
    return named


def general(services: Services) -> dict[str, str]:
    """Variables that belong to no service. Loopback never goes through a proxy."""
    prepare(services.home)
    direct = ",".join(filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1", "localhost"]))
    defaults = QUIET | ({} if gpu_present() else {"DS_ACCELERATOR": "cpu"})
    defaults["MEDSCHOOL_API_KEY"] = secret(services.home, "api_key")
    defaults |= {"MEDSCHOOL_SERVE_PORT": str(services.ports["serve"])} if "serve" in services.ports else {}
    return {name: os.environ.get(name) or value for name, value in defaults.items()} | {"NO_PROXY": direct, "no_proxy": direct}


def inherited(service: Service, services: Services) -> dict[str, str]:
    """The variables that the processes of `service` inherit to reach the services it needs."""
    needed = [other for other in SERVICES if other.name in service.needs]
    found = {name: value for other in needed for name, value in client_variables(other, services).items()}
    return {name: value for name, value in found.items() if name != "RAY_ADDRESS"}


def digests(service: Service, services: Services) -> dict[str, str]:
    """What `service` is told, fit for a file: variable -> digest of its value."""
    return {name: hashlib.sha256(value.encode()).hexdigest()[:16] for name, value in inherited(service, services).items()}


def stale(service: Service, services: Services) -> list[str]:
    """The variables whose value has changed since `service` was started with them."""
    told, now = services.told.get(service.name, {}), digests(service, services)
    return sorted(name for name in told.keys() | now.keys() if told.get(name) != now.get(name))
