"""API keys: who may ask, and how much. One object a key in the store, re-read by every replica.

    medschool keys create ward-7 --> STORE/keys/ward-7.json {name, sha256, limits, created, revoked}
                                        ^-- KeyRing re-reads what has changed every REREAD_S --> the gate asks `find`

A key is 256 random bits behind `msk_`. It is shown once; what is kept is its sha256. It needs no salt and no slow hash, because
nobody guesses 256 bits (NIST SP 800-63B, section 5.1.2.2: from 112 bits of entropy on, an approved one-way function will do).
A name is used once: a revoked key keeps its object, so the audit log's names stay true. Creating is a conditional put, so two
people who take one name at the same time do not both get it.

A revoked key is refused after REREAD_S seconds at most. When the store is away, the keys that were read last stay in force: an
outage of the store must not take the service down, and the log says so.
"""

import hashlib
import hmac
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from medschool import s3, storage
from medschool.errors import InputError, RecipeError

PREFIX = "msk_"
FOLDER = "keys"
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
REREAD_S = 5.0
STORE_WAITS_S = 3.0
Limit = Annotated[int, Field(ge=1)] | None
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Key:
    """One key as it is kept. Limits are those of one replica; None sets none."""

    name: str
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Hex, of the key."""
    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    """Tokens of prompts and answers; an answer counts with its `max_tokens` until it is done."""
    concurrency: Limit = None
    """Answers at once."""
    created_s: int = 0
    """Unix time."""
    revoked_s: int | None = None


RECORD = TypeAdapter(Key)


def hash_key(key: str) -> str:
    """Hex sha256 of an API key, the form in which it is kept."""
    return hashlib.sha256(key.encode()).hexdigest()


def create(
    store_uri: str,
    name: str,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    concurrency: int | None = None,
) -> str:
    """Make a key and keep its hash; the key itself, which nothing can show again. Raises RecipeError for a bad or taken name."""
    if not NAME.fullmatch(name):
        raise RecipeError(f"{name!r} is no name for a key", "use 1-64 of a-z, 0-9, '_', '.', '-'", "keys")
    secret = PREFIX + secrets.token_urlsafe(32)
    key = Key(name, hash_key(secret), requests_per_minute, tokens_per_minute, concurrency, int(time.time()))
    if not storage.put_if_absent(_uri(store_uri, name), _as_bytes(key)):
        raise RecipeError(f"there is a key {name!r} already, or there was one", "take another name", "keys")
    return secret


def revoke(store_uri: str, name: str) -> Key:
    """Take a key out of force. Raises RecipeError when there is none of this name; a second time changes nothing."""
    uri = _uri(store_uri, name)
    if not NAME.fullmatch(name) or not storage.exists(uri):
        raise RecipeError(f"there is no key {name!r}", "`medschool keys list` shows all names", "keys")
    key = _read(uri)
    if key.revoked_s is None:
        key = replace(key, revoked_s=int(time.time()))
        storage.write_bytes(uri, _as_bytes(key))
    return key


def stored(store_uri: str) -> list[Key]:
    """All keys by name, revoked ones too. Raises InputError for an object that is no key."""
    return [_read(info.uri) for info in storage.list_files(f"{keys_uri(store_uri)}/*.json")]


def keys_uri(store_uri: str) -> str:
    """Where the keys of a store lie."""
    return storage.join(store_uri, FOLDER)


def _uri(store_uri: str, name: str) -> str:
    return storage.join(store_uri, FOLDER, f"{name}.json")


def _as_bytes(key: Key) -> bytes:
    return json.dumps(asdict(key), indent=1).encode()


def _read(uri: str) -> Key:
    try:
        return RECORD.validate_json(storage.read_bytes(uri), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problem = f"not an API key's record ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        raise InputError(problem, "delete it and create the key under another name", uri) from error


class KeyRing:
    """The keys in force: `fixed` ones, and those under `uri`, re-read by a thread until `close`.

    uri: `keys_uri(...)`, or "" for fixed keys alone. The first reading is made here; it may fail as later ones may.
    """

    def __init__(self, fixed: Sequence[Key], uri: str = "", reread_s: float = REREAD_S) -> None:
        self._fixed, self._uri = tuple(fixed), uri
        self._read: dict[str, tuple[str, Key]] = {}  # uri -> tag of the object, key
        self._in_force = self._fixed
        self._closed = threading.Event()
        if uri:
            self.reread()
            threading.Thread(target=self._watch, args=(reread_s,), name="key-ring", daemon=True).start()

    def find(self, given: str) -> Key | None:
        """The key that `given` is. Every hash is compared, in constant time, so the time taken says nothing."""
        found = hash_key(given)
        matches = [key for key in self._in_force if hmac.compare_digest(found, key.sha256)]
        return matches[0] if matches else None

    def reread(self) -> None:
        """Take over what changed in the store. A damaged record lets nobody in; a store that is away changes nothing."""
        try:
            with s3.patience(STORE_WAITS_S):
                infos = storage.list_files(f"{self._uri}/*.json")
                self._read = {info.uri: (info.tag, key) for info in infos if (key := self._key(info)) is not None}
        except Exception as error:  # whatever it is: a thread that ended here would never see a key revoked
            logger.warning("API keys were not re-read, the last ones stay in force: %s", error)
            return
        self._in_force = self._fixed + tuple(key for _, key in self._read.values() if key.revoked_s is None)

    def _key(self, info: storage.FileInfo) -> Key | None:
        tag, key = self._read.get(info.uri, ("", None))
        if key is not None and tag == info.tag:
            return key
        try:
            return _read(info.uri)
        except (InputError, FileNotFoundError) as error:
            logger.warning("this record of an API key is left out: %s", error)
            return None

    def _watch(self, reread_s: float) -> None:
        while not self._closed.wait(reread_s):
            self.reread()

    def close(self) -> None:
        self._closed.set()
