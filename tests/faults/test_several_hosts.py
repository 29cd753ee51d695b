"""Three hosts with addresses of their own, without Ray: who does not reach whom is named, and so is who is slow.

Run as a script this file is what runs on one host: `reach FOLDER ADDRESS ADDRESSES`, or `preflight RANK ADDRESSES`.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from namespaces import Hosts

from medschool.train.layout import Layout
from medschool.train.reach import missing

WORKERS = 2
"""Of each host, in the preflight."""
WORD = "a word that no other program says"


def reach(folder: Path, own: str, addresses: list[str]) -> None:
    """Listen, and call the others whenever a line comes in; prints who did not answer, as JSON."""
    from medschool.train.reach import call, listen

    (folder / f"{own}.new").write_text(str(listen(own, WORD)))
    (folder / f"{own}.new").rename(folder / own)
    while len(found := [each for each in addresses if (folder / each).exists()]) < len(addresses):
        time.sleep(0.02)
    ports = {each: int((folder / each).read_text()) for each in found if each != own}
    for _ in sys.stdin:
        print(json.dumps(call(ports, WORD, limit_s=1.5)), flush=True)


def preflight(rank: int, addresses: list[str]) -> None:
    """Join a group of WORKERS on each host as a training worker does, and measure whenever a line comes in."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from medschool.train import network
    from medschool.train.layout import layout_of_group
    from medschool.train.preflight import preflight as measured

    torch.set_num_threads(1)
    network.prepare(addresses[rank // WORKERS])
    print("ready", flush=True)
    for port, _ in enumerate(sys.stdin, 29400):  # a group of its own each time, as each start of a training has
        where, world = f"tcp://{addresses[0]}:{port}", WORKERS * len(addresses)
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=world, timeout=timedelta(seconds=100))
        layout, began = layout_of_group(), time.perf_counter()
        assert layout.machines == tuple(addresses) and layout.machine_workers == WORKERS and not layout.rdma
        found = measured(layout, rank)
        assert found is not None
        if rank == 0:
            print(json.dumps([found.lines(), found.slow_machines(), time.perf_counter() - began]), flush=True)
        dist.destroy_process_group()


def asked(processes: list[subprocess.Popen[str]], answering: int) -> list[object]:
    """A line to each of them; the answers of the first `answering`."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("now\n")
        process.stdin.flush()
    answers = []
    for process in processes[:answering]:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"ended with {process.wait(5)}"
        answers.append(json.loads(line))
    return answers


def test_a_machine_or_a_pair_without_a_way_is_named(tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with Hosts(3) as hosts:
        a, b, c = hosts.addresses
        layout = Layout((a, b, c))
        words = [sys.executable, __file__, "reach", str(tmp_path)]
        running = [
            hosts.start(host, [*words, own, ",".join(hosts.addresses)], **pipes) for host, own in enumerate(hosts.addresses)
        ]

        def told() -> str:
            return missing(layout, dict(zip(layout.machines, asked(running, 3), strict=True)))  # type: ignore[arg-type]

        assert told() == ""
        hosts.forget(1, 2)
        found = told()
        assert f"{b} (rank 1) does not reach {c} (rank 2)" in found and f"{c} (rank 2) does not reach {b} (rank 1)" in found
        assert a not in found
        hosts.remember(1, 2)
        hosts.cut(2)
        assert told() == f"{c} (rank 2) is reached by no other machine (no answer)"
        hosts.mend(2)
        for process in running:
            process.communicate(timeout=200)


@pytest.mark.long
def test_the_slow_machine_is_named_before_a_step_is_done() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with Hosts(3) as hosts:
        words, addresses = [sys.executable, __file__, "preflight"], ",".join(hosts.addresses)
        running = [hosts.start(rank // WORKERS, [*words, str(rank), addresses], **pipes) for rank in range(3 * WORKERS)]
        for process in running:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        ((_, _, took_s),) = asked(running, 1)  # type: ignore[misc]
        print(f"a preflight of three healthy hosts took {took_s:.1f} s")
        hosts.slow(2)
        ((lines, slow, _),) = asked(running, 1)  # type: ignore[misc]
        assert slow == [hosts.addresses[2]], lines
        named = [line for line in lines if " is slow: " in line]
        assert len(named) == 1 and f"{hosts.addresses[2]} (ranks 4 to 5) is slow" in named[0] and "elsewhere" in named[0]
        for process in running:
            process.communicate(timeout=200)
        assert all(process.returncode == 0 for process in running)


if __name__ == "__main__":
    if sys.argv[1] == "reach":
        reach(Path(sys.argv[2]), sys.argv[3], sys.argv[4].split(","))
    else:
        preflight(int(sys.argv[2]), sys.argv[3].split(","))
