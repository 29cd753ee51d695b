"""How fast a cluster that starts from nothing follows a demand, and what a submission costs beyond Ray's own.

Ray's autoscaler, version 2, with its fake provider: nodes are processes of this machine, so what a cloud takes to start one is
not in these figures; everything between a demand and a launch, and between idleness and a node's end, is. It looks once a
second (AUTOSCALER_UPDATE_INTERVAL_S=1; Ray's own is 5).

    up       seconds from submitting three tasks that take a whole node each until three nodes run   (aim: 30 at most)
    tasks    the same until all three tasks run: a node that is there has no worker process yet
    down     seconds from their end until the last node is gone, divided by the idle timeout         (aim: 2 at most)
    submit   seconds from the command until the entry point's first line is on the terminal: `medschool submit` beside
             `ray job submit` with the same folder, on a head without nodes                          (aim: 5 more at most)

`python bench/autoscale.py [--reps 5] [--idle 10]`; the arms of `submit` take turns.
"""

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from side_by_side import in_fresh_process, machine, spread
from small_run import ENVIRONMENT, ROOT

sys.path.append(str(ROOT / "tests"))
NODES, LOOK_S, HANG_S = 3, 0.1, 600.0
LINE = "the entry point runs"
HELLO = f'if __name__ == "__main__":\n    print("{LINE}", flush=True)\n'


def until(seen: Callable[[], bool]) -> float:
    """The clock once `seen` is true."""
    deadline = time.monotonic() + HANG_S
    while not seen():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {HANG_S:g} s")
        time.sleep(LOOK_S)
    return time.time()


def scaled(address: str, folder: str, idle_s: float) -> dict[str, float]:
    """In a process of its own: three nodes up, and down again."""
    import ray

    from medschool.cluster import timeline

    look = timeline.looking_at(address)
    until(lambda: not look().nodes.get("cpu"))
    ray.init(address=address, log_to_driver=False)
    meeting = Path(tempfile.mkdtemp(dir=folder))

    @ray.remote(num_cpus=2)
    def meet() -> None:
        (meeting / ray.get_runtime_context().get_node_id()).touch()
        while not (meeting / "go").exists():
            time.sleep(0.05)

    began = time.time()
    tasks = [meet.remote() for _ in range(NODES)]
    up = until(lambda: look().nodes.get("cpu", 0) == NODES)
    running = until(lambda: len(list(meeting.iterdir())) == NODES)
    (meeting / "go").touch()
    ray.get(tasks)
    idle = time.time()
    down = until(lambda: not look().nodes.get("cpu"))
    ray.shutdown()
    return {"up": up - began, "tasks": running - began, "down": (down - idle) / idle_s}


def submitted(command: list[str], environment: dict[str, str], tree: Path) -> float:
    """Seconds from the command to the entry point's first line."""
    began = time.time()
    with subprocess.Popen(command, env=environment, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        assert run.stdout is not None
        said = []
        for line in run.stdout:
            said.append(line)
            if line.strip() == LINE:
                return time.time() - began
    raise RuntimeError("".join(said))


def copied(folder: Path) -> Path:
    """The repository's tree, with one job more, which does nothing but say that it runs."""
    tree = folder / "tree"
    for part in ("platform", "jobs", "recipes"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    (tree / "jobs" / "hello.py").write_text(HELLO)
    return tree


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--idle", type=float, default=10.0, help="idle timeout of a node, in seconds")
    asked = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    folder, ray_folder = (Path(tempfile.mkdtemp(prefix="ms-bench-", dir="/tmp")) for _ in range(2))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    os.environ.update(ENVIRONMENT | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)})
    from fake_cluster import fake_cluster

    try:
        print(json.dumps(machine("ray") | {"load": os.getloadavg()}))
        tree = copied(folder)
        with fake_cluster(ray_folder, asked.idle) as cluster:
            places = {
                "MEDSCHOOL_HOME": f"{folder}/home",
                "MEDSCHOOL_STORE": f"{folder}/store",
                "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/m.db",
            }
            os.environ.update(cluster.environment)  # before any process of ours imports Ray
            variables: dict[str, str] = {**os.environ, **places}
            own = Path(sys.executable).parent
            arms = {
                "medschool": [str(own / "medschool"), "submit", "recipes/quickstart.yaml", "--job", "hello"],
                "ray": [str(own / "ray"), "job", "submit", "--working-dir", ".", "--", "python", "-m", "jobs.hello"],
            }
            found: dict[str, list[float]] = {}
            for rep in range(asked.reps):
                one: dict[str, Any] = in_fresh_process(scaled, cluster.address, str(folder), asked.idle)
                one |= {f"submit {name}": submitted(command, variables, tree) for name, command in arms.items()}
                print(f"rep {rep} (load {os.getloadavg()[0]:.1f}): " + json.dumps({key: round(one[key], 2) for key in one}))
                for key, value in one.items():
                    found.setdefault(key, []).append(value)
        for key, values in found.items():
            print(f"  {key:<17} {'idle timeouts' if key == 'down' else 's':<14} {spread(values)}")
        more = [ours - theirs for ours, theirs in zip(found["submit medschool"], found["submit ray"], strict=True)]
        print(f"  {'submit, ours more':<17} {'s':<14} {spread(more)}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(ray_folder, ignore_errors=True)


if __name__ == "__main__":
    main()
