"""ssh and rsync that write down what they are given, for Ray's launcher: no machine is behind them."""

import shlex
import sys
from pathlib import Path

SAYS = """#!{python}
import shlex, sys
words = sys.argv[1:]
said = words[-1] if words else ""
with open({log!r}, "a") as log:
    log.write(shlex.join([{name!r}, *words]) + "\\n")
if ".State.Running" in said:
    print("false")
elif "printenv HOME" in said:
    print("/home/ray")
elif "inspect" in said:
    print("[]")
"""


def write_programs(folder: Path) -> Path:
    """Both programs in `folder`/bin, for the front of the path, and the secrets that a cluster file copies; the log they write."""
    (folder / "bin").mkdir()
    (folder / ".ssh").mkdir()
    (folder / ".medschool-cluster").mkdir()
    for name in ("ray_token", "api_key", "store.env"):
        (folder / ".medschool-cluster" / name).write_text("0" * 64)
    for name in ("ssh", "rsync"):
        program = folder / "bin" / name
        program.write_text(SAYS.format(python=sys.executable, log=str(folder / "log"), name=name))
        program.chmod(0o755)
    return folder / "log"


def given(log: Path) -> list[list[str]]:
    """The words of every call, the program first."""
    return [shlex.split(line) for line in log.read_text().splitlines()]
