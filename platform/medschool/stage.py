"""A stage: what it makes, from what, which recipe sections decide its content, and where it stands in a store.

Its fingerprint covers those sections, the digests of its inputs and the tags of its raw files. The stages of a recipe are listed
in medschool.procedure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from medschool import storage
from medschool.artifact import Artifact, find, fingerprint_of
from medschool.errors import MedschoolError, StageError

State = Literal["cached", "run", "blocked"]
TRIAL_KINDS = ("pretrain", "instruct", "evaluate")
"""Kinds of stages that each trial has for itself; where two trials say the same they share one artifact."""


@dataclass(frozen=True)
class Stage:
    """One stage of one recipe."""

    name: str
    """`corpus/papers`, `pretrain/knowledge`..."""
    sections: Mapping[str, Any]
    """Everything of the recipe that decides the content, as JSON values."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Stages whose artifacts it reads, by the role they play: `{"model": "pretrain/knowledge"}`."""
    raw: tuple[str, ...] = ()
    """URIs of raw files that it reads, below the store or absolute."""
    version: int = 1
    """Version of what it writes; raised when the same inputs give other bytes."""

    @property
    def kind(self) -> str:
        return self.name.split("/")[0]

    @property
    def job(self) -> str:
        """The job that makes it: most are named after the kind."""
        return "study" if self.kind in TRIAL_KINDS else "model" if self.kind == "tokenizer" else self.kind

    @property
    def identity(self) -> str:
        """Where its artifacts lie and what enters its fingerprint: its name, or its kind where the name decides nothing."""
        return self.kind if self.kind in TRIAL_KINDS else self.name


@dataclass(frozen=True)
class Resolved:
    """A stage as it stands in a store. The fingerprint is known once every input is finished."""

    stage: Stage
    state: State
    fingerprint: str | None
    artifact: Artifact | None
    reason: str
    """Why it is blocked or must run, in words."""

    def required(self) -> Artifact:
        """What it made. Raises StageError when it is not finished."""
        if self.artifact is None:
            name, job = self.stage.name, self.stage.job
            raise StageError(f"is not finished ({self.reason})", f"submit the recipe, or its job alone: --job {job}", name)
        return self.artifact


def resolve(stage: Stage, store_uri: str, done: Mapping[str, Resolved]) -> Resolved:
    """Where a stage stands, given its inputs' standing: finished under its fingerprint, to run, or blocked and why."""
    for name in stage.inputs.values():
        if done[name].state == "blocked":
            return Resolved(stage, "blocked", None, None, f"waits for {name}, which is blocked")
    try:
        raw = raw_listing(stage, store_uri)
        if missing := [name for name in stage.inputs.values() if done[name].artifact is None]:
            return Resolved(stage, "run", None, None, f"after {', '.join(missing)}")
        fingerprint = fingerprint_in(stage, {role: done[name].required() for role, name in stage.inputs.items()}, raw)
        found = find(store_uri, stage.identity, fingerprint)
    except MedschoolError as error:
        return Resolved(stage, "blocked", None, None, f"{error.where}: {error.problem}" if error.where else error.problem)
    return Resolved(
        stage, "cached" if found else "run", fingerprint, found, "" if found else "no artifact with this fingerprint yet"
    )


def fingerprint_in(stage: Stage, inputs: Mapping[str, Artifact], raw: list[list[str]]) -> str:
    """The fingerprint of a stage whose inputs, by role, are finished."""
    digests = {role: inputs[role].digest for role in stage.inputs}
    return fingerprint_of(stage.identity, stage.version, stage.sections, digests, raw)


def raw_listing(stage: Stage, store_uri: str) -> list[list[str]]:
    """[path below the store, size, tag] of every raw file the stage reads; raises InputError when a pattern matches nothing."""
    return [
        [info.uri.removeprefix(store_uri.rstrip("/") + "/"), str(info.size_bytes), info.tag]
        for uri in stage.raw
        for info in storage.require_files(storage.join(store_uri, uri))
    ]
