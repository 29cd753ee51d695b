"""A worker's own folder on its node's disk: what goes to the store waits here, what comes from it is verified here.

    $MEDSCHOOL_CACHE/staging (else a folder of this user's in $TMPDIR)/<id>          one folder a process
                                                                      /<id>.lock     locked for as long as the process lives

A worker that is killed cannot clean up. The kernel takes back its lock, and the next worker that starts on the node removes
every folder whose lock is free; so a run that is killed often does not fill the disk. Not for network disks without flock.
"""

import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def staging_base() -> Path:
    """Where this user's workers on this node keep their folders."""
    cache = os.environ.get("MEDSCHOOL_CACHE")
    return Path(cache, "staging") if cache else Path(tempfile.gettempdir(), f"medschool-staging-{os.getuid()}")


@contextmanager
def staging_folder(base: Path | None = None) -> Iterator[Path]:
    """An empty folder that is gone afterwards, whatever happens; folders of workers that died are removed first."""
    base = base or staging_base()
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = base / uuid.uuid4().hex[:12]
    own = folder.with_suffix(".lock")
    with own.open("w") as held:
        with _locked(base / "all"):  # nobody takes a folder for a dead one's between its file and its lock
            fcntl.flock(held, fcntl.LOCK_EX)
            _remove_dead(base, own)
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            own.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_dead(base: Path, own: Path) -> None:
    for path in base.glob("*.lock"):
        if path == own:
            continue
        with suppress(OSError), path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its process lives
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink()
