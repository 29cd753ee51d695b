"""A user's path, with nothing replaced: local services, one submitted job, a killed driver, a second run, the served model.

The text and the model are those of tests/tiny.py, in the formats and under the keys of the quickstart recipe; the store, Ray, MLflow and
Serve are the real ones, in a home of this test's own.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from medschool.cluster import process, state

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes" / "quickstart.yaml")
OVERRIDES = [
    "model.uri=raw/models/tiny", "model.dtype=fp32", "clean.min_chars=40",
    "sources.books.files=[{uri: raw/hpo/hp.obo, format: hpo}]",
    "sources.papers.files=[{uri: raw/medline/*.xml.gz, format: medline}]",
    "tokens={row_tokens: 64, rows_per_shard: 64, heldout_tokens: 600, heldout_document_tokens: 64}",
    "instructions.conclusions={files: [{uri: raw/hpo/hp.obo, format: hpo_graph}], licences: [hpo], conversations: 40}",
    "exams.mmlu_clinical.items=30", "exams.mmlu_clinical.generated_items=4", "probes.items=8", "chats.row_tokens=256",
    "pretrain.length.steps=60", "pretrain.optimizer.lr=1e-2", "instruct.length.steps=40", "serve.max_context_tokens=256",
    "cluster.score_workers=1", "cluster.checkpoint_every_steps=5",
]  # fmt: skip
SETTINGS = [word for override in OVERRIDES for word in ("--set", override)]
FOREIGN = ("AWS_", "MEDSCHOOL_", "MLFLOW_", "RAY_", "PYTHONPATH", "HF_")

pytestmark = pytest.mark.timeout(1200)


@dataclass(frozen=True)
class User:
    """Someone at a terminal in an own folder."""

    home: Path
    known: dict[str, str] = field(default_factory=dict)
    """What `services` has found."""

    @property
    def variables(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        return kept | {"MEDSCHOOL_HOME": str(self.home), "MEDSCHOOL_CACHE": str(self.home / "cache"), "OMP_NUM_THREADS": "1"}

    def command(self, *words: str) -> list[str]:
        return [str(Path(sys.executable).with_name("medschool")), *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), env=self.variables, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Ctrl-C reaches it also where these tests run in the background of a shell, which ignores it."""
        return subprocess.Popen(
            self.command(*words), env=self.variables, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def services(self) -> dict[str, str]:
        """The variables of this home's services, which stay the same as long as they run."""
        if not self.known:
            code = "import json; from medschool.cluster import local, state; print(json.dumps(local.environment(state.home())))"
            path = {"PYTHONPATH": str(ROOT / "platform")}
            found = subprocess.run(
                [sys.executable, "-c", code], env=self.variables | path, capture_output=True, text=True, check=True
            )
            self.known.update(json.loads(found.stdout))
        return dict(self.known)

    def jobs(self, method: str, path: str = "", **more: Any) -> httpx.Response:
        """Ray's jobs API, asked with the token of this home."""
        variables = self.services()
        headers = {"Authorization": f"Bearer {Path(variables['RAY_AUTH_TOKEN_PATH']).read_text().strip()}"}
        return httpx.request(method, f"{variables['MEDSCHOOL_RAY_JOBS']}/api/jobs/{path}", headers=headers, timeout=60, **more)


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    person = User(tmp_path_factory.mktemp("e2e") / "home")
    try:
        started = person.run("up")
        assert started.returncode == 0, started.stdout + started.stderr
        put_inputs(person, tmp_path_factory.mktemp("raw"))
        yield person
    finally:
        stopped = person.run("down")
        shutil.rmtree(person.home, ignore_errors=True)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert [
        process for process in psutil.process_iter(["cmdline"]) if str(person.home) in " ".join(process.info["cmdline"] or [])
    ] == []


def put_inputs(user: User, folder: Path) -> None:
    import s3fs
    from tiny import write_raw

    write_raw(folder)
    variables = user.services()
    store = s3fs.S3FileSystem(
        key=variables["AWS_ACCESS_KEY_ID"], secret=variables["AWS_SECRET_ACCESS_KEY"], endpoint_url=variables["AWS_ENDPOINT_URL"]
    )
    store.put(str(folder / "raw"), "medschool/raw", recursive=True)


KILLED_IN = [
    "instructions/rationale", "corpus/papers", "tokens/papers", "overlap/papers", r"step (1[1-9]|[2-5]\d)/60", "evaluate/control",
    r"step (1[1-9]|2\d)/40", r"registered .* version 1",
]  # fmt: skip
"""Where the driver is killed, one submission after the other: in stages of each shape, and inside both trainings.

A stage is named; it may be over by the time its line is read, and then the next one is hit.
"""


def killed_at(user: User, pattern: str) -> list[str]:
    """Submit, wait for a line, kill the job's driver; the lines until then. AssertionError when the line never came."""
    store = user.services()["AWS_ENDPOINT_URL"]  # another home's runs on this machine are not ours to kill
    submitted = user.start("submit", RECIPE, *SETTINGS)
    assert submitted.stdout is not None
    seen: list[str] = []
    for line in submitted.stdout:
        seen.append(line)
        if re.search(pattern, line):
            break
    else:
        raise AssertionError(f"no line matched {pattern}:\n" + "".join(seen))
    drivers = [
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [])[1:3] == ["-m", "jobs.whole_run"] and process.environ().get("AWS_ENDPOINT_URL") == store
    ]
    assert drivers, "".join(seen)
    for driver in drivers:
        driver.send_signal(signal.SIGKILL)
    assert submitted.wait(120) != 0
    return seen


