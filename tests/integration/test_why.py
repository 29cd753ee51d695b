"""What a job died of or waits for: each cause produced by what really raises it, and a real cluster with a demand it cannot hold."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from medschool.cluster.admission import WAITS
from medschool.cluster.why import Waits, cause_of_death, in_line, refused, waiting

ROOT = Path(__file__).parents[2]
REPORT = """======== Autoscaler status: 2026-11-23 12:52:38.396388 ========
Node status
---------------------------------------------------------------
Active:
 1 head
Pending:
 gpu_train, 2 launching
Recent failures:
 gpu_train: InsufficientInstanceCapacity (latest_attempt: 12:50:01)

Resources
---------------------------------------------------------------
Total Usage:
 0.0/8.0 CPU

From request_resources:
 (none)
Pending Demands:
 {'CPU': 8.0, 'GPU': 1.0} * 32 (PACK): 1+ pending placement groups"""


def printed_by(program: str) -> str:
    """Output of a program that must fail."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"PYTHONPATH": f"{ROOT}/platform", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode != 0, run.stdout
    return run.stdout + run.stderr


DISK = """
    with open("/dev/full", "w") as file:
        file.write("x" * 100_000)
"""
MEMORY = """
    import resource, torch
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    torch.empty(1 << 40, dtype=torch.uint8)
"""
STORE = """
    import os
    os.environ.update(AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="y")
    from medschool import s3, storage
    with s3.patience(0.1):
        storage.read_bytes("s3://bucket/key")
"""
WORKER_GONE = """
    import os, tempfile, torch, torch.distributed as dist, torch.multiprocessing as mp
    def work(rank, folder):
        dist.init_process_group("gloo", init_method=f"file://{folder}/x", rank=rank, world_size=2)
        if rank == 1:
            os._exit(0)
        while True:
            dist.all_reduce(torch.ones(10))
    if __name__ == "__main__":
        work_folder = tempfile.mkdtemp()
        child = os.fork()
        work(int(child == 0), work_folder)
"""
KILLED = """
    import os, ray
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    @ray.remote(max_restarts=0)
    class Worker:
        def work(self):
            os.kill(os.getpid(), 9)
    ray.get(Worker.remote().work.remote())
"""
BUG = """
    def share(part, whole):
        return part / whole
    share(1, 0)
"""


@pytest.mark.parametrize(
    ("program", "name"),
    [(DISK, "the disk is full"), (MEMORY, "memory of the host"), (STORE, "the object store"), (WORKER_GONE, "communication between workers"),
     (KILLED, "a process was killed from outside")],
    ids=["disk", "memory", "store", "worker", "killed"],
)  # fmt: skip
def test_what_is_really_raised_is_named(program: str, name: str) -> None:
    cause, told = cause_of_death(printed_by(program))
    assert cause is not None and cause.name == name and cause.remedy
    assert any(cause.words.search(line) for line in told)


def test_a_bug_is_called_one_with_its_last_line() -> None:
    assert cause_of_death(printed_by(BUG)) == (None, ("ZeroDivisionError: division by zero",))


def test_our_own_error_is_told_with_its_remedy() -> None:
    log = "step 3/9\nerror: tokens.row_tokens: is 4096\nfix: set it to 2048\n"
    assert cause_of_death(log) == (None, ("error: tokens.row_tokens: is 4096", "fix: set it to 2048"))


def test_what_came_first_is_the_cause_of_what_follows() -> None:
    log = f"{printed_by(DISK)}\n[rank1]: RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer\n"
    cause, _ = cause_of_death(log)
    assert cause is not None and cause.name == "the disk is full"


def test_a_demand_without_a_place_is_told_with_what_comes_and_what_failed() -> None:
    found = waiting("job", "RUNNING", Waits(("pending: 32 x {CPU: 8, GPU: 1}",), REPORT))
    assert found.cause == "waits for a place"
    assert found.told == (
        "no place for pending: 32 x {CPU: 8, GPU: 1}",
        "demand: {'CPU': 8.0, 'GPU': 1.0} * 32 (PACK): 1+ pending placement groups",
        "nodes: 1 head",
        "coming: gpu_train, 2 launching",
        "failed launch: gpu_train: InsufficientInstanceCapacity (latest_attempt: 12:50:01)",
    )
    idle = REPORT.replace("Active:\n 1 head", "Active:\n (no active nodes)\nIdle:\n 1 head")
    assert waiting("job", "RUNNING", Waits((), idle)).told == found.told[1:], "an idle head is a node, too"
    calm = REPORT.rsplit("\n", 1)[0] + "\n (no resource demands)"
    assert waiting("job", "RUNNING", Waits((), calm)).cause is None


def test_a_job_whose_last_word_is_that_it_waits_for_its_turn_is_told_behind_whom() -> None:
    line = f"quickstart: pretrain/knowledge {WAITS} for 6 CPUs, behind other: evaluate/base"
    found = in_line("job", "RUNNING", f"study: 1 of 2 trials to run\n{line}\n")
    assert found is not None and (found.cause, found.told) == ("waits for its turn", (line,))
    assert in_line("job", "RUNNING", f"{line}\nquickstart: pretrain/knowledge has its turn\n") is None


def test_the_clouds_words_come_from_the_autoscalers_log() -> None:
    log = """2026-11-23 12:50:01,007\tINFO node_provider.py:498 -- Failed to launch 2 nodes of type gpu_train: first words
2026-11-23 12:50:01,007\tINFO node_provider.py:494 -- Launched 1 nodes of type cpu.
2026-11-23 12:51:01,007\tINFO node_provider.py:498 -- Failed to launch 2 nodes of type gpu_train: VcpuLimitExceeded: ask for more
"""
    assert refused(log) == ("gpu_train: VcpuLimitExceeded: ask for more",)
    found = waiting("job", "RUNNING", Waits((), REPORT, refused(log)))
    assert found.told[-1] == "the cloud gives no gpu_train: VcpuLimitExceeded: ask for more" and "quota" in found.remedy
