"""Checkpoints without a store of their own or a process group of many: manifests, what is kept, what is refused, how saving fails."""

import dataclasses
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_engine import SmallEngine, course_in, ledger_at, ledger_of

from medschool import storage
from medschool.artifact import write_file
from medschool.errors import InputError, PlanError, StorageError
from medschool.ledger import LEDGER, parse_ledger
from medschool.train import random_state
from medschool.train.checkpoint import (
    Position,
    State,
    commit_state,
    fetch_state,
    newest_whole,
    prune_states,
    random_file,
    read_state,
    state_prefix,
    withdraw_state,
)
from medschool.train.identity import check_identity, check_resumable, identity_of
from medschool.train.parts import Part, await_parts, put_part
from medschool.train.saving import JOURNAL, Saver
from medschool.train.snapshot import HostCopy
from medschool.train.staging import staging_base, staging_folder


def saved(run: Path, step: int, attempt: str = "a") -> State:
    prefix = state_prefix(str(run), step, attempt)
    file = write_file(prefix, "state/x.pt", f"state {step}".encode())
    state = State(Position(step, step), 2, 1, prefix, (file,), {"seed": 3, "optimizer": {"lr": 1e-05}}, 4, {"torch": "2"})
    assert commit_state(str(run), state)
    return state


def steps_left(run: Path) -> list[int]:
    return sorted(int(path.parent.name) for path in run.glob("state/*/manifest.json"))


def attempts_left(run: Path) -> set[str]:
    return {
        "/".join(info.uri.split("/state/", 1)[1].split("/")[:2])
        for info in storage.list_files(str(run))
        if info.uri.endswith(".pt")
    }


def test_a_flipped_bit_of_a_manifest_is_found(tmp_path: Path) -> None:
    state = saved(tmp_path, 5)
    path = tmp_path / "state" / "00000005" / "manifest.json"
    assert read_state(str(path)) == state
    whole = path.read_bytes()
    for place in range(0, len(whole) * 8, 5):  # no multiple of 8: every bit of a byte has its turn
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(InputError):
            read_state(str(path))
    path.write_bytes(whole)
    assert read_state(str(path)) == state


def test_a_state_that_the_store_does_not_hold_whole_is_not_committed(tmp_path: Path) -> None:
    state = saved(tmp_path, 5)
    Path(state.prefix_uri, "state/x.pt").write_bytes(b"short")
    with pytest.raises(StorageError, match="5 bytes are stored, the manifest says 7"):
        commit_state(str(tmp_path), state)


