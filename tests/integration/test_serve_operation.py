"""A served echo in operation on a real Ray Serve: replicas, proxy, controller, engine and node die or hang, versions come and go.

Traffic runs all the while. What may fail is said by each test; everything else must be answered.
"""

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import psutil
import pytest
import ray
import torch
from failing_engines import DIE, HANG
from failing_replica import CommandedReplica
from ray import serve
from safetensors.torch import load_file, save_file
from served import free_port
from tiny import RECIPE, write_model
from traffic import CHAT, HEADERS, KEY, Reader, Traffic, body

from medschool import artifact, registry
from medschool.cluster.farewell import finish_answers
from medschool.cluster.state import Services
from medschool.errors import MedschoolError, ServiceError
from medschool.recipe import load
from medschool.serve import drain, on_ray, rollout
from medschool.serve.keys import hash_key
from medschool.serve.on_ray import APP_NAME, ChatArgs, deploy
from medschool.serve.probe import probe
from medschool.serve.scaling import replicas
from medschool.serve.template import CheckpointText
from medschool.serve.watch import Load

PACE_S = 0.05
STREAM = "a stream that runs while something else ends " * 2
ARGS = ChatArgs(
    engine="echo",
    served_name="echo",
    api_key_sha256=(hash_key(KEY),),
    max_context_tokens=256,
    max_concurrent_requests=32,
    echo_token_s=PACE_S,
    answer_timeout_s=60,
)


@pytest.fixture(scope="module")
def http_port(ray_cluster: None) -> Iterator[int]:
    port = free_port()
    yield port
    serve.shutdown()


@pytest.fixture(scope="module")
def url(http_port: int) -> str:
    return f"http://127.0.0.1:{http_port}"


@pytest.fixture(scope="module")
def pair(http_port: int) -> ChatArgs:
    """Two replicas."""
    args = ARGS.model_copy(update={"min_replicas": 2, "max_replicas": 2})
    deploy(args, http_port)
    return args