@pytest.fixture(scope="module")
def killed(user: User, request: pytest.FixtureRequest) -> list[list[str]]:
    """The outputs of runs whose driver was killed: in every stage of the list, or in a training where long tests are left out."""
    everywhere = "not long" not in request.config.option.markexpr
    return [killed_at(user, pattern) for pattern in (KILLED_IN if everywhere else [KILLED_IN[4]])]


@pytest.fixture(scope="module")
def interrupted(user: User, killed: list[list[str]]) -> str:
    """The output of a run that the user stopped with Ctrl-C."""
    stopped = user.start("submit", RECIPE, *SETTINGS)
    assert stopped.stdout is not None
    seen = []
    for line in stopped.stdout:
        seen.append(line)
        if re.search(r"tokenizer +cached", line):
            stopped.send_signal(signal.SIGINT)
    assert stopped.wait(120) == 130, "".join(seen)
    return "".join(seen)


@pytest.fixture(scope="module")
def first_run(user: User, interrupted: str) -> str:
    """The output of the run that finished, after all those that did not."""
    finished = user.run("submit", RECIPE, *SETTINGS)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_a_killed_driver_costs_no_finished_stage(killed: list[list[str]], first_run: str) -> None:
    done: set[str] = set()
    runs = (*killed, first_run.splitlines())
    for lines in runs:
        begun = {found[1] for line in lines if (found := re.search(r"\] (\S+) +run", line))}
        assert not begun & done, "repeated: " + ", ".join(begun & done)
        done |= {found[1] for line in lines if (found := re.search(r"\] (\S+) +done in", line))}
    trained = {found[1] for lines in killed if (found := re.search(r"step \d+/(\d+)", lines[-1]))}
    assert "60" in trained
    for phase in ({"60": "pretrain", "40": "instruct"}[steps] for steps in trained):
        pattern = rf"resuming at step [1-5]?[05] from s3://medschool/artifacts/{phase}/"
        assert any(re.search(pattern, line) for lines in runs for line in lines), phase


def test_ctrl_c_stops_the_job_and_says_that_nothing_is_lost(user: User, interrupted: str) -> None:
    assert "the next submit goes on from there" in interrupted
    identity = re.search(r"submitted (\S+)", interrupted)
    assert identity
    assert user.jobs("GET", identity[1]).json()["status"] in ("STOPPED", "FAILED")


def test_the_run_ends_with_a_table_a_report_and_a_served_model(user: User, first_run: str) -> None:
    assert re.search(r"knowledge - control +perplexity +papers .* helped", first_run)
    assert "Gate: passed." in first_run and "Not for clinical use." in first_run
    assert re.search(r"overlap \(exam_items 48, checked \d+, removed 2\)", first_run)
    page = user.home / "results" / "quickstart" / "report.html"
    assert str(page) in first_run and page.read_text().startswith("<!DOCTYPE html>")


def test_a_second_run_finds_everything_finished(user: User, first_run: str) -> None:
    again = user.run("submit", RECIPE, *SETTINGS)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("  cached") == 36 and "  run" not in again.stdout and "study:" not in again.stdout
    assert numbers(again.stdout) == numbers(first_run)


