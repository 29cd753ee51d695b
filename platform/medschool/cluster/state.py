"""What stands on this laptop: one folder, the home, with everything that `up` made.

    state.json   0600   ports, processes, what each service was told; rewritten after every change
    secrets/     0700   keys and tokens, one a file (0600), made once
    logs/               one log a service; logs/ray is a link to Ray's own
    store/ mlflow/      their data; stays after `down`
    lock                held by `up` and `down`, so that two of them never work at the same time

Only Ray's working folder lies outside, in the temporary folder (`Services.ray_folder` says why).
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from medschool.cluster.process import Process
from medschool.errors import ServiceError

BUCKET = "medschool"
T = TypeVar("T")


def home() -> Path:
    """The state folder: $MEDSCHOOL_HOME, or .medschool in the current folder. Not created here."""
    return Path(os.environ.get("MEDSCHOOL_HOME") or ".medschool").absolute()


@dataclass(frozen=True)
class Services:
    """What `up` chose and started. A value: changes make a new one, `save` makes it last."""

    home: Path
    ports: dict[str, int] = field(default_factory=dict)
    """Port name (`store`, `mlflow`, `ray`, `serve`, `store_filer`...) -> port."""
    sessions: dict[str, Process] = field(default_factory=dict)
    """Service -> the process that `up` spawned: it opened the session its children live in."""
    core: dict[str, list[Process]] = field(default_factory=dict)
    """Service -> the processes without which it does not work."""
    told: dict[str, dict[str, str]] = field(default_factory=dict)
    """Service -> variable -> digest of the value it was started with."""
    num_cpus: int = 0
    """Logical CPUs of the Ray head, 0 where none was started."""

    @property
    def identity(self) -> str:
        """16 hex digits that no other home has."""
        return hashlib.sha256(str(self.home).encode()).hexdigest()[:16]

    def mark(self, service: str) -> str:
        """What marks the processes of one service of this home."""
        return f"{self.identity}:{service}"

    @property
    def ray_folder(self) -> Path:
        """A folder for Ray, outside the home: the paths of its sockets, 90 characters longer, must stay under 104."""
        temporary = Path(tempfile.gettempdir()).resolve()
        short = temporary if len(str(temporary)) < 14 else Path("/tmp").resolve()
        return short / f"ms-{os.getuid()}-{self.identity[:8]}"

    @property
    def store_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['store']}"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['mlflow']}"

    @property
    def ray_jobs_url(self) -> str:
        """Dashboard and jobs API."""
        return f"http://127.0.0.1:{self.ports['ray']}"

    @property
    def ray_address(self) -> str:
        """What ray.init takes."""
        return f"127.0.0.1:{self.ports['ray_gcs']}"

    @property
    def serve_url(self) -> str:
        """Where a served model will answer; `up` reserves the port, the serving job binds it."""
        return f"http://127.0.0.1:{self.ports['serve']}"

    def log(self, service: str) -> Path:
        return self.home / "logs" / f"{service}.log"

    def without(self, service: str) -> "Services":
        """The same, with `service` forgotten as a process; its ports are remembered."""
        return replace(
            self, sessions=_less(self.sessions, service), core=_less(self.core, service), told=_less(self.told, service)
        )


def _less(values: dict[str, T], name: str) -> dict[str, T]:
    return {key: value for key, value in values.items() if key != name}


def load(home: Path) -> Services:
    """The saved state of `home`; an empty one where `up` never ran. Raises ServiceError when the file cannot be read."""
    path = home / "state.json"
    try:
        saved = json.loads(path.read_text())
        return Services(
            home,
            ports=saved["ports"],
            sessions={name: Process(**value) for name, value in saved["sessions"].items()},
            core={name: [Process(**value) for value in values] for name, values in saved["core"].items()},
            told=saved["told"],
            num_cpus=saved["num_cpus"],
        )
    except FileNotFoundError:
        return Services(home)
    except (ValueError, KeyError, TypeError) as error:
        raise ServiceError(
            f"the state file is damaged ({type(error).__name__}: {error})",
            "delete it and run `medschool up`: it starts everything anew and keeps the data",
            str(path),
        ) from error


def save(services: Services) -> None:
    """Write state.json, whole or not at all."""
    content = {name: value for name, value in asdict(services).items() if name != "home"}
    _write_private(services.home / "state.json", json.dumps(content, indent=1))


def prepare(home: Path) -> None:
    """Make the folders, closed to other users."""
    for folder in (home, home / "secrets", home / "logs"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    home.chmod(0o700)


def secret(home: Path, name: str, make: Callable[[], str] = lambda: secrets.token_urlsafe(32)) -> str:
    """The secret `name`: read, or made once."""
    path = home / "secrets" / name
    if not path.exists():
        _write_private(path, make())
    return path.read_text()


def _write_private(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    os.replace(part, path)


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the home for `up` or `down`. Raises ServiceError when another one is at work; the kernel frees it at our end."""
    with (home / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServiceError(
                "another `medschool up` or `medschool down` is at work here", "wait until it has ended", str(home)
            ) from None
        yield


@dataclass(frozen=True)
class Service:
    """How one service is started and asked whether it works. In order of use: command, problem until it is '', finish."""

    name: str
    title: str
    """For people: `S3 store (SeaweedFS)`."""
    ports: tuple[str, ...]
    """The names of its ports; the first is the one that clients use."""
    elsewhere: tuple[str, ...]
    """Variables with which users name a service of their own; the last one is then required. All are in `variables` too."""
    variables: Callable[[Services], dict[str, str]]
    """What a client of this service needs in its environment."""
    command: Callable[[Services], list[str]]
    """Write the configuration and give the command line."""
    settings: Callable[[Services], dict[str, str]]
    """Variables of the service process itself."""
    finish: Callable[[Services], None]
    """What is left to do once it answers."""
    problem: Callable[[Mapping[str, str]], str]
    """'' when it answers as it should, else what is wrong. Takes the client's environment, answers within 5 seconds."""
    needs: tuple[str, ...] = ()
    """Services whose variables its processes inherit."""
    core: tuple[str, ...] = ()
    """Names of the processes that must live; empty: the one that was spawned, which must then not end."""
    partner: int = 0
    """The service listens on each port + partner as well."""
    ready_s: float = 60
    grace_s: float = 10
    """Seconds between SIGTERM and SIGKILL."""
