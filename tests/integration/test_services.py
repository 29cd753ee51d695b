"""The real store, MLflow and Ray, started and stopped by `up` and `down` in a home of their own.

The tests share one start and run in order: the later ones kill a service and, at the end, stop everything.
"""

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from medschool.cluster import local, object_store, ports, process, state
from medschool.cluster.doctor import doctor
from medschool.cluster.state import Services
from medschool.cluster.wiring import SERVICES
from medschool.errors import ServiceError

PREFIXES = ("AWS_", "MEDSCHOOL_", "MLFLOW_", "RAY_", "HF_HUB_")
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}

pytestmark = [pytest.mark.timeout(240)]


@pytest.fixture(autouse=True, scope="module")
def bare_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(PREFIXES)]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, bare_environment: None) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("services") / "home"
    try:
        local.up(folder, num_cpus=8, say=print)
        yield folder
    finally:
        local.down(folder, say=print)
        shutil.rmtree(Services(folder).ray_folder, ignore_errors=True)


@dataclass(frozen=True)
class Running:
    """What runs at the moment."""

    services: Services
    environment: dict[str, str]

    def processes(self) -> list[psutil.Process]:
        folders = [self.services.home, self.services.ray_folder]
        sessions = list(self.services.sessions.values())
        found = [each for one in SERVICES for each in process.ours(self.services.mark(one.name), sessions, folders)]
        return list({each.pid: each for each in found}.values())

    def listening(self) -> dict[int, str]:
        """Port -> address, of everything our processes listen on."""
        sockets = [each for one in self.processes() if one.is_running() for each in one.net_connections("tcp")]
        return {each.laddr.port: each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}

    def jobs(self, method: str, path: str, with_token: bool = True, **more: object) -> httpx.Response:
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        headers = {"Authorization": f"Bearer {token}"} if with_token else {}
        return httpx.request(method, self.services.ray_jobs_url + path, headers=headers, timeout=30, **more)  # type: ignore[arg-type]


@pytest.fixture
def running(home: Path) -> Running:
    return Running(state.load(home), local.environment(home))


def test_the_store_takes_our_key_and_no_other(running: Running) -> None:
    s3 = object_store.client(running.environment)
    s3.put_object(Bucket="medschool", Key="kept/one", Body=b"data")
    assert s3.get_object(Bucket="medschool", Key="kept/one")["Body"].read() == b"data"
    wrong = running.environment | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    assert object_store.ask(wrong, "get_object", Bucket="medschool", Key="kept/one") == "SignatureDoesNotMatch"
    assert httpx.get(f"{running.services.store_url}/medschool/kept/one").status_code == 403


def test_the_filer_is_no_way_around_the_store(running: Running) -> None:
    filer = f"http://127.0.0.1:{running.services.ports['store_filer']}/buckets/medschool/kept/one"
    assert httpx.get(filer).status_code == 401
    assert httpx.put(filer, content=b"forged").status_code == 401
    assert httpx.delete(filer).status_code == 401


def test_the_jobs_api_needs_the_token(running: Running) -> None:
    assert running.jobs("GET", "/api/jobs/", with_token=False).status_code == 401
    assert running.jobs("GET", "/api/jobs/").status_code == 200
    wrong = {"Authorization": f"Bearer {'0' * 64}"}
    assert httpx.get(f"{running.services.ray_jobs_url}/api/jobs/", headers=wrong, timeout=30).status_code == 403


def test_a_job_and_its_workers_inherit_what_they_need(running: Running) -> None:
    program = (
        "import os, ray, sys; ray.init(logging_level='ERROR'); look = lambda: (os.environ['AWS_ENDPOINT_URL'], os.path.dirname(sys.executable));"
        "print('seen', *ray.get(ray.remote(look).remote()), ray.cluster_resources()['CPU'])"
    )
    answer = running.jobs(
        "POST", "/api/jobs/", json={"entrypoint": f'python -c "{program}"', "entrypoint_resources": {"driver": 1}}
    )
    job = f"/api/jobs/{answer.json()['submission_id']}"
    limit = process.deadline(60)
    while (status := running.jobs("GET", job).json()["status"]) in {"PENDING", "RUNNING"} and time.monotonic() < limit:
        time.sleep(0.3)
    log = running.jobs("GET", f"{job}/logs").json()["logs"]
    assert status == "SUCCEEDED", log
    assert f"seen {running.services.store_url} {Path(sys.executable).parent} 8.0" in log


def test_everything_listens_on_loopback_only(running: Running) -> None:
    listening = running.listening()
    assert len(listening) >= 15, "store 9, MLflow 1, Ray more than 5"
    assert {port: address for port, address in listening.items() if address not in LOOPBACK} == {}


def test_mlflow_keeps_artifacts_in_the_store(running: Running) -> None:
    assert httpx.get(f"{running.services.mlflow_url}/health").text == "OK"
    upload = f"{running.services.mlflow_url}/api/2.0/mlflow-artifacts/artifacts/probe/note.txt"
    assert httpx.put(upload, content=b"note", timeout=30).status_code == 200
    stored = object_store.client(running.environment).get_object(Bucket="medschool", Key="mlflow/probe/note.txt")
    assert stored["Body"].read() == b"note"