def pids(title: str) -> set[int]:
    """Processes of this session's Ray by their title."""
    return {child.pid for child in psutil.Process().children(recursive=True) if title in " ".join(_words(child))}


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def until(holds: Callable[[], Any], timeout_s: float, what: str) -> float:
    """Wait until it holds; the seconds that took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < timeout_s, what
        time.sleep(0.1)
    return time.monotonic() - began


def replica_counts() -> dict[str, int]:
    app = serve.status().applications[APP_NAME]
    return {
        str(getattr(state, "value", state)): count for state, count in app.deployments["Chat"].replica_states.items() if count
    }


# ---- processes die


def test_a_killed_replica_of_two_takes_its_own_requests_along_and_no_others(pair: ChatArgs, url: str) -> None:
    before = pids("ServeReplica")
    assert len(before) == 2
    readers = [Reader(url, STREAM) for _ in range(8)]
    for reader in readers:
        assert reader.begun.wait(20)
    with Traffic(url) as traffic:
        killed_s = time.monotonic()
        os.kill(min(before), signal.SIGKILL)
        until(lambda: len(pids("ServeReplica") - {min(before)}) == 2 and replica_counts() == {"RUNNING": 2}, 60, "not back")
    assert not traffic.failed_after(killed_s), "requests that came after the death"
    assert {outcome.code for outcome in traffic.failed} <= {"server_fault"}, "each in JSON"
    whole = [reader.whole for reader in readers]
    assert any(whole) and not all(whole), "both replicas had streams"
    for reader in readers:
        cut = '"code": "replica_died"' in reader.text and "[DONE]" not in reader.text
        assert reader.whole != cut, (reader.problem, reader.text)


def test_a_killed_controller_is_missed_by_no_request(pair: ChatArgs, url: str) -> None:
    (before,) = pids("ServeController")
    with Traffic(url) as traffic:
        os.kill(before, signal.SIGKILL)
        until(lambda: pids("ServeController") - {before}, 60, "no new controller")
        until(lambda: replica_counts() == {"RUNNING": 2}, 60, "it does not know its replicas again")
    assert not traffic.failed


def test_a_killed_proxy_comes_back(pair: ChatArgs, url: str) -> None:
    (before,) = pids("ProxyActor")
    os.kill(before, signal.SIGKILL)

    def answers() -> bool:
        try:
            return httpx.post(url + CHAT, headers=HEADERS, json=body("well"), timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    until(answers, 60, "no proxy")


@pytest.mark.long
def test_a_replica_that_stands_still_as_a_whole_is_replaced(http_port: int, url: str) -> None:
    """Nothing in the process can look at itself then: Serve finds that it does not answer. Its streams end when it is gone."""
    period_s = 2.0
    deploy(ARGS.model_copy(update={"min_replicas": 2, "max_replicas": 2, "health_period_s": period_s}), http_port)
    before = pids("ServeReplica")
    readers = [Reader(url, STREAM) for _ in range(8)]
    for reader in readers:
        assert reader.begun.wait(20)
    stopped = min(before)
    began = time.monotonic()
    os.kill(stopped, signal.SIGSTOP)
    try:
        until(lambda: psutil.Process(stopped).status() == psutil.STATUS_STOPPED, 10, "it was not stopped")
        until(lambda: len(pids("ServeReplica") - {stopped}) == 2 and replica_counts().get("RUNNING") == 2, 300, "not replaced")
        replaced_s = time.monotonic() - began
        assert httpx.post(url + CHAT, headers=HEADERS, json=body("well"), timeout=60).status_code == 200
        until(lambda: stopped not in pids("ServeReplica"), 300, "it stays")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGCONT)
    print(f"replaced after {replaced_s:.1f} s, health checks every {period_s:g} s; gone after {time.monotonic() - began:.1f} s")
    for reader in readers:
        cut = '"code": "replica_died"' in reader.text and "[DONE]" not in reader.text
        assert reader.whole != cut, (reader.problem, reader.text)
    assert {reader.whole for reader in readers} == {True, False}, "both replicas had streams"


# ---- versions come and go


def stored(store: Path, fingerprint: str) -> tuple[str, Path]:
    """An artifact whose weights are a few bytes; the URI of its manifest, and the stored weights."""
    (folder := store / fingerprint).mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights " + fingerprint.encode())

    def upload(prefix: str) -> artifact.Output:
        return artifact.Output(artifact.upload_folder(prefix, folder, "export"))

    made = artifact.make(str(store / "made"), "train", fingerprint, {}, upload)
    return made.manifest_uri, next((store / "made").rglob("*.safetensors"))


def test_an_update_whose_weights_are_damaged_leaves_the_old_version_serving(
    pair: ChatArgs, http_port: int, url: str, tmp_path: Path
) -> None:
    manifest_uri, weights = stored(tmp_path, "d" * 16)
    weights.write_bytes(b"WEIGHTS " + b"d" * 16)
    before = pids("ServeReplica")
    with Traffic(url) as traffic:
        with pytest.raises(MedschoolError, match=r"sha256.*; the version before goes on serving"):
            deploy(pair.model_copy(update={"engine": "transformers", "model": manifest_uri}), http_port)
        assert pids("ServeReplica") == before, "the old replicas were not touched, and no other is left"
        assert serve.status().applications[APP_NAME].status == "RUNNING"
    assert not traffic.failed
    os.kill(min(before), signal.SIGKILL)  # the old version is the wanted one again: its replicas are replaced
    until(lambda: len(pids("ServeReplica") - {min(before)}) == 2, 60, "not replaced")
    until(lambda: replica_counts() == {"RUNNING": 2}, 60, "not replaced")


def test_an_update_without_room_is_given_up(pair: ChatArgs, http_port: int, url: str) -> None:
    before = pids("ServeReplica")
    with Traffic(url) as traffic:
        with pytest.raises(ServiceError, match=r"did not start within 2 s; the version before goes on serving"):
            deploy(pair.model_copy(update={"num_cpus": 64, "start_timeout_s": 2}), http_port)
        assert replica_counts() == {"RUNNING": 2} and pids("ServeReplica") == before
    assert not traffic.failed


def test_an_update_drops_no_request_and_cuts_no_stream(pair: ChatArgs, http_port: int, url: str) -> None:
    before = pids("ServeReplica")
    reader = Reader(url, STREAM * 2)
    assert reader.begun.wait(20)
    with Traffic(url) as traffic:
        deploy(pair.model_copy(update={"served_name": "echo", "max_context_tokens": 255}), http_port)
        until(lambda: not pids("ServeReplica") & before, 60, "the old replicas do not end")
    assert not traffic.failed and reader.whole


def test_answers_are_finished_before_the_machine_is_stopped(pair: ChatArgs, http_port: int, url: str, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "api_key").write_text(KEY)
    readers = [Reader(url, STREAM * 2) for _ in range(6)]
    for reader in readers:
        assert reader.begun.wait(20)
    said: list[str] = []
    address = ray.get_runtime_context().gcs_address
    finish_answers(Services(tmp_path, {"serve": http_port}), lambda: {"RAY_ADDRESS": address}, said.append)
    assert "answers are finished first" in said[0] and len(said) == 1
    assert APP_NAME not in serve.status().applications and not pids("ServeReplica")
    assert all(reader.whole for reader in readers)


def test_a_first_version_that_can_not_start_says_why_and_is_not_tried_for_ever(
    http_port: int, url: str, tmp_path: Path, pair: ChatArgs
) -> None:
    drain.drain_application()
    manifest_uri, weights = stored(tmp_path, "e" * 16)
    weights.unlink()
    with pytest.raises(MedschoolError, match=r"model\.safetensors"):
        deploy(ARGS.model_copy(update={"engine": "transformers", "model": manifest_uri}), http_port)
    time.sleep(2)
    assert not pids("ServeReplica"), "it is not started again and again"
    assert httpx.get(f"{url}/health/live").status_code in (404, 503)


# ---- weights and engines


def test_planted_weights_fail_the_probe_of_the_real_engine(tmp_path: Path) -> None:
    from medschool.serve.paged import TransformersEngine

    loads: list[Load] = []

    def probed(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        weights = load_file(file)
        save_file({name: change(weight).contiguous() for name, weight in weights.items()}, file, {"format": "pt"})
        engine = TransformersEngine(tmp_path, [2], context_tokens=64, places=2, dtype="fp32")
        try:
            probe(engine, CheckpointText(tmp_path), 64)
            assert engine.turns > 0
            loads.append(engine.load())
        finally:
            engine.stop()

    write_model(tmp_path)
    file = tmp_path / "model.safetensors"
    probed(lambda weight: weight)
    assert loads == [Load()]
    with pytest.raises(ServiceError, match="equally likely"):
        probed(torch.zeros_like)
    with pytest.raises(ServiceError, match="is nan"):
        probed(lambda weight: torch.full_like(weight, math.nan))


@pytest.mark.parametrize("told", [HANG, pytest.param(DIE, marks=pytest.mark.long)])
def test_a_replica_whose_engine_dies_or_hangs_tells_its_clients_and_is_replaced(
    told: str, http_port: int, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "Replica", CommandedReplica)
    period_s = 4.0
    deploy(ARGS.model_copy(update={"health_period_s": period_s}), http_port)
    (before,) = pids("ServeReplica")
    other, began = Reader(url, STREAM * 2), time.monotonic()
    assert other.begun.wait(20)
    stuck = Reader(url, told)
    until(lambda: '"error"' in stuck.text and '"error"' in other.text, 60, "no error event")
    for reader in (stuck, other):
        assert "[DONE]" not in reader.text and '"code":"engine_fault"' in reader.text
    until(lambda: replica_counts() == {"RUNNING": 1} and before not in pids("ServeReplica"), 60, "not replaced")
    found_s = time.monotonic() - began
    assert httpx.post(url + CHAT, headers=HEADERS, json=body("well"), timeout=60).status_code == 200
    assert found_s < 3 * period_s + 20, "three health periods, and a start"


# ---- a node


@pytest.fixture
def second_node(http_port: int) -> Iterator[dict[str, Any]]:
    """A node of this cluster with four CPUs; its proxy has a port of its own, since both are one machine."""
    known = {node["NodeID"] for node in ray.nodes()}
    before = {process.pid for process in psutil.process_iter()}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own_port = str(free.getsockname()[1])
    address = ray.get_runtime_context().gcs_address
    command = [str(Path(sys.executable).with_name("ray")), "start", "--address", address, "--num-cpus", "4"]
    quiet = ["--disable-usage-stats", "--object-store-memory=100000000", "--min-worker-port=0", "--max-worker-port=0"]
    environment = {**os.environ, "RAY_SERVE_WORKER_PROXY_HTTP_PORT": own_port}
    subprocess.run([*command, *quiet], check=True, env=environment, capture_output=True, timeout=120)
    until(lambda: len(_alive() - known) == 1, 30, "the node does not come")
    (node,) = _alive() - known
    yield {"id": node, "address": address}
    session = str(Path(os.environ["MEDSCHOOL_CACHE"]).parent)  # all of this Ray name it
    for process in psutil.process_iter():
        words = " ".join(_words(process))
        if process.pid not in before and session in words and ("/raylet/raylet" in words or "log_monitor.py" in words):
            for child in process.children(recursive=True):
                child.kill()
            process.kill()


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _nodes() -> set[str]:
    return {replica.get("node_id", "") for replica in drain._replicas()}


def test_a_node_that_is_drained_finishes_its_streams_and_others_take_over(
    http_port: int, url: str, second_node: dict[str, Any]
) -> None:
    drain.drain_application()

    class Full:
        """Holds the head's CPUs, so that the first replica lies elsewhere."""

        def ready(self) -> None: ...

    full = ray.remote(num_cpus=8)(Full).options(resources={"node:__internal_head__": 0.001}).remote()
    ray.get(full.ready.remote())
    deploy(ARGS, http_port)
    assert _nodes() == {second_node["id"]}
    ray.kill(full)
    readers = [Reader(url, STREAM) for _ in range(4)]
    for reader in readers:
        assert reader.begun.wait(20)
    with Traffic(url, per_s=10) as traffic:
        command = [sys.executable, "-m", "medschool.serve.drain", second_node["id"], "--deadline-s", "200"]
        subprocess.run(command, check=True, env={**os.environ, "RAY_ADDRESS": second_node["address"]}, timeout=200)
        assert second_node["id"] not in _nodes()
        until(lambda: replica_counts() == {"RUNNING": 1}, 30, "nobody took over")
    assert all(reader.whole for reader in readers) and not traffic.failed


