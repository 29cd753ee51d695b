"""The audit log: who asked which model when, and how much. Never what was asked, and never what was answered.

    STORE/audit/2026-11-22/154500-<writer>-000001.jsonl      one JSON object a line, one a request that was admitted

    at, request_id, key (its name), path, model, version, prompt_sha256, prompt_tokens, answers, answer_tokens, outcome, seconds

`prompt_sha256` is over the messages or prompts as canonical JSON (`prompt_hash`), so whoever has a prompt can show that it was
asked, and nobody can read it back. A short prompt can be guessed and compared; give the folder to those who may know.

Append-only: every object is new and written once (a conditional put), none is changed. Lines are written by a thread, every
FLUSH_S seconds. Price: a replica that is killed loses the lines of the last FLUSH_S seconds. When the store is away, lines wait
in memory, and a write whose answer was lost is made again, so a line may stand twice. Above MAX_WAITING the API refuses
requests, since what is not recorded must not be answered.
"""

import hashlib
import json
import logging
import threading
import uuid
from datetime import UTC, datetime
from typing import Any

from medschool import s3, storage
from medschool.errors import MedschoolError

FOLDER = "audit"
FLUSH_S = 1.0
MAX_WAITING = 10_000
STORE_WAITS_S = 10.0
logger = logging.getLogger(__name__)


def prompt_hash(asked: Any) -> str:
    """Hex sha256 of messages or prompts: of their JSON with sorted keys, without spaces, in UTF-8."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


class AuditLog:
    """Appends records under `uri` until `close`."""

    def __init__(self, uri: str, flush_s: float = FLUSH_S) -> None:
        self._uri, self._writer = uri, uuid.uuid4().hex[:12]
        self._waiting: list[str] = []
        self._tries, self._lock, self._closed = 0, threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(flush_s,), name="audit-log", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether no further record can wait for the store."""
        return len(self._waiting) >= MAX_WAITING

    def append(self, **record: Any) -> None:
        line = json.dumps({"at": datetime.now(UTC).isoformat(timespec="milliseconds"), **record})
        with self._lock:
            self._waiting.append(line)

    def flush(self) -> bool:
        """Write what waits as one new object; False when the store did not take it, and it waits on."""
        with self._lock:
            lines = list(self._waiting)
        if not lines:
            return True
        self._tries += 1  # a name is never tried twice: a write whose answer was lost may have gone through
        now = datetime.now(UTC)
        name = f"{now:%Y-%m-%d}/{now:%H%M%S}-{self._writer}-{self._tries:06}.jsonl"
        try:
            with s3.patience(STORE_WAITS_S):
                storage.put_if_absent(storage.join(self._uri, name), ("\n".join(lines) + "\n").encode())
        except (MedschoolError, OSError) as error:
            logger.error("the audit log is not written, %s lines wait: %s", len(lines), error)
            return False
        with self._lock:
            del self._waiting[: len(lines)]
        return True

    def _watch(self, flush_s: float) -> None:
        while not self._closed.wait(flush_s):
            self.flush()

    def close(self) -> None:
        """Write the rest and end the thread."""
        self._closed.set()
        self._thread.join()
        self.flush()
