"""A tokens job that is killed again and again, with its Ray, ends with the bytes of one that was left alone, and repeats next to nothing.

Run as a script this file is the job: `python test_tokens_killed.py STORE RAY_FOLDER`.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from medschool import artifact
from medschool.artifact import Artifact, Output, write_parquet
from medschool.recipe import Recipe, load
from medschool.rows import DOCUMENT_SCHEMA, Document, table

STAGE, FINGERPRINT = "tokens/papers", "f" * 16
FILES, DOCUMENTS = 24, 40
SETTINGS = ("tokens.row_tokens=32", "tokens.rows_per_shard=128", "tokens.heldout_tokens=600")


def recipe_of(store: Path) -> Recipe:
    return load(store / "tiny.yaml", SETTINGS)


def inputs_of(store: Path) -> dict[str, Artifact]:
    found = {name: artifact.find(str(store), name, FINGERPRINT) for name in ("corpus/papers", "tokenizer")}
    return {name: made for name, made in found.items() if made}


def drive(store: Path, ray_folder: str) -> None:
    """The job, as jobs.makers runs it, on a Ray that does one task at a time; its portions are single files."""
    import ray

    from medschool.tokens import portions
    from medschool.tokens.on_ray import make_tokens

    portions.PORTION_BYTES = 1
    ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=100_000_000, _temp_dir=ray_folder)
    ray.data.DataContext.get_current().enable_progress_bars = False
    recipe, inputs = recipe_of(store), inputs_of(store)
    artifact.make(
        str(store), STAGE, FINGERPRINT, {}, lambda prefix: make_tokens(recipe, "papers", inputs, prefix, str(work_of(store)))
    )


def base_of(store: Path) -> Path:
    return store / "artifacts" / STAGE / FINGERPRINT


def work_of(store: Path) -> Path:
    return base_of(store) / "work"


def markers(store: Path, kind: str) -> set[str]:
    """Names of the finished portions (`dealt`) or groups of shards (`done`)."""
    return {path.name for path in work_of(store).glob(f"*/{kind}/*.json")}


def finished(store: Path) -> set[str]:
    return {f"{kind}/{name}" for kind in ("dealt", "done") for name in markers(store, kind)}


@dataclass(frozen=True)
class Ended:
    """How one attempt went."""

    returncode: int
    seconds: float
    log: str


def attempt(store: Path, kill_at: int | None = None, delay_s: float = 0.0) -> Ended:
    """Run the job; SIGKILL for it and its Ray when `kill_at` pieces of work are finished, and `delay_s` later."""
    ray_folder = tempfile.mkdtemp(prefix="ms-kill-", dir="/tmp")
    log = Path(ray_folder, "driver.log")
    began = time.monotonic()
    try:
        with log.open("w") as stream:
            job = subprocess.Popen([sys.executable, __file__, str(store), ray_folder], stdout=stream, stderr=subprocess.STDOUT)
        while job.poll() is None:
            if kill_at is not None and len(finished(store)) >= kill_at:
                time.sleep(delay_s)
                kill_all(job.pid, ray_folder)
            time.sleep(0.002)
        return Ended(job.returncode, time.monotonic() - began, log.read_text())
    finally:
        kill_all(None, ray_folder)
        shutil.rmtree(ray_folder, ignore_errors=True)


def kill_all(pid: int | None, ray_folder: str) -> None:
    """SIGKILL for a job, everything below it, and what of its Ray has got loose: all that names its own folder."""
    family = []
    if pid is not None and psutil.pid_exists(pid):
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    family += [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(ray_folder in word for word in process.info["cmdline"] or [])
    ]
    for process in family:
        if process.pid != psutil.Process().pid and process.is_running():
            process.kill()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a tokenizer and a corpus of many small files, as their stages leave them."""
    from tiny import PAPER_WORDS, words, write_raw

    store = tmp_path_factory.mktemp("prepared")
    write_raw(store)
    draw = random.Random(5)

    def corpus(prefix: str) -> Output:
        files, chars = [], 0
        for number in range(FILES):
            texts = [words(draw, PAPER_WORDS, draw.randint(5, 60)) for _ in range(DOCUMENTS)]
            rows = [
                Document(f"{number}-{row}", "papers", text, "", "cc-by", 2020, "abstract", "raw/x", "", "0")
                for row, text in enumerate(texts)
            ]
            files.append(write_parquet(prefix, f"documents/{number:05}.parquet", table(rows, DOCUMENT_SCHEMA)))
            chars += sum(map(len, texts))
        return Output(tuple(files), {"chars": chars, "documents": FILES * DOCUMENTS})

    def tokenizer(prefix: str) -> Output:
        return Output(artifact.upload_folder(prefix, store / "raw" / "models" / "tiny"))

    artifact.make(str(store), "corpus/papers", FINGERPRINT, {}, corpus)
    artifact.make(str(store), "tokenizer", FINGERPRINT, {}, tokenizer)
    return store


