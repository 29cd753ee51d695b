"""The local services without starting them: ports, process identity, environment precedence, state, doctor on a bare machine."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from medschool.cluster import local, ports, process, state
from medschool.cluster.doctor import Check, doctor
from medschool.cluster.state import Services
from medschool.cluster.wiring import SERVICES, is_elsewhere, stale
from medschool.errors import ServiceError

PREFIXES = ("AWS_", "MEDSCHOOL_", "MLFLOW_", "RAY_", "HF_HUB_", "NO_PROXY", "no_proxy")
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIXES)]:
        monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose ports are chosen and in which nothing runs."""
    folder = tmp_path / "home"
    state.prepare(folder)
    names = {name: service.partner for service in SERVICES for name in service.ports} | {"serve": 0}
    services = Services(folder)
    state.save(replace(services, ports=ports.choose(names, {}, {}, services.identity)))
    return folder


@pytest.fixture
def listener() -> Iterator[int]:
    """A stranger's server; its port."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


# ports


def test_ports_are_remembered_while_free() -> None:
    first = ports.choose({"store": 10000, "ray": 0}, {}, {}, "home")
    assert len(set(first.values())) == 2
    assert all(ports.FIRST_PORT <= port <= ports.LAST_PORT for port in first.values())
    assert ports.choose({"store": 10000, "ray": 0}, first, {}, "another seed") == first


def test_a_port_taken_meanwhile_is_replaced(listener: int) -> None:
    remembered = {"store": listener, "ray": ports.choose({"ray": 0}, {}, {}, "home")["ray"]}
    chosen = ports.choose({"store": 0}, remembered, {}, "home")
    assert chosen["store"] not in remembered.values()


def test_a_port_whose_partner_is_taken_is_replaced(listener: int) -> None:
    chosen = ports.choose({"store": 100}, {"store": listener - 100}, {}, "home")
    assert chosen["store"] != listener - 100 and ports.is_free(chosen["store"] + 100)
    assert ports.choose({"store": 0}, {"store": listener - 100}, {}, "home") == {"store": listener - 100}


def test_a_port_that_the_user_insists_on_is_never_replaced(listener: int) -> None:
    with pytest.raises(ServiceError, match=f"MEDSCHOOL_STORE_PORT asks for port {listener}.*unset MEDSCHOOL_STORE_PORT"):
        ports.choose({"store": 0}, {}, {"store": ("MEDSCHOOL_STORE_PORT", listener)}, "home")


def test_up_refuses_a_port_of_a_stranger(home: Path, listener: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSCHOOL_STORE_PORT", str(listener))
    with pytest.raises(ServiceError, match=str(listener)):
        local.up(home, say=lambda line: None)
    assert not state.load(home).sessions, "nothing was started"


# processes


def test_a_reused_pid_is_not_our_process() -> None:
    mine = process.identity(os.getpid())
    assert process.is_alive(mine)
    assert not process.is_alive(replace(mine, started_s=mine.started_s - 100))


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen(SLEEP)
    identity = process.identity(child.pid)
    child.kill()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert not process.is_alive(identity)
    child.wait()


def test_down_never_ends_a_process_that_got_a_remembered_pid(home: Path) -> None:
    stranger = subprocess.Popen(SLEEP, cwd=home, start_new_session=True)
    try:
        past = replace(process.identity(stranger.pid), started_s=1.0)
        state.save(replace(state.load(home), sessions={"store": past}, core={"store": [past]}))
        local.down(home, say=lambda line: None)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_ours_are_the_marked_their_children_and_their_session(tmp_path: Path) -> None:
    nested = f"import subprocess, sys; subprocess.Popen({SLEEP!r}, env={{}}); import time; time.sleep(60)"
    child = process.spawn([sys.executable, "-c", nested], dict(os.environ), "mark", tmp_path, tmp_path / "log")
    stranger = subprocess.Popen(SLEEP)
    leader = process.identity(child.pid)
    try:
        limit = process.deadline(5)
        while len(found := process.ours("mark", [], [tmp_path])) < 2 and time.monotonic() < limit:
            time.sleep(0.05)
        assert len(found) == 2 and stranger.pid not in {each.pid for each in found}
        assert process.ours("other mark", [], [tmp_path]) == []
        child.kill()
        child.wait()
        assert len(process.ours("mark", [], [tmp_path])) == 0, "the orphan has lost mark and parent"
        orphans = process.ours("mark", [leader], [tmp_path])
        assert len(orphans) == 1, "its session and folder still tell whose it is"
        assert process.ours("mark", [leader], [tmp_path / "elsewhere"]) == []
        process.stop(orphans, grace_s=2)
        assert process.ours("mark", [leader], [tmp_path]) == []
    finally:
        for each in (child, stranger):
            each.kill()
            each.wait()


def test_stop_ends_what_ignores_sigterm(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    child = process.spawn([sys.executable, "-c", deaf], dict(os.environ), "mark", tmp_path, tmp_path / "log")
    while "deaf" not in process.tail(tmp_path / "log"):
        time.sleep(0.02)
    process.stop([psutil.Process(child.pid)], grace_s=0.2)
    assert child.wait(1) == -signal.SIGKILL or not psutil.pid_exists(child.pid)


# environment


def test_environment_before_up_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="run `medschool up`"):
        local.environment(tmp_path / "nothing")


def test_environment_leads_to_our_services(home: Path) -> None:
    services, found = state.load(home), local.environment(home)
    assert found["AWS_ENDPOINT_URL"] == services.store_url
    assert found["MEDSCHOOL_STORE"] == "s3://medschool"
    assert found["RAY_ADDRESS"] == services.ray_address and found["MEDSCHOOL_RAY_JOBS"] == services.ray_jobs_url
    assert found["RAY_AUTH_MODE"] == "token" and len(Path(found["RAY_AUTH_TOKEN_PATH"]).read_text()) >= 32
    assert found["HF_HUB_OFFLINE"] == "1" and found["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert found == local.environment(home), "secrets are made once"


def test_our_store_comes_with_our_keys_whatever_keys_the_user_has(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-of-the-user")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-the-user")
    found = local.environment(home)
    assert found["AWS_ACCESS_KEY_ID"].startswith("MS") and found["AWS_SESSION_TOKEN"] == ""


def test_the_users_own_services_win_one_by_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.lab:5000")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    found = local.environment(home)
    assert found["MLFLOW_TRACKING_URI"] == "http://mlflow.lab:5000" and found["HF_HUB_OFFLINE"] == "0"
    assert found["AWS_ENDPOINT_URL"] == state.load(home).store_url


def test_a_users_store_needs_both_of_its_names(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio.lab:9000")
    with pytest.raises(ServiceError, match="MEDSCHOOL_STORE is not set"):
        local.environment(home)
    monkeypatch.setenv("MEDSCHOOL_STORE", "s3://lab/medschool")
    found = local.environment(home)
    assert found["AWS_ENDPOINT_URL"] == "http://minio.lab:9000"
    assert "AWS_SECRET_ACCESS_KEY" not in found, "the user's credentials stay where they are"


def test_a_shell_with_our_variables_still_has_our_services(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in local.environment(home).items():
        monkeypatch.setenv(name, value)
    assert not any(is_elsewhere(service, state.load(home)) for service in SERVICES)


def test_a_service_that_was_told_another_address_is_stale(home: Path) -> None:
    services = replace(state.load(home), told={"mlflow": {}})
    mlflow = next(service for service in SERVICES if service.name == "mlflow")
    assert "AWS_ENDPOINT_URL" in stale(mlflow, services)


# state


def test_home_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert state.home() == tmp_path / ".medschool"
    monkeypatch.setenv("MEDSCHOOL_HOME", "/somewhere/else")
    assert state.home() == Path("/somewhere/else")


def test_state_and_secrets_are_closed_to_others(home: Path) -> None:
    local.environment(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    files = [home / "state.json", *(path for path in (home / "secrets").rglob("*") if path.is_file())]
    assert len(files) >= 4 and {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_state_survives_a_round_trip(home: Path) -> None:
    mine = process.identity(os.getpid())
    services = replace(state.load(home), sessions={"ray": mine}, core={"ray": [mine]}, told={"ray": {"A": "b"}}, num_cpus=8)
    state.save(services)
    assert state.load(home) == services
    assert state.load(home).without("ray").core == {}


def test_a_damaged_state_file_is_named(home: Path) -> None:
    (home / "state.json").write_text('{"ports": ')
    with pytest.raises(ServiceError, match=r"state\.json: the state file is damaged"):
        state.load(home)
    assert not next(check for check in doctor(home) if check.name == "state").ok


def test_two_ups_never_work_at_once(home: Path) -> None:
    with state.locked(home), pytest.raises(ServiceError, match="another `medschool up`"):
        local.down(home, say=lambda line: None)


def test_the_ray_folder_is_short_and_different_for_each_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folders = {Services(tmp_path / ("deep/" * 30) / name).ray_folder for name in ("a", "b")}
    assert len(folders) == 2 and max(len(str(folder)) for folder in folders) <= 104 - 67


# doctor


def _by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_doctor_with_nothing_set_up(tmp_path: Path) -> None:
    checks = _by_name(doctor(tmp_path / "nothing", needed_cpus=8))
    assert {"python", "libraries", "memory", "disk", "vllm", "store", "mlflow", "ray"} <= checks.keys()
    assert all(check.fix for check in checks.values() if not check.ok)
    assert "run `medschool up`" in checks["ray"].fix
    assert not (tmp_path / "nothing").exists(), "doctor changes nothing"


def test_doctor_with_everything_stopped_is_quick(home: Path) -> None:
    began = time.monotonic()
    checks = _by_name(doctor(home))
    assert time.monotonic() - began < 5
    assert "does not run" in checks["store"].found and "does not run" in checks["ray"].found
    assert checks["serve port"].ok


def test_doctor_names_a_users_service_that_is_down(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = ports.choose({"dead": 0}, {}, {}, "dead")["dead"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{dead}")
    check = _by_name(doctor(home))["mlflow"]
    assert not check.ok and str(dead) in check.found and "MLFLOW_TRACKING_URI" in check.fix