# ---- how many replicas


def test_a_fixed_number_of_replicas_or_serve_s_own_autoscaler() -> None:
    assert replicas(2, 2, 8, 300) == {"num_replicas": 2}
    found = replicas(0, 3, 4, 60)["autoscaling_config"]
    assert (found.min_replicas, found.max_replicas, found.initial_replicas) == (0, 3, 1)
    assert (found.target_ongoing_requests, found.downscale_delay_s) == (4, 60)
    assert rollout.options()["max_surge_percent"] == 100
    with pytest.raises(ValueError, match="max_replicas 1 is below min_replicas 2"):
        ChatArgs(engine="echo", min_replicas=2)


def test_the_recipe_s_replicas_are_those_that_are_deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.run import Run
    from jobs.serve import serve as serve_job

    asked: list[ChatArgs] = []
    monkeypatch.setattr(on_ray, "deploy", lambda args, port, tls: asked.append(args) or "http://x")
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    wanted = ["serve.min_replicas=0", "serve.max_replicas=3", "serve.target_requests=2.5", "serve.health_period_s=7"]
    run = Run(load(tmp_path / "tiny.yaml", wanted), "", cast("Any", SimpleNamespace(put=print)))
    serve_job(run)
    assert (asked[0].min_replicas, asked[0].max_replicas, asked[0].target_requests, asked[0].health_period_s) == (0, 3, 2.5, 7)


