"""A real Prometheus over a real Ray: the numbers of a run arrive under their names, and stay while nobody renews them.

All expressions over a whole run are asked in tests/e2e/test_metrics.py; here those of a training, a study and a stage.
"""

import functools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from promql import alerts

from medschool.cluster.ports import is_free
from medschool.cluster.prometheus import executable, write_config

pytestmark = [
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus: apt-get install prometheus"),
    pytest.mark.timeout(180),
]
STEP = {
    "step": 3, "loss": 2.5, "loss/books": 2.25, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 1000.0, "goodput": 0.5, "rss_bytes": 1e9,
    "skipped_batches": 2, "failed_checkpoints": 1, "step_s": 0.5, "data_wait_s": 0.5, "wall_s": 9.0,
}  # fmt: skip

RUN = "watched"


def mine(name: str) -> str:
    """A number of this file's run: other tests' runs show theirs on the same Ray."""
    return f'ray_medschool_{name}{{run="{RUN}"}}'


class Asked:
    """A Prometheus and its answers."""

    def __init__(self, url: str) -> None:
        self._url = url

    def value(self, expression: str) -> list[tuple[dict[str, str], float]]:
        answer = httpx.get(f"{self._url}/api/v1/query", params={"query": expression}, timeout=30).json()
        assert answer["status"] == "success", answer
        return [(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]

    def wait(self, expression: str) -> list[tuple[dict[str, str], float]]:
        deadline_s = time.monotonic() + 60
        while not (found := self.value(expression)):
            assert time.monotonic() < deadline_s, f"{expression} has no value"
            time.sleep(0.5)
        return found

    def firing(self) -> set[str]:
        rules = httpx.get(f"{self._url}/api/v1/rules", timeout=30).json()["data"]["groups"]
        return {rule["name"] for group in rules for rule in group["rules"] if rule["state"] != "inactive"}


@pytest.fixture(scope="module")
def asked(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """A Prometheus with the shipped files, in less time, over the head of these tests' Ray."""
    import ray

    folder = tmp_path_factory.mktemp("prometheus")
    node = next(node for node in ray.nodes() if node["Alive"])
    target = f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
    (folder / "list.json").write_text(json.dumps([{"labels": {"job": "ray"}, "targets": [target]}]))
    config = write_config(folder / "metrics", folder / "list.json")
    faster = {"scrape_interval: 10s": "scrape_interval: 3s", "evaluation_interval: 10s": "evaluation_interval: 1s"}
    text = config.read_text()
    config.write_text(functools.reduce(lambda told, old: told.replace(old, faster[old]), faster, text))
    port = next(port for port in range(21900, 22900) if is_free(port))
    command = [
        executable(),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield Asked(_ready(f"http://127.0.0.1:{port}", process, folder / "log"))
    finally:
        process.terminate()
        process.wait(30)


def _ready(url: str, process: subprocess.Popen[bytes], log: Path) -> str:
    deadline_s = time.monotonic() + 60
    while True:
        assert process.poll() is None and time.monotonic() < deadline_s, log.read_text()
        try:
            if httpx.get(f"{url}/-/ready", timeout=5).status_code == 200:
                return url
        except httpx.HTTPError:
            pass
        time.sleep(0.2)


@pytest.fixture(scope="module")
def shown(asked: Asked) -> Iterator[Asked]:
    """An actor that shows one step and a stage once, and restarts and trials as often as a controller and a driver do."""
    import ray

    @ray.remote(num_cpus=0)
    class Shows:
        def show(self, step: dict[str, float]) -> None:
            from medschool.gauges import Gauges, count_stage

            self._step = Gauges(RUN, "pretrain", "control", 12)
            self._step(step)
            for _ in range(2):
                count_stage(RUN, "corpus/papers", {"read": 9, "dropped": {"licence": 2}}, 1.5)

        def work(self) -> None:
            from medschool.gauges import Restarts, TrialStates

            restarts, states = Restarts(RUN, "pretrain", "control"), TrialStates(RUN)
            while True:
                restarts.show(2, 1)
                states.show(["RUNNING", "PENDING", "ERROR", "TERMINATED", "TERMINATED"])
                time.sleep(0.5)

    actor = Shows.remote()
    ray.get(actor.show.remote(STEP))
    actor.work.remote()
    yield asked
    ray.kill(actor)


def test_numbers_arrive_with_their_labels(shown: Asked) -> None:
    (labels, loss), *others = shown.wait(mine("train_loss"))
    assert loss == 2.5 and not others and (labels["run"], labels["phase"], labels["trial"]) == (RUN, "pretrain", "control")
    assert shown.wait(mine("train_source_loss"))[0][1] == 2.25
    assert shown.wait(f"max({mine('train_step')}) / max({mine('train_planned_steps')})")[0][1] == 0.25
    restarts = {labels["because"]: value for labels, value in shown.wait(mine("train_restarts"))}
    assert restarts == {"failure": 2, "preemption": 1}
    states = {labels["state"]: value for labels, value in shown.wait(mine("study_trials"))}
    assert states == {"waiting": 1, "running": 1, "done": 2, "failed": 1}
    records = {labels["counted"]: value for labels, value in shown.wait(f"sum by (counted) ({mine('stage_records_total')})")}
    assert records == {"read": 18, "dropped/licence": 4} and shown.wait(mine("stage_seconds_total"))[0][1] == 3.0


def test_a_step_is_shown_for_as_long_as_it_takes(shown: Asked) -> None:
    """Ray shows what is set for two of its intervals: here of a second, so a number that is not repeated is gone after 9."""
    shown.wait(mine("train_step"))
    time.sleep(9)
    assert [value for _, value in shown.wait(mine("train_step"))] == [3.0]


def test_alerts_that_this_run_deserves_are_raised(shown: Asked) -> None:
    deserved = {"BatchesSkipped", "CheckpointsFail", "TrialFailed", "GoodputLow", "WaitingForData"}  # the last two are pending
    deadline_s = time.monotonic() + 60
    while not deserved <= shown.firing():
        assert time.monotonic() < deadline_s, deserved - shown.firing()
        time.sleep(0.5)
    calm = {"TrainingRestartsOften", "NodeNotScraped", "ServingFails", "ReplicaMissing"}
    assert calm <= {rule["alert"] for rule in alerts()} and not calm & shown.firing()
