"""Prometheus on this machine, over the Ray of `medschool up`: `medschool up --metrics`.

    medschool/metrics/{prometheus.yml, alerts.yml} --the folder of this Ray--> .medschool/metrics/ --> prometheus, on loopback

The program is the system's: Debian and Ubuntu have it as the package `prometheus`. It has no login: whoever has an account on
this machine can read what the numbers say, which is names of runs and trials, losses, counts. Numbers are kept for 15 days.

Price: about 0.1 GiB of memory and a second to start.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from medschool.cluster.mlflow_server import get
from medschool.cluster.state import Service, Services
from medschool.errors import ServiceError
from medschool.metrics import ALERTS, CONFIG, DASHBOARD, FOLDER

DISCOVERY = "prom_metrics_service_discovery.json"
"""Ray's list of the endpoints to scrape, in its temporary folder."""
KEPT = "15d"


def executable() -> str:
    """Raises ServiceError where the system has no Prometheus."""
    found = shutil.which("prometheus") or shutil.which("prometheus", path="/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if found is None:
        raise ServiceError(
            "this machine has no Prometheus",
            "install it (apt-get install --no-install-recommends prometheus), or leave --metrics out",
        )
    return found


def write_config(folder: Path, discovery: Path) -> Path:
    """The shipped files in `folder`, with the list of endpoints at `discovery`; the path of the configuration."""
    folder.mkdir(exist_ok=True, parents=True, mode=0o700)
    for name in (ALERTS, DASHBOARD):
        shutil.copyfile(FOLDER / name, folder / name)
    config = yaml.safe_load((FOLDER / CONFIG).read_text(encoding="utf-8"))
    config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(discovery)]
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return folder / CONFIG


def _command(services: Services) -> list[str]:
    folder = services.home / "metrics"
    config = write_config(folder, services.ray_folder / "r" / DISCOVERY)
    flags = {
        "config.file": config,
        "storage.tsdb.path": folder / "data",
        "storage.tsdb.retention.time": KEPT,
        "web.listen-address": f"127.0.0.1:{services.ports['prometheus']}",
        "log.level": "warn",
    }
    return [executable(), *(f"--{name}={value}" for name, value in flags.items())]


def _problem(variables: Mapping[str, str]) -> str:
    url = variables["MEDSCHOOL_PROMETHEUS"]
    status, body = get(f"{url}/-/ready")
    return "" if status == 200 else body if status == 0 else f"{url} answers {status}"


PROMETHEUS = Service(
    name="prometheus",
    title="Prometheus",
    ports=("prometheus",),
    elsewhere=(),
    variables=lambda services: {"MEDSCHOOL_PROMETHEUS": f"http://127.0.0.1:{services.ports['prometheus']}"},
    command=_command,
    settings=lambda services: {},
    finish=lambda services: None,
    problem=_problem,
)