@pytest.mark.long
def test_replicas_follow_the_requests_down_to_none_and_up_again(http_port: int, url: str) -> None:
    few = {"min_replicas": 0, "max_replicas": 2, "target_requests": 2, "downscale_delay_s": 3}
    args = ARGS.model_copy(update=few)
    deploy(args, http_port)
    until(lambda: not replica_counts(), 120, "it does not go to zero")
    assert httpx.post(url + CHAT, headers=HEADERS, json=body("well"), timeout=60).status_code == 200, "from none"
    readers = [Reader(url, STREAM * 2, max_tokens=200) for _ in range(8)]
    until(lambda: replica_counts().get("RUNNING") == 2, 120, "it does not go to two")
    assert all(reader.whole for reader in readers)
    until(lambda: not replica_counts(), 120, "it does not go to zero again")
    assert not pids("ServeReplica")
    woken = args.model_copy(update={"max_context_tokens": 255})
    deploy(woken, http_port)  # an update of a sleeping application is tried as any other
    assert serve.status().applications[APP_NAME].status == "RUNNING"


def test_the_numbers_of_each_replica_stand_on_ray_s_endpoint(http_port: int, url: str) -> None:
    deploy(ARGS, http_port)
    assert httpx.post(url + CHAT, headers=HEADERS, json=body("well"), timeout=60).status_code == 200
    node = next(node for node in ray.nodes() if node["Alive"] and node["Resources"].get("node:__internal_head__"))
    endpoint = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def shown(start: str) -> list[str]:
        return [
            line for line in httpx.get(endpoint, timeout=10).text.splitlines() if line.startswith(f"ray_medschool_serve_{start}")
        ]

    until(lambda: shown("tokens_total") and shown("first_token_seconds_count"), 60, "not shown")
    (prompt,) = [line for line in shown("tokens_total") if 'kind="prompt"' in line and "replica=" in line][-1:]
    assert float(prompt.rsplit(" ", 1)[1]) >= 4
    for name in ("requests_total", "batch_answers", "waiting_answers", "cache_used_ratio", "answers_in_flight"):
        until(lambda name=name: shown(name), 30, name)
        assert all('deployment="Chat"' in line for line in shown(name)), name