def numbers(told: str) -> str:
    """The tables but the one of nodes, which counts the hours of this job."""
    tables = told[told.index("Held-out perplexity") :].split("registered")[0]
    rest, found = re.subn(r"Nodes while this job ran\n\s*\n(?:.*\S.*\n)+", "", tables)
    assert found == 1
    return rest


def test_plan_and_status_are_machine_readable(user: User, first_run: str) -> None:
    plan = json.loads(user.run("plan", RECIPE, *SETTINGS, "--json").stdout)
    assert {stage["state"] for stage in plan["stages"]} == {"cached"}
    assert plan["totals"]["pretrain"]["steps"] == 120 and plan["totals"]["pretrain"]["tokens"] == 120 * 20 * 64
    assert plan["totals"]["instruct"]["steps"] == 40
    assert [course["shared_with"] for course in plan["phases"]] == [None, None, "pretrain/knowledge", None]
    changed = json.loads(user.run("plan", RECIPE, *SETTINGS, "--set", "pretrain.optimizer.lr=2e-2", "--json").stdout)
    states = {stage["name"]: stage["state"] for stage in changed["stages"]}
    assert states["tokens/papers"] == "cached" and states["pretrain/knowledge"] == "run" and states["evaluate/base"] == "cached"
    status = json.loads(user.run("status", "--json").stdout)
    assert status["serve"]["ready"] is True and status["serve"]["url"].startswith("http://127.0.0.1:")
    assert status["ray"]["jobs"][0]["status"] == "SUCCEEDED"


def test_mlflow_has_the_losses_once_the_same_numbers_and_the_alias(user: User, first_run: str) -> None:
    from mlflow import MlflowClient

    from medschool.ablate.report import mlflow_metrics

    client = MlflowClient(user.services()["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("quickstart")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert len(runs) == 5 == len(client.search_runs([experiment.experiment_id]))
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    study = runs.pop("study")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {study.info.run_id}
    for name, key, steps in (
        ("control", "pretrain/loss", 60),
        ("knowledge", "pretrain/loss", 60),
        ("instructed", "instruct/loss", 40),
    ):
        history = client.get_metric_history(runs[name].info.run_id, key)
        assert [point.step for point in history] == list(range(1, steps + 1)), name
    results = json.loads((user.home / "results" / "quickstart" / "results.json").read_text())
    for name, run in runs.items():
        metrics = mlflow_metrics(results, name)
        assert {"perplexity_papers", "accuracy_mmlu_clinical"} <= metrics.keys()
        assert {key: run.data.metrics[key] for key in metrics} == metrics
        assert f"{metrics['perplexity_papers']:.2f}" in first_run
    version = client.get_model_version_by_alias("medschool-quickstart", "champion")
    phase = "instruct" if results["gate"]["winner"] == "instructed" else "pretrain"
    assert version.tags["manifest_uri"].startswith(f"s3://medschool/artifacts/{phase}/")
    assert version.tags["variant"] == results["gate"]["winner"]


def test_the_served_model_answers_the_openai_client(user: User, first_run: str) -> None:
    url = json.loads(user.run("status", "--json").stdout)["serve"]["url"]
    key = (user.home / "secrets" / "api_key").read_text().strip()
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key)
    assert [model.id for model in client.models.list()] == ["medschool"]
    asked: dict[str, Any] = {
        "model": "medschool",
        "messages": [{"role": "user", "content": "renal dose"}],
        "max_tokens": 12,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**asked).choices[0].message.content
    parts = [
        chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True) if chunk.choices
    ]
    assert whole and "".join(parts) == whole
    for wrong in ("", "Bearer nope", f"Basic {key}"):
        assert httpx.get(f"{url}/v1/models", headers={"Authorization": wrong} if wrong else {}).status_code == 401