@pytest.fixture(scope="module")
def left_alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store in which the job ran once, and nothing happened to it."""
    store = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("left_alone") / "store"))
    ended = attempt(store)
    assert ended.returncode == 0, ended.log
    facts = made_in(store).facts
    assert facts["reused"] == {"portions": 0, "groups": 0} and facts["shards"] > 3
    assert len(markers(store, "dealt")) == FILES and len(markers(store, "done")) == facts["shards"]
    return store


def made_in(store: Path) -> Artifact:
    made = artifact.find(str(store), STAGE, FINGERPRINT)
    assert made is not None
    return made


def contents(made: Artifact) -> dict[str, bytes]:
    return {file.path: Path(made.uri(file.path)).read_bytes() for file in made.files}


def without_marker(store: Path) -> tuple[int, int]:
    """Portions and shards that lie in the store, whole, but that no marker names: work that is done again."""
    named = {json.loads(path.read_text())["file"].split("/")[1] for path in work_of(store).glob("*/dealt/*.json")}
    portions = {path.name for path in work_of(store).glob("*/dealt/*.arrow")} - named
    written = {str(path.relative_to(base_of(store))) for path in base_of(store).glob("attempt-*/shards/*.arrow")}
    done = [json.loads(path.read_text()) for path in work_of(store).glob("*/done/*.json")]
    known = {f"{Path(group['prefix_uri']).name}/{path}" for group in done for path, _ in group["shards"]}
    return len(portions), len(
        {path for path in written - known if path.split("/", 1)[1] not in {k.split("/", 1)[1] for k in known}}
    )


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_a_killed_job_ends_with_the_same_bytes(left_alone: Path, prepared: Path, tmp_path: Path, kills: int) -> None:
    store = Path(shutil.copytree(prepared, tmp_path / "store"))
    draw, total = random.Random(kills), len(finished(left_alone))
    before: set[str] = set()
    for kill in range(kills):
        room = max(1, (total - len(before)) // (kills - kill + 1) - 1)
        ended = attempt(store, kill_at=len(before) + draw.randint(1, room), delay_s=draw.uniform(0, 0.05))
        assert ended.returncode == -9, f"the kill came too late: {ended.log}"
        assert artifact.find(str(store), STAGE, FINGERPRINT) is None
        after = finished(store)
        assert before < after and len(after) < total, "finished work is lost, or nothing was left to do"
        before = after
    lost = without_marker(store)
    assert max(lost) <= kills, f"{lost} portions and shards were written and forgotten"
    portions, groups = len(markers(store, "dealt")), len(markers(store, "done"))
    assert attempt(store).returncode == 0
    made = made_in(store)
    assert made.facts["reused"] == {"portions": portions, "groups": groups}
    assert len(list(work_of(store).glob("*/dealt/*.arrow"))) <= FILES + kills
    assert contents(made) == contents(made_in(left_alone)) and made.digest == made_in(left_alone).digest


if __name__ == "__main__":
    drive(Path(sys.argv[1]), sys.argv[2])