def test_doctor_finds_the_services_well(home: Path) -> None:
    checks = {check.name: check for check in doctor(home, needed_cpus=8)}
    for name in ("store", "store round trip", "mlflow", "ray", "ray token", "cpus", "serve port"):
        assert checks[name].ok, checks[name]
    too_few = next(check for check in doctor(home, needed_cpus=9) if check.name == "cpus")
    assert not too_few.ok and "--num-cpus 9" in too_few.fix


def test_doctor_names_wrong_credentials(home: Path, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", running.services.store_url.replace("127.0.0.1", "localhost"))
    monkeypatch.setenv("MEDSCHOOL_STORE", "s3://medschool")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", running.environment["AWS_ACCESS_KEY_ID"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    check = next(check for check in doctor(home) if check.name == "store")
    assert not check.ok and "refuses these credentials" in check.found and "AWS_SECRET_ACCESS_KEY" in check.fix


def test_a_second_up_keeps_everything(home: Path, running: Running) -> None:
    said: list[str] = []
    assert local.up(home, num_cpus=4, say=said.append) == running.services
    assert sum("runs already" in line for line in said) == 3
    assert any("keeps its 8 logical CPUs" in line for line in said)


def test_a_killed_store_comes_back_with_its_data(home: Path, running: Running) -> None:
    before = running.services.core
    os.kill(before["store"][0].pid, signal.SIGKILL)
    after = local.up(home, say=print)
    assert after.core["store"] != before["store"]
    assert (after.core["ray"], after.core["mlflow"], after.ports) == (before["ray"], before["mlflow"], running.services.ports)
    s3 = object_store.client(local.environment(home))
    assert s3.get_object(Bucket="medschool", Key="kept/one")["Body"].read() == b"data"


def test_a_store_that_had_to_move_is_not_hidden_from_ray(home: Path, running: Running) -> None:
    """Ray's workers know the old port; starting the store elsewhere would only break them later."""
    os.kill(running.services.core["store"][0].pid, signal.SIGKILL)
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind_when_free(stranger, running.services.ports["store"])
        with pytest.raises(ServiceError, match="other values of AWS_ENDPOINT_URL"):
            local.up(home, say=print)
    assert local.up(home, say=print).ports == running.services.ports


def test_a_killed_raylet_brings_a_whole_new_ray(home: Path, running: Running) -> None:
    """Half a Ray is dead: what is left of it (gcs_server, dashboard) is ended before a new one takes its ports."""
    old = running.services.core
    raylet = next(each for each in old["ray"] if psutil.Process(each.pid).name() == "raylet")
    os.kill(raylet.pid, signal.SIGKILL)
    after = local.up(home, say=print)
    assert not any(process.is_alive(each) for each in old["ray"]) and all(process.is_alive(each) for each in after.core["ray"])
    assert (after.core["store"], after.ports) == (old["store"], running.services.ports)
    assert running.jobs("GET", "/api/jobs/").status_code == 200


def _bind_when_free(server: socket.socket, port: int) -> None:
    limit = process.deadline(5)
    while not ports.is_free(port) and time.monotonic() < limit:
        time.sleep(0.05)
    server.bind(("127.0.0.1", port))
    server.listen()


def test_down_leaves_nothing(home: Path, running: Running) -> None:
    known, listening = running.processes(), running.listening()
    assert len(known) > 10
    local.down(home, say=print)
    assert [each for each in known if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []
    assert running.processes() == []
    assert [port for port in listening if not ports.is_free(port)] == []
    assert state.load(home).ports == running.services.ports, "ports are remembered"
    said: list[str] = []
    local.down(home, say=said.append)
    assert all("was not running" in line for line in said)


def test_a_store_alone_moves_to_another_port_and_keeps_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user has MLflow and Ray: only the store is started, and it may move, since nobody else was told its port."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.invalid:5000")
    monkeypatch.setenv("MEDSCHOOL_RAY_JOBS", "http://ray.invalid:8265")
    home, said = tmp_path / "home", list[str]()
    try:
        first = local.up(home, say=said.append)
        assert list(first.core) == ["store"] and sum("left alone" in line for line in said) == 2
        object_store.client(local.environment(home)).put_object(Bucket="medschool", Key="one", Body=b"data")
        local.down(home, say=print)
        with socket.socket() as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _bind_when_free(stranger, first.ports["store"])
            second = local.up(home, say=print)
        assert second.ports["store"] != first.ports["store"]
        s3 = object_store.client(local.environment(home))
        assert s3.get_object(Bucket="medschool", Key="one")["Body"].read() == b"data"
    finally:
        local.down(home, say=print)


def test_a_service_that_cannot_start_is_named_with_its_log_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.invalid:5000")
    monkeypatch.setenv("MEDSCHOOL_RAY_JOBS", "http://ray.invalid:8265")
    home = tmp_path / "home"
    state.prepare(home)
    (home / "store").mkdir()
    (home / "store" / "filer").write_text("a file where the filer's folder should be")
    try:
        with pytest.raises(ServiceError, match=r"(?s)S3 store \(SeaweedFS\) (ended|is not ready).*"):
            local.up(home, say=print)
        services = state.load(home)
        assert services.sessions == {} and process.ours(services.mark("store"), [], [home]) == []
    finally:
        local.down(home, say=print)
