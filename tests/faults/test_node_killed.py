"""A node that dies under Ray Data with a hundred parts to read: what it was reading is read elsewhere, and no text is lost or doubled.

The result is read with pyarrow and compared with the texts that were put in. Run as a script this file is the job on a cluster of a
head and two nodes: `python test_node_killed.py STORE`.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

FILES, PASSAGES, PASSAGE_CHARS = 100, 40, 1600
FIRST = 15
"""Parts that are read before the node dies."""


def passages() -> dict[str, str]:
    """Text of every document by its id: each a paragraph that is a passage of its own."""
    draw = random.Random(4)
    vowels, others = "aeiou", "bdfgklmnprst"
    found = {}
    for file in range(FILES):
        for passage in range(PASSAGES):
            words = [f"passage{file}of{passage}"]
            while sum(map(len, words)) + len(words) < PASSAGE_CHARS:
                words.append("".join(draw.choice(others) + draw.choice(vowels) for _ in range(draw.randint(1, 4))))
            found[f"raw/prose/{file:03}:{passage:05}"] = " ".join(words)
    return found


def drive(store: Path) -> None:
    """Make the corpus `general`, and kill a node with work when FIRST parts are read. Prints what was killed, as JSON."""
    import ray
    from ray.cluster_utils import Cluster

    from medschool import artifact
    from medschool.corpus import parts
    from medschool.corpus.on_ray import make_corpus
    from medschool.recipe import load

    parts.PART_BYTES = 1
    memory = {"object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **memory})
    nodes = [cluster.add_node(num_cpus=1, **memory) for _ in range(2)]
    ray.init(address=cluster.address)
    ray.data.DataContext.get_current().enable_progress_bars = False
    work = store / "work"
    killer = threading.Thread(target=_kill, args=(cluster, nodes[0], work), daemon=True)
    killer.start()
    recipe = load(
        store / "tiny.yaml", ['sources.general.files=[{"uri": "raw/prose/*.txt", "format": "prose", "licence": "public-domain"}]']
    )
    artifact.make(
        str(store), "corpus/general", "f", {}, lambda prefix: make_corpus(recipe, "general", str(store), prefix, str(work))
    )
    killer.join(60)
    print(json.dumps({"alive": sum(node["Alive"] for node in ray.nodes())}), flush=True)
    ray.shutdown()
    os._exit(0)  # Cluster ends its processes at exit, and with the code 1 where one of them is gone already


def _kill(cluster: Any, node: Any, work: Path) -> None:
    """SIGKILL for the raylet of a node at a moment when one of its workers runs a task."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    while True:
        read = len(list((work / "read").glob("*.json")))
        running = [child.cmdline()[0] for child in raylet.children() if child.is_running() and child.cmdline()]
        if read >= FIRST and (tasks := [name for name in running if name.startswith("ray::") and "Map" in name]):
            cluster.remove_node(node, allow_graceful=False)
            print(json.dumps({"killed_at": read, "tasks": tasks}), flush=True)
            return
        time.sleep(0.002)


def test_a_node_dies_and_every_text_is_there_once(tmp_path: Path, ray_folder: str) -> None:
    from tiny import write_raw

    write_raw(tmp_path)
    shutil.rmtree(tmp_path / "raw" / "prose")
    expected = passages()
    for file in range(FILES):
        text = "\n\n".join(expected[f"raw/prose/{file:03}:{passage:05}"] for passage in range(PASSAGES))
        path = tmp_path / "raw" / "prose" / f"{file:03}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    Path(ray_folder, "ray").mkdir()
    job = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=os.environ | {"RAY_TMPDIR": ray_folder}, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert job.returncode == 0, "\n".join(line for line in (job.stdout + job.stderr).splitlines() if "state-dump" not in line)
    told = [json.loads(line) for line in job.stdout.splitlines() if line.startswith("{")]
    killed, ended = told
    assert FIRST <= killed["killed_at"] < FILES and killed["tasks"] and ended["alive"] == 2
    found = [
        (row["id"], row["text"])
        for path in (tmp_path / "artifacts" / "corpus" / "general").rglob("documents/*.parquet")
        for row in pq.read_table(path, columns=["id", "text"]).to_pylist()
    ]
    assert sorted(found) == sorted(expected.items())
    assert "node it was running on is dead" in job.stdout + job.stderr, "no task had to be done again"


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