def test_what_is_resumed_and_what_is_passed_over_is_said(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        saved(tmp_path, step)
    Path(state_prefix(str(tmp_path), 20, "a"), "state/x.pt").unlink()
    (tmp_path / "state" / "00000015" / "manifest.json").write_bytes(b"{")
    said: list[str] = []
    assert newest_whole(str(tmp_path), said.append).step == 10
    assert "00000020" in said[0] and "no bytes are stored" in said[0] and "00000015/manifest.json" in said[1]
    assert said[2].startswith("resuming at step 10 from ") and "2 newer damaged; 4 stored" in said[2]
    withdraw_state(str(tmp_path / "state" / "00000010" / "manifest.json"))
    Path(state_prefix(str(tmp_path), 5, "a"), "state/x.pt").unlink()
    assert newest_whole(str(tmp_path), said.append) == Position() and said[-1].startswith("none of 1 checkpoints is whole")


def test_the_newest_and_the_milestones_are_kept(tmp_path: Path) -> None:
    for step in range(5, 65, 5):
        saved(tmp_path, step)
        prune_states(str(tmp_path), 2, 20)
    assert steps_left(tmp_path) == [20, 40, 55, 60]
    prune_states(str(tmp_path), 1)
    assert steps_left(tmp_path) == [60] == [int(place.split("/")[0]) for place in attempts_left(tmp_path)]


def test_torn_attempts_go_when_a_newer_state_is_whole(tmp_path: Path) -> None:
    for step in (5, 10):
        saved(tmp_path, step)
    for step in (3, 5, 10, 15):
        write_file(state_prefix(str(tmp_path), step, "torn"), "state/y.pt", b"half")
    saved(tmp_path, 4)
    assert withdraw_state(str(tmp_path / "state" / "00000004" / "manifest.json"))
    assert prune_states(str(tmp_path), 2) == 4  # three that are torn, and what was withdrawn
    assert attempts_left(tmp_path) == {"00000005/a", "00000010/a", "00000015/torn"}
    assert not list(tmp_path.rglob("damaged.json")) and prune_states(str(tmp_path), 2) == 0


def test_files_of_a_damaged_manifest_stay_until_a_start_has_said_so(tmp_path: Path) -> None:
    for step in (5, 10):
        saved(tmp_path, step)
    (tmp_path / "state" / "00000005" / "manifest.json").write_bytes(b"{")
    assert prune_states(str(tmp_path), 2) == 0 and attempts_left(tmp_path) == {"00000005/a", "00000010/a"}


def test_a_rank_fetches_what_it_reads(tmp_path: Path) -> None:
    prefix = state_prefix(str(tmp_path), 5, "a")
    names = ["state/mp_rank_00_model_states.pt", "ledger.json", *(random_file(rank) for rank in (0, 1, 11))]
    names += [f"state/{kind}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for kind in ("", "bf16_") for rank in (0, 1, 11)]
    state = State(Position(5, 5), 12, 1, prefix, tuple(write_file(prefix, name, name.encode()) for name in names))
    for rank in (0, 1, 11):
        folder = fetch_state(state, tmp_path / f"rank{rank}", rank)
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        others = {
            name for name in names for other in {0, 1, 11} - {rank} if f"_rank_{other}_" in name or name == random_file(other)
        }
        assert found == set(names) - others
    assert sum(1 for path in fetch_state(state, tmp_path / "all").rglob("*") if path.is_file()) == len(names)


CHANGES: list[tuple[str, Callable[[Path], Any]]] = [
    ("optimizer.lr", lambda run: course_in(run, "pretrain.optimizer.lr=0.007")),
    ("optimizer.warmup_fraction", lambda run: course_in(run, "pretrain.optimizer.warmup_fraction=0.3")),
    ("lora.rank", lambda run: course_in(run, "pretrain.lora={rank: 4, alpha: 8}")),
    ("dtype", lambda run: course_in(run, "model.dtype=fp32")),
    ("steps", lambda run: course_in(run, steps=101)),
    ("model", lambda run: course_in(run, model=dataclasses.replace(course_in(run).model, files=()))),
    ("tokenizer", lambda run: course_in(run, model=dataclasses.replace(course_in(run).model, files=()))),
    *((name, lambda run, key=key, value=value: course_in(run, order=dataclasses.replace(course_in(run).order, **{key: value})))
      for name, key, value in (
          ("seed", "seed", 4),
          ("weights.books", "weights", {"books": 14, "general": 6}),
          ("weights_from.7.books", "weights_from", {7: {"books": 1, "general": 19}}),
          ("batch_rows", "batch_rows", 40),
          ("rows", "shard_rows", {"books": (90, 71), "general": (50,)}),
          ("rows", "withheld", {"books": {0: (7,)}}),
      )),
]  # fmt: skip


@pytest.mark.parametrize(("name", "other"), CHANGES)
def test_a_state_of_another_run_is_refused_by_name(tmp_path: Path, name: str, other: Callable[[Path], Any]) -> None:
    ours, theirs = course_in(tmp_path), other(tmp_path)
    stored = json.loads(json.dumps(identity_of(theirs, ledger_of(theirs))))
    with pytest.raises(PlanError, match=rf"(^|[ ;]){name} is .* there and .* here") as refused:
        check_identity(stored, identity_of(ours, ledger_of(ours)), "m")
    assert refused.value.where == "m" and "delete the checkpoint" in refused.value.remedy


def test_token_artifacts_are_part_of_what_a_state_is_of(tmp_path: Path) -> None:
    course = course_in(tmp_path)
    ledger = ledger_of(course)
    other = dataclasses.replace(ledger, digests={**ledger.digests, "books": "else"})
    with pytest.raises(
        PlanError, match=r"tokens\.books is 'else' there and 'booksbooksbooks' here$|tokens\.books is 'else' there"
    ):
        check_identity(identity_of(course, other), identity_of(course, ledger), "m")
    check_identity(identity_of(course, ledger), identity_of(course, ledger), "m")


def test_generators_go_on_where_they_were() -> None:
    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    random.gauss(0, 1), np.random.standard_normal()
    taken = random_state.capture()

    def draw() -> list[Any]:
        return [torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), [random.gauss(0, 1) for _ in range(3)]]

    expected = draw()
    assert draw() != expected
    random_state.restore(taken)
    assert draw() == expected


def test_a_copy_in_memory_does_not_change_and_shares_what_was_shared() -> None:
    engine, host = SmallEngine(), HostCopy()
    engine.checkpoint_engine = host
    for expected in (0.0, 1.0):
        host.begin(Path("/x"))
        engine.save_checkpoint("/x", "state", False)
        first = host.files["state/0.pt"]
        engine.step()
        assert first["w"][0] == expected and first["w"] is first["tied"] and engine.weights[0][0] == expected + 1
    assert host.size_bytes == 2 * 4000, "buffers are used again"


def test_ranks_tell_rank_0_through_the_store(tmp_path: Path) -> None:
    part = Part((write_file(str(tmp_path), "state/1.pt", b"1"),), {"books": 3})
    threading.Timer(0.2, put_part, (str(tmp_path), 1, part)).start()
    assert await_parts(str(tmp_path), range(1, 2), lambda: False) == [part]
    put_part(str(tmp_path), 2, Part(problem="disk full"))
    with pytest.raises(StorageError, match="rank 2: disk full"):
        await_parts(str(tmp_path), range(1, 3), lambda: False)
    with pytest.raises(StorageError, match="rank 3 has not said"):
        await_parts(str(tmp_path), range(3, 4), lambda: False, wait_s=0)
    with pytest.raises(StorageError, match="rank 3 has not said"):
        await_parts(str(tmp_path), range(3, 4), lambda: True)


def test_the_folder_of_a_killed_worker_is_removed_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    code = f"""if True:
        import pathlib, sys
        from medschool.train.staging import staging_folder
        with staging_folder(pathlib.Path({str(tmp_path)!r})) as folder:
            (folder / "half").write_bytes(b"x")
            print(folder, flush=True)
            sys.stdin.read()"""
    with staging_folder(tmp_path) as living:
        worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert worker.stdout
        dead = Path(worker.stdout.readline().strip())
        with staging_folder(tmp_path):
            assert dead.joinpath("half").exists(), "it lives"
        worker.kill()
        worker.communicate()
        assert dead.joinpath("half").exists()
        with staging_folder(tmp_path) as third:
            assert not dead.exists() and living.exists() and third.exists()
    assert not living.exists() and not list(tmp_path.glob("*.lock"))
    assert staging_base() == Path(os.environ["MEDSCHOOL_CACHE"], "staging")


class Bench:
    """A Saver of one rank with a state in miniature, and the lines that it says."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.run, scratch = folder / "run", folder / "scratch"
        scratch.mkdir()
        (scratch / JOURNAL).write_text('{"step": 1}\n')
        self.course, self.engine, self.lines = course_in(self.run, *overrides), SmallEngine(), list[str]()
        self.scratch, self.saver = scratch, Saver(self.engine, self.course, 0, 1, scratch, self.lines.append)

    def save(self, step: int) -> float:
        return self.saver.save(Position(step, step), ledger_at(self.course, step))


@pytest.fixture
def one(tmp_path: Path, lone_group: None) -> Bench:
    return Bench(tmp_path)


def test_a_saved_state_holds_what_it_says(one: Bench, tmp_path: Path) -> None:
    with one.saver:
        one.save(5)
        one.engine.step()
        with (one.scratch / JOURNAL).open("a") as journal:
            journal.write('{"step": 2}\n')
    start = newest_whole(str(one.run), one.lines.append)
    state = read_state(start.state_uri)
    folder = fetch_state(state, tmp_path / "local")
    assert torch.load(folder / "state" / "1.pt")["w"][0] == 1.0
    assert (folder / JOURNAL).read_text() == '{"step": 1}\n'
    assert parse_ledger((folder / LEDGER).read_bytes(), "x") == ledger_at(one.course, 5)
    assert (state.position.step, state.world_size, state.zero_stage, state.micro_batch_rows) == (5, 1, 1, 4)
    assert {"python", "torch", "deepspeed", "transformers", "medschool"} <= set(state.versions)
    random_state.restore((folder / random_file(0)).read_bytes())
    check_resumable(start, one.course, ledger_of(one.course))
    with pytest.raises(PlanError, match=r"optimizer\.lr"):
        check_resumable(start, course_in(one.run, "pretrain.optimizer.lr=0.007"), ledger_of(one.course))
    assert not [path for path in one.scratch.iterdir() if path.name != JOURNAL], "nothing stays on local disk"


def test_training_goes_on_while_a_state_is_uploaded_and_waits_when_two_are_under_way(
    one: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, entered, upload = threading.Event(), threading.Event(), storage.upload

    def slow(uri: str, local: Path) -> None:
        entered.set()
        assert go_on.wait(20)
        upload(uri, local)

    monkeypatch.setattr(storage, "upload", slow)
    with one.saver:
        one.save(5)
        assert entered.wait(20)
        one.save(10)  # in memory, while the first one is on disk
        third = threading.Thread(target=one.save, args=(15,))
        third.start()
        third.join(0.5)
        assert third.is_alive() and steps_left(one.run) == []
        on_disk = [path for path in one.scratch.iterdir() if path.is_dir()]
        assert len(on_disk) == 1
        go_on.set()
        third.join(20)
        one.saver.wait()
        assert steps_left(one.run) == [10, 15], "the newest two, committed in order"


def test_a_store_that_fails_costs_that_checkpoint_and_not_the_run(one: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(uri: str, local: Path) -> None:
        raise StorageError("the store answered InsufficientCapacity", "make room", uri)

    with one.saver:
        one.save(5)
        one.saver.wait()
        with monkeypatch.context() as broken:
            broken.setattr(storage, "upload", refused)
            for step in (10, 15, 20):
                one.save(step)
            one.saver.wait()
        assert steps_left(one.run) == [5] and newest_whole(str(one.run), lambda _: None).step == 5
        assert [line.split(":")[0] for line in one.lines] == [f"checkpoint of step {step} not saved" for step in (10, 15, 20)]
        assert "InsufficientCapacity" in one.lines[0] and "state/00000010/" in one.lines[0] and "3 in a row" in one.lines[2]
        one.save(25)  # three may fail
        one.saver.wait()
        assert steps_left(one.run) == [5, 25] and {place[:8] for place in attempts_left(one.run)} == {"00000005", "00000025"}


def test_too_many_failures_in_a_row_end_the_run(tmp_path: Path, lone_group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Bench(tmp_path, "cluster.max_failed_checkpoints=1")

    def full(content: Any, path: Path) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")  # torch.save on a full disk

    monkeypatch.setattr(torch, "save", full)
    with (
        pytest.raises(
            StorageError, match=r"2 checkpoints in a row could not be written, cluster\.max_failed_checkpoints allows 1"
        ),
        one.saver,
    ):
        for step in (5, 10, 15):
            one.save(step)
            one.saver.wait()
    assert "8000 bytes of state could not be written" in one.lines[0] and str(one.scratch) in one.lines[0]
    assert steps_left(one.run) == []


def test_an_error_in_training_does_not_wait_for_ranks_that_are_gone(
    tmp_path: Path, lone_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medschool.train.saving.GRACE_S", 0.5)
    one = Bench(tmp_path)
    one.saver = Saver(one.engine, one.course, 0, 2, one.scratch, one.lines.append)  # the other rank never says a word
    with pytest.raises(ZeroDivisionError), one.saver:
        one.save(5)
        raise ZeroDivisionError
    one.saver.wait()
    assert steps_left(one.run) == [] and "rank 1 has not said" in one.lines[-1]