def test_everything_that_serves_listens_on_loopback(user: User, first_run: str) -> None:
    services = state.load(user.home)
    folders = [services.home, services.ray_folder]
    serving = process.ours(services.mark("ray"), list(services.sessions.values()), folders)
    sockets = [one for each in serving for one in each.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    assert any("ray::ServeReplica" in " ".join(each.cmdline()) for each in serving)
    assert {one.laddr.ip.removeprefix("::ffff:") for one in sockets} == {"127.0.0.1"}


def test_the_printed_curl_line_works_as_printed(user: User, first_run: str) -> None:
    line = next(line for line in first_run.splitlines() if line.strip().startswith("curl"))
    answer = json.loads(subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert answer["choices"][0]["message"]["role"] == "assistant"


def test_no_secret_is_in_a_job_s_metadata_or_log(user: User, first_run: str) -> None:
    variables = user.services()
    secrets = [
        variables["AWS_SECRET_ACCESS_KEY"],
        variables["MEDSCHOOL_API_KEY"],
        Path(variables["RAY_AUTH_TOKEN_PATH"]).read_text().strip(),
    ]
    jobs = user.jobs("GET")
    assert jobs.status_code == 200 and "quickstart-" in jobs.text
    assert jobs.json()[0]["metadata"].keys() >= {"git_sha", "recipe_digest"}
    folders = (
        user.home / "logs",
        (user.home / "logs" / "ray").resolve(),
        user.home / "mlflow",
    )  # rglob does not enter a linked folder
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert any(path.name.startswith("job-driver-") for path in files)
    logs = "".join(path.read_text(errors="replace") for path in files)
    served = json.loads(user.run("status", "--json").stdout)["serve"]["url"]
    logs += httpx.get(f"{served}/metrics", headers={"Authorization": f"Bearer {variables['MEDSCHOOL_API_KEY']}"}).text
    for secret in secrets:
        assert secret not in jobs.text and secret not in first_run and secret not in logs


def test_errors_are_two_lines_and_a_code(user: User) -> None:
    cases = {
        ("submit", RECIPE, "--set", "pretrain.batch_row=3"): (2, "unknown key", "did you mean `batch_rows`"),
        ("submit", RECIPE, "--job", "corpsu"): (2, "no job 'corpsu'", "corpus"),
        ("submit", RECIPE, *SETTINGS, "--set", "sources.papers.files=[{uri: raw/nothing/*.xml, format: medline}]"): (
            1,
            "no file matches",
            "medschool fetch",
        ),
        ("submit", RECIPE, *SETTINGS, "--set", "cluster.num_workers=40", "--set", "seed=8"): (1, "logical CPUs", "--num-cpus 42"),
    }
    for words, (code, problem, remedy) in cases.items():
        result = user.run(*words)
        text = result.stdout + result.stderr
        assert result.returncode == code, text
        error, fix = (next(line for line in text.splitlines() if line.startswith(start)) for start in ("error: ", "fix: "))
        assert problem in error and remedy in fix and "Traceback" not in text


WAITS = "import ray; ray.init(); from ray.util.placement_group import placement_group as p; ray.get(p([{'CPU': 99}] * 2).ready())"


def test_why_a_job_waits_and_why_one_died(user: User, first_run: str) -> None:
    for name, code in (("waits", WAITS), ("dies", "1 / 0")):
        job = {"submission_id": name, "entrypoint": shlex.join(["python", "-c", code])}
        assert user.jobs("POST", json=job).status_code == 200

    def told(name: str, until: str) -> dict[str, Any]:
        for _ in range(60):
            found: dict[str, Any] = json.loads(user.run("why", name, "--json").stdout)
            if found["cause"] == until:
                return found
        raise AssertionError(found)

    assert told("dies", "a fault of the code")["told"] == ["ZeroDivisionError: division by zero"]
    assert told("waits", "waits for a place")["told"][0] == "no place for pending: 2 x {CPU: 99}"
    assert user.jobs("POST", "waits/stop").json() == {"stopped": True}
    assert told("waits", "somebody stopped it")["state"] == "STOPPED"
    assert "Ray knows no job nobody" in user.run("why", "nobody").stderr


def test_a_wrong_credential_and_a_dead_store_are_named(user: User) -> None:
    wrong = user.variables | {"AWS_SECRET_ACCESS_KEY": "wrong", "AWS_ACCESS_KEY_ID": user.services()["AWS_ACCESS_KEY_ID"]}
    for extra, problem in (
        (
            {"AWS_ENDPOINT_URL": user.services()["AWS_ENDPOINT_URL"].replace("127.0.0.1", "localhost")},
            "refuses these credentials",
        ),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "does not answer"),
    ):
        variables = wrong | {"MEDSCHOOL_STORE": "s3://medschool"} | extra
        began = time.monotonic()
        result = subprocess.run(
            user.command("plan", RECIPE), env=variables, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )
        assert problem in result.stdout and "blocked" in result.stdout, result.stdout + result.stderr
        assert time.monotonic() - began < 100
