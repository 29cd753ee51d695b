"""A cluster that starts from nothing: nodes come for a demand and go again, a refused launch is told, a whole recipe runs on it.

The autoscaler is Ray's own, its nodes are processes of this machine (tests/fake_cluster.py). What is asserted of the nodes is read
from the same timeline that a run writes beside its results.
"""

import json
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_cluster import FakeCluster, fake_cluster
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from test_whole_run import OVERRIDES

from medschool.cluster import submit, timeline
from medschool.cluster.timeline import Recorder, Timeline

ROOT = Path(__file__).parents[2]
HANG_S = 240.0
IDLE_S = 4.0

pytestmark = pytest.mark.timeout(900)


def until(seen: Callable[[], Any], what: str, hang_s: float = HANG_S) -> Any:
    """What `seen` gives, once that is something."""
    deadline = time.monotonic() + hang_s
    while not (found := seen()):
        assert time.monotonic() < deadline, f"not within {hang_s:g} s: {what}"
        time.sleep(0.5)
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[FakeCluster]:
    with started() as one:
        yield one


@contextmanager
def started(settings: dict[str, str] | None = None) -> Iterator[FakeCluster]:
    """A fake cluster, and this process as its client."""
    folder = Path(tempfile.mkdtemp(prefix="ms-fake-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch, fake_cluster(folder, IDLE_S, settings) as one:
        for name in ("MEDSCHOOL_STORE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        for name, value in one.environment.items():
            patch.setenv(name, value)
        yield one


class Job:
    """A Python program as a submitted job."""

    def __init__(self, program: str) -> None:
        self._client = submit.client()
        self.identity = self._client.submit_job(entrypoint=f"python -c {shlex.quote(program)}")

    def ended(self) -> dict[str, Any]:
        """What it printed as JSON, once it has succeeded."""
        until(lambda: self._client.get_job_info(self.identity).status.is_terminal(), f"the end of {self.identity}")
        log = self._client.get_job_logs(self.identity)
        assert str(self._client.get_job_info(self.identity).status) == "SUCCEEDED", log
        found: dict[str, Any] = json.loads(log.split("FOUND ")[-1].splitlines()[0])
        return found


BARRIER = """
import json, pathlib, ray, tempfile, time
ray.init(address="auto", log_to_driver=False)
before = ray.cluster_resources()
kept = tempfile.TemporaryDirectory()
folder = pathlib.Path(kept.name)

@ray.remote(num_cpus={cpus})
def meet(folder):
    where = ray.get_runtime_context().get_node_id()
    (folder / where).touch()
    while len(list(folder.iterdir())) < {count}:
        time.sleep(0.1)
    return where

print("FOUND " + json.dumps({{
    "nodes": ray.get([meet.remote(folder) for _ in range({count})]), "driver": ray.get_runtime_context().get_node_id(),
    "cpus before": before.get("CPU", 0),
}}))
kept.cleanup()
"""
"""Tasks that end once they stand on so many nodes."""


def test_a_demand_brings_nodes_and_they_go_again(cluster: FakeCluster) -> None:
    with Recorder(timeline.looking_at(cluster.address)) as recorder:
        found = Job(BARRIER.format(cpus=2, count=2)).ended()
        until(lambda: recorder.so_far().counts("cpu")[-1] == 0, "the end of idle nodes")
    seen = recorder.so_far()
    assert found["driver"] == FAKE_HEAD_NODE_ID and found["cpus before"] == 0
    assert len(set(found["nodes"])) == 2 and FAKE_HEAD_NODE_ID not in found["nodes"]
    counts = seen.counts("cpu")
    assert counts[0] == counts[-1] == 0 and max(counts) >= 2
    assert seen.types == ["cpu"], "nobody asked for the others"
    assert {moment.nodes.get("head") for moment in seen.moments} == {1}
    assert any(moment.coming.get("cpu") for moment in seen.moments), "they are announced"
    assert any(moment.waiting.get("CPU") for moment in seen.moments)
    assert seen.node_seconds()["cpu"] > 2 * IDLE_S


def test_a_refused_launch_is_told_with_the_clouds_words_and_tried_again(cluster: FakeCluster) -> None:
    from medschool.cluster.why import why

    words = "InsufficientInstanceCapacity: none left in us-west-2b"
    cluster.faults.write_text(json.dumps({"refused": {"gpu_train": words, "gpu_serve": words}}))
    job = Job(BARRIER.format(cpus=3, count=1))
    told = until(lambda: (found := why(job.identity)).cause and words in str(found.told) and found, "the cloud's words")
    assert told.cause == "waits for a place" and "quota" in told.remedy
    assert any("{'CPU': 3.0}" in line for line in told.told if line.startswith("demand: ")), told.told
    assert any(line.startswith("nodes: 1 head") for line in told.told), told.told
    cluster.faults.write_text("{}")
    assert job.ended()["nodes"][0] != FAKE_HEAD_NODE_ID
    assert why(job.identity).cause is None


TEXT_WORK = """
import json, ray, time
from jobs.run import quiet
ray.init(address="auto", log_to_driver=False)
quiet()
done = ray.data.range(60, override_num_blocks=60).map(lambda row: time.sleep(1) or row, num_cpus=1).take_all()
print("FOUND " + json.dumps({"rows": len(done)}))
"""
"""More tasks at once than all nodes of cpu hold."""


@pytest.mark.long
def test_work_on_text_never_brings_a_node_with_a_gpu(cluster: FakeCluster) -> None:
    with Recorder(timeline.looking_at(cluster.address)) as recorder:
        assert Job(TEXT_WORK).ended() == {"rows": 60}
    assert recorder.so_far().types == ["cpu"]


@pytest.mark.long
def test_a_machine_on_which_ray_never_runs_is_told_and_replaced() -> None:
    from medschool.cluster.why import why

    with started({"RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S": "30"}) as cluster:
        cluster.faults.write_text(json.dumps({"never_ready": ["gpu_train"]}))
        job = Job(BARRIER.format(cpus=3, count=1))
        told = until(lambda: (found := why(job.identity)).cause and "gpu_train" in str(found.told) and found, "what is coming")
        assert any(line.startswith("coming: ") and "gpu_train" in line for line in told.told), told.told
        cluster.faults.write_text("{}")
        assert job.ended()["nodes"][0] != FAKE_HEAD_NODE_ID


# ---- a whole recipe -----------------------------------------------------------------------------------------------------------

SETTINGS = [
    *OVERRIDES, "cluster.cpus_per_worker=3", "cluster.data_cpus=2", "serve.num_cpus=4", "pretrain.length.steps=6",
    "instruct.length.steps=6",
]  # fmt: skip
"""The shipped recipe at the size of tests/tiny.py: training asks for nodes of gpu_train, the served model for one of gpu_serve."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Timeline, Timeline, str, Path]]:
    """(timeline of the whole, that of the run, what the job printed, its folder of results)."""
    from tiny import write_raw

    store = tmp_path_factory.mktemp("store")
    write_raw(store)
    own = {"MEDSCHOOL_STORE": str(store), "MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db", "MEDSCHOOL_API_KEY": "k" * 20}
    with started(own) as cluster, Recorder(timeline.looking_at(cluster.address)) as recorder:
        words = ["recipes/quickstart.yaml", *(word for setting in SETTINGS for word in ("--set", setting))]
        identity = submit.submit(ROOT, "whole_run", "quickstart", words, {}, print)
        jobs = submit.client()
        until(lambda: jobs.get_job_info(identity).status.is_terminal(), f"the end of {identity}", 3000)
        log = jobs.get_job_logs(identity)
        assert str(jobs.get_job_info(identity).status) == "SUCCEEDED", log
        url = f"http://127.0.0.1:{cluster.environment['MEDSCHOOL_SERVE_PORT']}"
        asked = {"model": "medschool", "messages": [{"role": "user", "content": "renal dose"}], "max_tokens": 4}
        answer = httpx.post(f"{url}/v1/chat/completions", json=asked, headers={"Authorization": f"Bearer {'k' * 20}"}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert recorder.so_far().counts("gpu_serve")[-1] == 1, "the node of a served model stays"
        headers = {"Authorization": f"Bearer {Path(os.environ['RAY_AUTH_TOKEN_PATH']).read_text().strip()}"}
        httpx.delete(f"{cluster.jobs_url}/api/serve/applications/", headers=headers, timeout=120).raise_for_status()
        until(lambda: sum(recorder.so_far().moments[-1].nodes.values()) == 1, "the end of all nodes but the head")
        (results,) = (store / "results").iterdir()
        own_timeline = timeline.read(str(results))
        assert own_timeline is not None
        yield recorder.so_far(), own_timeline, log, results


def while_it_ran(seen: Timeline, kind: str, name: str) -> list[int]:
    """Nodes of one type at the moments that fall into the stages of a kind."""
    spans = [span for span in seen.spans if span.name.split("/")[0] == name]
    assert spans, name
    ends = [*(moment.at_s for moment in seen.moments[1:]), seen.ended_s]
    return [
        moment.nodes.get(kind, 0)
        for moment, end in zip(seen.moments, ends, strict=True)
        if any(span.began_s < end and moment.at_s < span.ended_s for span in spans)
    ]


def fewer_and_more_again(counts: list[int]) -> bool:
    """Whether nodes of a type went, and came again."""
    return any(max(counts[:place]) > counts[place] < max(counts[place:]) for place in range(1, len(counts)))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_nodes_come_for_data_for_training_and_for_serving_and_go(whole: tuple[Timeline, Timeline, str, Path]) -> None:
    seen, run, _, _ = whole
    assert seen.moments[0].nodes == {"head": 1} == seen.moments[-1].nodes
    assert {moment.nodes.get("head") for moment in seen.moments} == {1}
    assert seen.types[0] == "cpu" and set(seen.types) == {"cpu", "gpu_train", "gpu_serve"}
    assert max(while_it_ran(run, "cpu", "corpus")) >= 1
    assert max(while_it_ran(run, "gpu_train", "corpus")) == 0, "a node with a GPU for text"
    assert max(while_it_ran(run, "gpu_train", "pretrain")) == 2
    assert max(while_it_ran(run, "gpu_serve", "pretrain")) == 0
    assert max(while_it_ran(run, "gpu_serve", "serve")) == 1
    assert fewer_and_more_again(run.counts("gpu_train")), "between two variants there is scoring, which takes one node"


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_report_of_that_run_shows_its_nodes(whole: tuple[Timeline, Timeline, str, Path]) -> None:
    _, run, log, results = whole
    assert "serving models:/medschool-quickstart@champion" in log
    page, text = (results / "report.html").read_text(), (results / "report.md").read_text()
    assert 'aria-label="Nodes by type over' in page and "## Nodes by type" in text
    for kind in ("cpu", "gpu\\_train", "gpu\\_serve"):
        assert f"| {kind} |" in text
    assert {span.name.split("/")[0] for span in run.spans} >= {"corpus", "tokens", "pretrain", "instruct", "evaluate", "serve"}