@pytest.mark.long
def test_an_alias_moved_to_planted_weights_changes_nothing_and_to_sound_ones_drops_nothing(
    http_port: int, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/registry.db")

    def promoted(fingerprint: str, change: Callable[[torch.Tensor], torch.Tensor]) -> str:
        """A version with changed weights, under the alias now; the first digits of its digest."""
        (folder := tmp_path / fingerprint).mkdir()
        write_model(folder)
        weights = load_file(folder / "model.safetensors")
        save_file(
            {name: change(weight).contiguous() for name, weight in weights.items()},
            folder / "model.safetensors",
            {"format": "pt"},
        )

        def upload(prefix: str) -> artifact.Output:
            return artifact.Output(artifact.upload_folder(prefix, folder, "export"))

        made = artifact.make(str(tmp_path / "store"), "train", fingerprint, {}, upload)
        registry.register(made, "tiny", "champion", run=None, tags={})
        return made.digest[:16]

    def served() -> str:
        return httpx.get(f"{url}/v1/models", headers=HEADERS).json()["data"][0]["version"]

    args = ARGS.model_copy(update={"engine": "transformers", "model": "models:/tiny@champion", "dtype": "fp32"})

    first = promoted("1" * 16, lambda weight: weight)
    deploy(args, http_port)
    assert served() == first
    promoted("2" * 16, lambda weight: torch.full_like(weight, math.nan))
    with Traffic(url, per_s=5) as traffic:
        with pytest.raises(ServiceError, match=r"warm-up probe.* nan.*; the version before goes on serving"):
            deploy(args, http_port)
        assert served() == first
        third = promoted("3" * 16, lambda weight: weight * 1.01)
        deploy(args, http_port)
        assert served() == third
    assert not traffic.failed


@pytest.mark.long
def test_a_killed_replica_adds_less_than_a_second_to_one_request_in_a_hundred(http_port: int, url: str) -> None:
    deploy(ARGS.model_copy(update={"min_replicas": 2, "max_replicas": 2}), http_port)
    with Traffic(url) as calm:
        time.sleep(30)
    with Traffic(url) as hit:
        time.sleep(10)
        killed = min(pids("ServeReplica"))
        os.kill(killed, signal.SIGKILL)
        back_s = until(lambda: len(pids("ServeReplica") - {killed}) == 2 and replica_counts() == {"RUNNING": 2}, 60, "not back")
        time.sleep(10)
    assert not calm.failed and back_s < 20
    slow_s, calm_s = (sorted(one.seconds for one in run.outcomes)[int(0.99 * len(run.outcomes))] for run in (hit, calm))
    print(f"p99 {calm_s:.3f} s calm, {slow_s:.3f} s with a killed replica; back in {back_s:.1f} s; {len(hit.failed)} failed")
    assert slow_s < calm_s + 1
