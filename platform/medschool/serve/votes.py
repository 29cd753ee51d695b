"""Votes between two answers to the same question, kept beside the audit log, and taken out as preference pairs.

    POST /v1/votes {messages, answers: [{model, version, text}, {..}], better: "first" | "second" | "neither"}
    STORE/votes/2026-11-23/154500-<id>.json      what was sent, with `at`, `key` (its name) and `request_id`; written once

The chat page sends them from its blind mode, where a person sees two answers without names, in an order drawn by chance, and
learns the names with the vote. Prompts and answers are kept here and nowhere else on the server: only for a vote, and the page
says so. An answer of 200 means that the vote is in the store.

`pairs` gives one record a vote in the form that preference training reads (TRL's "conversational preference" data: `prompt`,
`chosen`, `rejected`, each a list of messages), with models, versions and key beside them. Votes without a preference, between
equal texts, or damaged are left out and kept with their reason.

What it does not know: whether the texts came from the models named. A key may send what it likes, so give keys to raters that
you trust; their names stand in the votes.
"""

import asyncio
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import Field, ValidationError

from medschool import s3, storage
from medschool.errors import MedschoolError
from medschool.rows import Dropped
from medschool.serve.admission import CALLER
from medschool.serve.chat import ChatMessage
from medschool.serve.faults import ApiError
from medschool.serve.request import Read, read

FOLDER = "votes"
STORE_WAITS_S = 5.0
Name = Annotated[str, Field(min_length=1, max_length=200)]


class Voted(Read):
    """One of the two answers. version: names the weights that wrote it."""

    model: Name
    version: Name
    text: Annotated[str, Field(min_length=1)]


class VoteRequest(Read):
    """messages: what both models were asked. better: which answer the person liked better."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    answers: Annotated[list[Voted], Field(min_length=2, max_length=2)]
    better: Literal["first", "second", "neither"]


class Vote(VoteRequest):
    """What is kept. at: when, in UTC."""

    at: str
    key: str
    request_id: str


class Votes:
    """The route. uri: the folder of votes; without one, none is taken."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    async def vote(self, request: Request) -> dict[str, str]:
        """Keep one vote. Raises ApiError: 400 for what is no vote, 404 without a store, 503 where it does not take it."""
        asked = read(VoteRequest, await request.body())
        if not self._uri:
            raise ApiError(404, "votes are not kept here: this server has no store", code="no_store")
        now, caller = datetime.now(UTC), request.scope[CALLER]
        kept = {"at": now.isoformat(timespec="seconds"), "key": caller.name, "request_id": caller.request_id}
        uri = storage.join(self._uri, f"{now:%Y-%m-%d}/{now:%H%M%S}-{uuid.uuid4().hex}.json")
        try:
            await asyncio.to_thread(_put, uri, json.dumps(kept | asked.model_dump(), ensure_ascii=False).encode())
        except (MedschoolError, OSError) as error:
            raise ApiError(503, "the vote can not be written; try again", code="store_unavailable") from error
        return {"status": "kept"}


def _put(uri: str, data: bytes) -> None:
    with s3.patience(STORE_WAITS_S):
        storage.put_if_absent(uri, data)


def pairs(store_uri: str) -> Iterator[dict[str, Any] | Dropped]:
    """All votes of a store in the order of their times: a preference pair, or why there is none."""
    files = storage.list_files(storage.join(store_uri, FOLDER))
    for uri in sorted(file.uri for file in files if file.uri.endswith(".json")):
        raw = storage.read_bytes(uri)
        try:
            yield _pair(Vote.model_validate_json(raw), uri)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            yield _dropped(uri, "malformed", f"{'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}", "")


def _pair(vote: Vote, uri: str) -> dict[str, Any] | Dropped:
    first, second = vote.answers
    if vote.better == "neither" or first.text == second.text:
        reason = "no answer was better" if vote.better == "neither" else "both answers have the same text"
        return _dropped(uri, "tie", reason, vote.messages[-1].content[:200])
    chosen, rejected = (first, second) if vote.better == "first" else (second, first)
    return {
        "prompt": [message.as_template() for message in vote.messages],
        "chosen": [{"role": "assistant", "content": chosen.text}],
        "rejected": [{"role": "assistant", "content": rejected.text}],
        "chosen_model": f"{chosen.model} {chosen.version}",
        "rejected_model": f"{rejected.model} {rejected.version}",
        "key": vote.key,
        "at": vote.at,
    }


def _dropped(uri: str, step: str, reason: str, sample: str) -> Dropped:
    return Dropped(uri.rsplit("/", 1)[1], FOLDER, step, reason, sample, uri)
