"""Checkpoints that are killed while they are uploaded, find no room, or are damaged afterwards: none is ever loaded torn."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faulty_store import Faults, FaultyStore, faulty_store, seaweed

from medschool import storage
from medschool.errors import InputError
from medschool.train.checkpoint import Position, fetch_state, newest_whole, prune_states, read_state, withdraw_state

WORKER = [sys.executable, str(Path(__file__).with_name("saving_worker.py"))]
FILES = 24


def lines(told: str) -> list[dict]:
    return [json.loads(line) for line in told.splitlines() if line.startswith("{")]


def loaded(start: Position, folder: Path) -> float:
    """The number that every tensor of a state holds more than its file's; all hashes are compared, and files agree on it."""
    files = fetch_state(read_state(start.state_uri), folder)
    values = {
        float(value) - number for number in range(FILES) for value in torch.load(files / "state" / f"{number}.pt")["w"][[0, -1]]
    }
    assert len(values) == 1, "a mixture of two states"
    return values.pop()


@pytest.fixture(scope="module")
def slow_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStore]:
    """An S3 store behind a proxy; this process's and its children's storage goes there."""
    with pytest.MonkeyPatch.context() as environment, seaweed(tmp_path_factory.mktemp("home")) as variables:
        for name, value in variables.items():
            environment.setenv(name, value)
        with faulty_store(variables["AWS_ENDPOINT_URL"]) as store:
            environment.setenv("AWS_ENDPOINT_URL", store.url)
            storage.make_bucket("s3://medschool-checkpoints")
            yield store


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.long)])
def test_a_kill_in_the_middle_of_an_upload_leaves_the_state_before_it(
    slow_store: FaultyStore, tmp_path: Path, kills: int
) -> None:
    run, draw, torn_seen = f"s3://medschool-checkpoints/run-{kills}", random.Random(kills), 0
    newest = Position()
    for kill in range(kills):
        slow_store.set(Faults(only=r"^PUT .*/state/\d+\.pt", slow_share=1, slow_s=0.5))
        process = subprocess.Popen([*WORKER, "killed", run, str(newest.step + 1)], stdout=subprocess.PIPE, text=True)
        torn = wait_for_half(run, newest.step + 1 + draw.randrange(2), draw.randrange(1, FILES - 1))
        process.kill()
        process.communicate()
        assert slow_store.counts()["slow"] > 0, "nothing was slow"
        slow_store.set(Faults())
        stored = len(storage.list_files(torn))
        torn_seen += 0 < stored < FILES + 4
        before, newest = newest, newest_whole(run, lambda _: None)
        assert newest.step >= before.step and newest.step < int(torn.split("/")[-1])
        if newest.state_uri:
            assert loaded(newest, tmp_path / str(kill)) == newest.step - before.step
    assert torn_seen == kills
    prune_states(run)
    assert {int(info.uri.split("/state/", 1)[1][:8]) for info in storage.list_files(run)} <= {
        newest.step - 1,
        *range(newest.step, newest.step + 2),
    }


def wait_for_half(run: str, step: int, files: int) -> str:
    """The folder of the attempt at `step` as soon as so many of its files are stored, and its manifest is not."""
    folder, limit = storage.join(run, "state", f"{step:08}"), time.monotonic() + 120
    while len(storage.list_files(folder)) < files:
        assert time.monotonic() < limit, "no upload has begun"
        time.sleep(0.02)
    return folder


@pytest.fixture(scope="module")
def two_states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two whole states, of steps 1 and 2."""
    run = tmp_path_factory.mktemp("two") / "run"
    code = f"import saving_worker as w, pathlib; s = pathlib.Path({str(run.parent)!r}); e, v = w.begin({str(run)!r}, s)\nwith v:\n  [w.save(v, e, {str(run)!r}, step) for step in (1, 2)]"
    subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.environ["PYTHONPATH"] + os.pathsep + str(Path(__file__).parent)},
        check=True,
    )
    return run


def load_newest(run: Path, folder: Path, said: list[str]) -> Position:
    """What two starts do: the first one finds the damage and takes the manifest back, the second one loads."""
    for attempt in range(3):
        start = newest_whole(str(run), said.append)
        try:
            loaded(start, folder / str(attempt))
        except InputError as error:
            said.append(str(error))
            assert withdraw_state(start.state_uri)
            continue
        return start
    raise AssertionError("no state could be loaded")


@pytest.mark.parametrize("flips", [10, pytest.param(100, marks=pytest.mark.long)])
def test_every_flipped_bit_of_a_checkpoint_is_found_and_costs_one_checkpoint(
    two_states: Path, tmp_path: Path, flips: int
) -> None:
    draw, kinds = random.Random(flips), set()
    for flip in range(flips):
        run = Path(shutil.copytree(two_states, tmp_path / "run"))
        newest = sorted(run.glob("state/*"))[-1]
        files = sorted(path for path in newest.rglob("*") if path.is_file())
        path = files[flip % len(files)] if flip < len(files) else draw.choices(files, [file.stat().st_size for file in files])[0]
        kinds.add(path.suffix)
        data = bytearray(path.read_bytes())
        place = draw.randrange(len(data) * 8)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        said: list[str] = []
        assert load_newest(run, tmp_path / "local", said).step == 1, f"bit {place} of {path} was not found"
        assert any(path.name in line for line in said), said
        shutil.rmtree(run), shutil.rmtree(tmp_path / "local")
    assert ".pt" in kinds


@pytest.mark.parametrize("kind", ["manifest.json", "ledger.json", "0.pt", "rank-00000.json", "metrics.jsonl"])
@pytest.mark.parametrize("damage", [b"", b"\x80garbage"])
def test_a_truncated_or_overwritten_file_is_found_whatever_it_is(
    two_states: Path, tmp_path: Path, kind: str, damage: bytes
) -> None:
    run = Path(shutil.copytree(two_states, tmp_path / "run"))
    path = next(path for path in sorted(run.glob("state/*"))[-1].rglob(kind))
    if path.read_bytes() == damage:
        damage = b"x"
    path.write_bytes(damage)
    said: list[str] = []
    assert load_newest(run, tmp_path / "local", said).step == 1
    assert any(kind in line and "passed over" in line for line in said)


def test_a_full_disk_costs_that_checkpoint_and_ends_the_run_when_it_stays_full(tmp_path: Path) -> None:
    run, disk = tmp_path / "run", tmp_path / "disk"
    disk.mkdir()
    mounted = f'mount -t tmpfs -o size=4m tmpfs {disk} && exec "$@"'
    command = ["unshare", "-Urm", "sh", "-c", mounted, "sh", *WORKER, "small_disk", str(run), str(disk)]
    if subprocess.run(
        ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True, check=False
    ).returncode:
        pytest.skip("a small disk can only be mounted where user namespaces are allowed")
    told = lines(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    failed = [line["said"] for line in told if "not saved" in line.get("said", "")]
    assert [line.split(" not saved")[0] for line in failed] == [f"checkpoint of step {step}" for step in (2, 4, 5)]
    assert all("1536000 bytes of state could not be written" in line and str(disk) in line for line in failed)
    assert [line["trained"] for line in told if "trained" in line] == [1, 2, 3, 4, 5], "training went on"
    assert all(line["left"] == ["metrics.jsonl"] for line in told if "left" in line), "nothing half written stays"
    assert "2 checkpoints in a row" in told[-1]["ended"]
    start = newest_whole(str(run), lambda _: None)
    assert start.step == 3 and loaded(start, tmp_path / "local") == 3
