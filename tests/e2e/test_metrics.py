"""A whole run under a real Prometheus: each expression of the alerts and the dashboard is asked, each name in them must have been.

The run is that of test_whole_run.py with fewer steps: local services of this test's own, one submitted job, the served model. While
it runs, `status` is asked too.
"""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest
from promql import expressions, metric_names
from test_whole_run import RECIPE, SETTINGS, User, put_inputs

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus: apt-get install prometheus"),
    pytest.mark.timeout(2400),
]
SHORTER = ["--set", "pretrain.length.steps=20", "--set", "instruct.length.steps=12"]
NEEDS_GPU = {
    "ray_medschool_train_model_flops_utilization",
    "ray_medschool_train_accelerator_peak_bytes",
    "ray_node_gpus_utilization",
}


@dataclass(frozen=True)
class Watched:
    """A run that is over, with what was seen of it."""

    user: User
    url: str
    """Of Prometheus."""
    began_s: float
    statuses: list[dict[str, Any]]
    """What `status --json` said while it ran."""
    shown: str
    """What `status` said to people at the end."""

    def ask(self, path: str, **parameters: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=60)
        assert answer.json()["status"] == "success", (path, parameters, answer.text)
        return answer.json()["data"]

    def existed(self, name: str) -> bool:
        """Whether there was a series of this name since the run began, or its endpoint declares it."""
        span = {"start": self.began_s, "end": time.time()}
        return bool(self.ask("series", **{"match[]": name}, **span) or self.ask("metadata", metric=name))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    user, began_s = User(tmp_path_factory.mktemp("watched") / "home"), time.time()
    try:
        started = user.run("up", "--metrics")
        assert started.returncode == 0, started.stdout + started.stderr
        put_inputs(user, tmp_path_factory.mktemp("raw"))
        statuses = run_and_look(user)
        url = statuses[-1]["prometheus"]["url"]
        ask_the_model(user, statuses[-1]["serve"]["url"])
        time.sleep(45)  # Ray's numbers come every 10 s, and are scraped every 10 s
        yield Watched(user, url, began_s, statuses, user.run("status").stdout)
    finally:
        stopped = user.run("down")
        left = [each for each in psutil.process_iter(["cmdline"]) if str(user.home) in " ".join(each.info["cmdline"] or [])]
        shutil.rmtree(user.home, ignore_errors=True)
    assert stopped.returncode == 0 and "Prometheus: stopped" in stopped.stdout, stopped.stdout + stopped.stderr
    assert left == []


def run_and_look(user: User) -> list[dict[str, Any]]:
    """Submit, and ask for the status until the job is over; what was said."""
    submitted, statuses = user.start("submit", RECIPE, *SETTINGS, *SHORTER), list[dict[str, Any]]()
    while submitted.poll() is None:
        found = user.run("status", "--json")
        assert found.returncode == 0, found.stdout + found.stderr
        statuses.append(json.loads(found.stdout))
        time.sleep(2)
    assert submitted.stdout is not None
    assert submitted.returncode == 0, submitted.stdout.read()
    return [*statuses, json.loads(user.run("status", "--json").stdout)]


def ask_the_model(user: User, url: str) -> None:
    key = (user.home / "secrets" / "api_key").read_text().strip()
    body = {"model": "medschool", "messages": [{"role": "user", "content": "renal dose"}], "max_tokens": 12}
    for bearer, code in ((key, 200), (key, 200), ("wrong", 401)):
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {bearer}"}, timeout=120)
        assert answer.status_code == code, answer.text


def test_every_expression_is_one_that_prometheus_can_work_out(watched: Watched) -> None:
    span = {"start": watched.began_s, "end": time.time(), "step": 10}
    found = {where: watched.ask("query_range", query=text, **span)["result"] for where, text in expressions().items()}
    needs_gpu = {where for where, text in expressions().items() if metric_names(text) & NEEDS_GPU}
    empty = {where for where in found if where.startswith("panel ") and not found[where]}
    assert {where for where in empty - needs_gpu if "autoscaler_" not in expressions()[where]} == set()


def test_every_name_was_there(watched: Watched) -> None:
    names = {name for text in expressions().values() for name in metric_names(text)} - NEEDS_GPU
    assert {name for name in names if not watched.existed(name)} == set()
    assert not watched.existed("ray_medschool_train_never")


def test_no_alert_is_raised_by_a_run_that_went_well(watched: Watched) -> None:
    assert [each["labels"]["alertname"] for each in watched.ask("alerts")["alerts"] if each["state"] == "firing"] == []
    targets = watched.ask("targets")["activeTargets"]
    assert targets and {each["health"] for each in targets} == {"up"}


def test_status_told_how_far_the_run_was(watched: Watched) -> None:
    trained = [each["job"] for each in watched.statuses if each.get("job", {}).get("trainings")]
    assert trained, "no status fell into a training"
    for job in trained:
        stages = job["stages"]
        assert sum(len(stages[state]) for state in ("done", "running", "to_do", "failed")) == stages["total"]
        assert set(job["trainings"]) <= set(stages["running"]) and job["tokens_per_s"] > 0
    assert any(shown["goodput"] for job in trained for shown in job["trainings"].values())
    last = watched.statuses[-1]
    assert last["job"]["status"] == "SUCCEEDED" and last["job"]["stages"]["to_do"] == last["job"]["stages"]["running"] == []
    assert set(last["job"]["trials"].values()) == {"done"} and last["nodes"][0]["alive"] == 1
    assert last["spend"]["so_far"] is None and last["prometheus"]["ready"] is True
    assert f"{last['job']['stages']['total']} of {last['job']['stages']['total']} done" in watched.shown


def test_the_results_say_what_the_nodes_did(watched: Watched) -> None:
    cost = json.loads((watched.user.home / "results" / "quickstart" / "results.json").read_text())["cost"]
    (node,) = cost["nodes"]
    assert node["nodes"] == 1 and node["hours"] > 0 and node["usd"] is None
    (of_type,) = cost["node_types"]
    assert of_type["used"] > 0 and of_type["idle"] > 0 and of_type["lost"] == of_type["preempted"] == 0
